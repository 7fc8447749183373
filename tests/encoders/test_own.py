"""One's own encoder: from a folder, from Python, and brought by another package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command import PATHOVIT, pathovit
from torch import nn

import pathovit as api
from pathovit.encoders import RECORDS, known_record, load_encoder, own_encoder, write_encoder
from pathovit.encoders.own import ABOUT, OF_PACKAGE, WEIGHTS
from pathovit.errors import SettingsError, WeightsError
from pathovit.outputs.folder import OutFolder

MINE = replace(
    RECORDS["vit_small"], name="mine", arch="vit_tiny_patch16_224", dim=192, millions=5.5, hub="", tile_px=64, mpp=1.0, args={"img_size": 64},
    files=(), licence="ours",
)  # fmt: skip


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder."""
    folder = tmp_path_factory.mktemp("encoders") / "mine"
    torch.manual_seed(0)
    write_encoder(folder, MINE, dict(timm.create_model(MINE.arch, num_classes=0, img_size=64).state_dict()))
    return folder


def test_a_folder_is_an_encoder(mine: Path, slides: list[Path], tmp_path: Path) -> None:
    record = known_record(str(mine))
    assert (record.name, record.dim, record.tile_px, record.licence) == ("mine", 192, 64, "ours")
    assert known_record(f"{mine}:cls_mean").dim == 384
    encoder = load_encoder(str(mine), device="cpu", precision="fp32")
    assert encoder.embed(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 192)
    done = pathovit("embed", slides[0], "--encoder", mine.name, "--max-tiles", 8, "--out", tmp_path / "out", cwd=mine.parent)
    assert done.returncode == 0, done.stderr
    (slide,) = OutFolder(tmp_path / "out").embedded()
    assert slide.recipe.encoder["encoder"] == "mine"
    assert slide.recipe.encoder["weights_sha256"] == encoder.weights_sha256
    assert str(mine.parent) not in (tmp_path / "out" / "run.json").read_text()  # folders can name patients
    again = pathovit("embed", slides[0], "--encoder", mine, "--max-tiles", 8, "--out", tmp_path / "out")
    assert "done already" in again.stderr, again.stderr


def test_pool_is_a_part_of_the_name(mine: Path, slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = pathovit("embed", slides[0], "--encoder", mine, "--pool", "cls_mean", "--max-tiles", 8, "--out", out)
    assert done.returncode == 0, done.stderr
    (slide,) = OutFolder(out).embedded()
    assert (slide.recipe.encoder["encoder"], slide.recipe.encoder["dim"]) == ("mine:cls_mean", 384)
    assert "name it with --encoder" in pathovit("embed", slides[0], "--pool", "cls", "--out", out).stderr


def test_weights_that_were_changed_are_refused(mine: Path, tmp_path: Path) -> None:
    content = bytearray((mine / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / ABOUT).write_bytes((mine / ABOUT).read_bytes())
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(WeightsError, match="it was changed since it was put there"):
        load_encoder(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pool": "max"}, "pool is 'max'"),
        ({"dim": "192"}, "dim is '192', which is no int"),
        ({"dim": True}, "dim is 'True', which is no int"),
        ({"mean": [0.5, 0.5]}, "mean has not three colours"),
        ({"mean": ["a", "b", "c"]}, "mean does not hold numbers"),
        ({"run": "rm"}, "it says 'run', which no encoder has"),
        ({"name": "../../x"}, "'../../x' is no name"),
        ({"args": {"act_layer": "torch.hub.load"}}, "is no layer that an encoder's record may name"),
        ({"arch": "os.system"}, "timm knows no architecture 'os.system'"),
        ({"args": {"checkpoint_path": "evil.pth"}}, "args say 'checkpoint_path', which is no part of an architecture"),
        ({"args": {"img_size": 64, "fun": 1}}, "does not take its args"),
        ({"multiple_px": 0}, "it is no record of an encoder"),
        ({"pool": "cls", "arch": "vit_base_patch16_siglip_224", "dim": 768}, "has no CLS token. Use :mean."),
    ],
)
def test_a_folder_of_somebody_elses_is_read_with_care(mine: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    (tmp_path / ABOUT).write_text(json.dumps(json.loads((mine / ABOUT).read_text()) | changed))
    (tmp_path / WEIGHTS).write_bytes((mine / WEIGHTS).read_bytes())
    with pytest.raises(WeightsError) as raised:
        load_encoder(str(tmp_path), device="cpu")
    assert said in str(raised.value)


def test_what_is_done_with_tiles_is_a_part_of_the_recipe(mine: Path, tmp_path: Path) -> None:
    said = json.loads((mine / ABOUT).read_text())
    (tmp_path / WEIGHTS).write_bytes((mine / WEIGHTS).read_bytes())
    recipes = []
    for changed in ({}, {"input": "crop"}, {"args": {"img_size": 64, "qkv_bias": True}}):
        (tmp_path / ABOUT).write_text(json.dumps(said | changed))
        recipes.append(load_encoder(str(tmp_path), device="cpu", precision="fp32").recipe())
    assert recipes[0] != recipes[1] != recipes[2] != recipes[0]
    assert "input" not in load_encoder("reference", device="cpu").recipe(), "those of the table are known by their names"


def test_a_folder_without_an_encoder_is_told(tmp_path: Path, slides: list[Path]) -> None:
    done = pathovit("embed", slides[0], "--encoder", tmp_path / "none", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0)
    assert "there is no encoder.json in it" in done.stderr
    (tmp_path / ABOUT).write_text("[1, 2")
    assert (
        "it is no record of an encoder"
        in pathovit("embed", slides[0], "--encoder", f"{tmp_path}/", "--out", tmp_path / "out").stderr
    )


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.conv(images).mean((2, 3))
        return found


def test_a_network_and_a_function_serve_as_encoders(slides: list[Path], tmp_path: Path) -> None:
    network = own_encoder(Small(), "small", mpp=1.0, tile_px=64, device="cpu")
    function = own_encoder(lambda tiles: tiles.mean((1, 2)), "colour", mpp=1.0, tile_px=64, version="1")
    batch = np.full((3, 64, 64, 3), 7, np.uint8)
    assert np.allclose(function.embed(batch), 7)
    assert (network.dim, function.dim) == (8, 3)
    assert network.embed(batch).shape == (3, 8)
    assert network.weights_sha256 != own_encoder(Small(), "small", mpp=1.0, tile_px=64, device="cpu").weights_sha256
    assert (
        function.recipe()["weights_sha256"]
        != own_encoder(lambda t: t.mean((1, 2)), "colour", mpp=1.0, tile_px=64, version="2").weights_sha256
    )
    with pytest.raises(SettingsError, match="give `version`"):
        own_encoder(lambda tiles: tiles, "colour", mpp=1.0, tile_px=64)
    with pytest.raises(SettingsError, match="expected \\(2, D\\)"):
        own_encoder(lambda tiles: tiles, "colour", mpp=1.0, tile_px=64, version="1")
    with api.open_slide(slides[0]) as slide:
        grid = api.lay_grid(slide, api.find_tissue(slide, api.TissueSettings()), api.fill_spec(api.TileSpec(), 64, 1.0), 4)
        tiles = np.stack([tile for number in range(len(grid)) if (tile := api.read_tile(slide, grid, number)) is not None])
    assert np.allclose(function.embed(tiles), tiles.mean((1, 2)), atol=1e-4)


def test_a_package_brings_an_encoder(slides: list[Path], tmp_path: Path) -> None:
    """Found by workers, too: it is installed where they look."""
    site = tmp_path / "site"
    (site / "theirs-1.dist-info").mkdir(parents=True)
    (site / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (site / "theirs-1.dist-info" / "entry_points.txt").write_text(
        "[pathovit.encoders]\ntheirs = theirs:make\nbroken = theirs:nothing\n"
    )
    (site / "theirs.py").write_text(
        "import torch\nfrom pathovit import EncoderRecord\n\n"
        "class Mean(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.scale = torch.nn.Parameter(torch.ones(3))\n\n"
        "    def forward(self, images):\n        return images.mean((2, 3)) * self.scale\n\n"
        "def make():\n    return EncoderRecord('any', 'any', 3, 0.0, 'theirs', '', tile_px=64, mpp=1.0), Mean()\n\ndef nothing():\n    return 3\n"
    )  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}

    def run(*given: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PATHOVIT, *map(str, given)], capture_output=True, text=True, env=environment, timeout=300)

    done = run("embed", slides[0], "--encoder", "theirs", "--max-tiles", 8, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (slide,) = OutFolder(tmp_path / "out").embedded()
    assert (slide.recipe.encoder["encoder"], slide.recipe.encoder["dim"]) == ("theirs", 3)
    assert "theirs" in run("encoders").stdout
    done = run("embed", slides[0], "--encoder", "broken", "--out", tmp_path / "other")
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stderr
    assert "Encoder 'broken', which theirs:nothing brings, cannot be made" in done.stderr


def test_one_encoder_does_not_change_another_nor_the_network_it_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 64), torch.nn.Flatten())
    own = own_encoder(network.train(), "conv", mpp=1.0, tile_px=64, device="cpu")
    assert network.training
    assert all(p.requires_grad for p in network.parameters()), "it may be trained on"
    record = replace(own.record, name="theirs", arch=OF_PACKAGE)
    monkeypatch.setattr("pathovit.encoders.load.known_record", lambda name: record)
    monkeypatch.setattr("pathovit.encoders.load.brought", lambda name: (record, network, "digest"))
    exact = load_encoder("theirs", device="cpu", precision="fp32")
    half = load_encoder("theirs", device="cpu", precision="bf16")
    assert next(exact.model.parameters()).dtype == torch.float32
    assert next(half.model.parameters()).dtype == torch.bfloat16
    assert next(network.parameters()).dtype == torch.float32


def test_own_encoders_are_imported_at_no_cost() -> None:
    code = "import sys\nfrom pathovit.encoders.names import known_record\nknown_record('uni')\nassert not {'torch', 'timm'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
