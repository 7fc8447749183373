"""Models that were edited, mixed up or made to do harm: each is refused in one sentence that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import pathovit
from safetensors.torch import load_file, save_file

from pathovit.errors import WeightsError
from pathovit.files import file_sha256
from pathovit.model.baselines import AGGREGATORS
from pathovit.model.card import BUNDLED, read_card
from pathovit.model.contract import NETWORKS, TAUGHT
from pathovit.model.slide_model import load_model

Edit = Callable[[dict[str, Any]], object]
EDITS: dict[str, tuple[str, Edit]] = {
    "temperature 0": ("calibration.temperature is 0", lambda card: card["calibration"].update(temperature=0)),
    "temperature below 0": ("calibration.temperature is -1", lambda card: card["calibration"].update(temperature=-1.0)),
    "temperature as text": ("calibration.temperature holds '1'", lambda card: card["calibration"].update(temperature="1")),
    "a shift too many": ("calibration.shift does not hold 1", lambda card: card["calibration"]["shift"].append(0.0)),
    "a margin that is none": ("calibration.hot holds None", lambda card: card["calibration"].update(hot=[None])),
    "conformity of text": ("calibration.conformity", lambda card: card["calibration"].update(conformity=[["high"]])),
    "conformity of nothing": (r"conformity does not hold \[2\] lists", lambda card: card["calibration"].update(conformity=[])),
    "conformity of one class": (r"conformity does not hold \[2\] lists", lambda card: card["calibration"]["conformity"][0].pop()),
    "conformity no list": ("calibration.conformity", lambda card: card["calibration"].update(conformity=3)),
    "a name that calibration has not": ("calibration.warmth is unknown", lambda card: card["calibration"].update(warmth=1)),
    "one class": ("a binary target cannot have 1 class", lambda card: card["target"].update(classes=["tumour"])),
    "three classes": ("a binary target cannot have 3 classes", lambda card: card["target"].update(classes=["a", "b", "c"])),
    "the same class twice": ("target.classes are not all different", lambda card: card["target"].update(classes=["a", "a"])),
    "classes of numbers": ("target.classes are no names", lambda card: card["target"].update(classes=[0, 1])),
    "no columns": ("target.columns are no names", lambda card: card["target"].update(columns=[])),
    "an unknown task": ("target.task 'triage' is unknown", lambda card: card["target"].update(task="triage")),
    "a task that is a list": ("target.task .* is unknown", lambda card: card["target"].update(task=["binary"])),
    "another task": ("1 outputs do not fit", lambda card: card["target"].update(task="multiclass")),
    "an unknown network": ("config.kind 'resnet' is unknown", lambda card: card["config"].update(kind="resnet")),
    "a network of absurd width": ("config.width is 1000000000", lambda card: card["config"].update(width=10**9)),
    "a width below 1": ("config.width is 0", lambda card: card["config"].update(width=0)),
    "a depth that is no number": ("config.depth is True", lambda card: card["config"].update(depth=True)),
    "heads that do not divide": ("no multiple of its 7 heads", lambda card: card["config"].update(heads=7)),
    "a name that config has not": ("config.hook is unknown", lambda card: card["config"].update(hook="os.system")),
    "features that do not fit": ("do not fit a network for 512", lambda card: card["config"].update(feature_dim=512)),
    "an encoder without a name": ("encoder.encoder is no text", lambda card: card["encoder"].update(encoder=None)),
    "tiles of 0 pixels": ("encoder.tile_px is 0", lambda card: card["encoder"].update(tile_px=0)),
    "pixels of no size": ("encoder.mpp is 0", lambda card: card["encoder"].update(mpp=0)),
    "a part that is a list": ("its encoder holds no names", lambda card: card.update(encoder=[])),
    "a part that is missing": (r"of another version \(target missing\)", lambda card: card.pop("target")),
    "a digest that is none": ("its weights_sha256 is no digest", lambda card: card.update(weights_sha256="../../etc/passwd")),
    "a wide network with other weights": ("does not fit model.json", lambda card: card["config"].update(width=4096)),
    "a deep network with other weights": ("does not fit model.json", lambda card: card["config"].update(depth=64)),
}
FILES: dict[str, tuple[str, bytes]] = {
    "nothing": ("damaged", b""),
    "a list": ("it holds no JSON object", b"[]"),
    "NaN": ("it holds NaN where a number should be", b'{"config": NaN}'),
    "too deep": ("damaged", b"[" * 100_000),
    "no text": ("damaged", b"\xff\xfe\x00"),
    "a page": ("damaged", b"<!DOCTYPE html><html></html>"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED / "reference", tmp_path / "model"))


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_card_is_refused_in_one_sentence(model: Path, name: str) -> None:
    expected, edit = EDITS[name]
    card = json.loads((model / "model.json").read_text())
    edit(card)
    (model / "model.json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=expected) as refused:
        load_model(model)
    assert "\n" not in str(refused.value)
    assert str(model) in str(refused.value)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_card_is_refused_in_one_sentence(model: Path, name: str) -> None:
    expected, content = FILES[name]
    (model / "model.json").write_bytes(content)
    with pytest.raises(WeightsError, match=expected) as refused:
        read_card(model)
    assert "\n" not in str(refused.value)


def rewritten(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Its weights changed, and the card made to vouch for them."""
    weights, card = model / "model.safetensors", json.loads((model / "model.json").read_text())
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    (model / "model.json").write_text(json.dumps(card | {"weights_sha256": file_sha256(weights)}))


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("novelty is damaged", lambda found: found.update({"novelty.centre": torch.zeros(3)})),
        ("novelty is damaged", lambda found: found.pop("novelty.centre")),
        ("novelty is damaged", lambda found: found.update({"novelty.more": torch.zeros(3)})),
        ("does not fit model.json", lambda found: found.update({"head.more": torch.zeros(3)})),
        ("does not fit model.json", lambda found: found.pop(next(name for name in found if not name.startswith("novelty.")))),
        ("NaN or infinite", lambda found: found["feature_mean"].fill_(float("nan"))),
    ],
)
def test_weights_that_the_card_vouches_for_and_that_are_others_are_refused(
    model: Path, expected: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    rewritten(model, change)
    with pytest.raises(WeightsError, match=expected):
        load_model(model)


def test_a_run_refuses_other_weights_before_a_worker_is_started(model: Path, squares: Path, tmp_path: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    done = pathovit("run", squares, "--out", tmp_path / "out", "--model", model)
    assert done.returncode == 2, done.stderr
    assert "its SHA-256 is not the one in model.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting workers" not in done.stderr + done.stdout


def test_all_networks_have_a_name_in_the_contract() -> None:
    assert set(NETWORKS) == {*AGGREGATORS, TAUGHT}
