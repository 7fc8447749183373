"""Features of other programs, of scanners that differ by a little: learned from together, and for what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import pathovit
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.outputs.folder import OutFolder
from pathovit.run.import_features import import_features


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("to", ["trident", "clam", "stamp"])
def test_slides_of_three_scanners_have_one_resolution_again(to: str, slides: list[Path], tmp_path: Path) -> None:
    """Whole level-0 pixels of a tile are not the micrometres that were asked for."""
    for number, mpp in enumerate((0.5, 0.513, 0.4938)):
        done = call("embed", slides[number % 2], "--mpp", mpp, "--out", tmp_path / f"o{number}", "--max-tiles", 9)
        assert done.exit_code == 0, done.output
        assert call("export", tmp_path / f"o{number}", "--to", to, "--folder", tmp_path / "f" / f"s{number}").exit_code == 0
    done = call("import", tmp_path / "f", "--out", tmp_path / "in")
    assert done.exit_code == 0, done.output
    found = [record.recipe.tiles for folder in OutFolder(tmp_path / "in").slides() if (record := folder.record())]
    assert len(found) == 3
    assert [tiles["mpp"] for tiles in found] == [pytest.approx(1.0, abs=0 if to != "stamp" else 1e-6)] * 3
    assert {(tiles["tile_px"], tiles["stride_px"]) for tiles in found} == {(96, 96)}


@pytest.mark.parametrize("to", ["trident", "clam", "stamp"])
def test_a_trial_stays_a_trial_and_its_tiles_lie_where_they_lay(to: str, slides: list[Path], tmp_path: Path) -> None:
    """Tiles that were left out are no wider lattice."""
    assert call("embed", slides[0], "--out", tmp_path / "o", "--max-tiles", 30).exit_code == 0
    before = pathovit.load_features(tmp_path / "o")
    assert call("export", tmp_path / "o", "--to", to, "--folder", tmp_path / "f").exit_code == 0
    assert call("import", tmp_path / "f", "--out", tmp_path / "in").exit_code == 0
    after = pathovit.load_features(tmp_path / "in")
    assert after.trial == before.trial == "a trial on 30 of 95 tiles (--max-tiles)"
    assert after.pitch_um == pytest.approx(before.pitch_um, rel=0.01)
    assert after.cap == 30
    (folder,) = OutFolder(tmp_path / "in").slides()
    record = folder.record()
    assert record
    assert record.trial == before.trial


def test_one_slide_for_two_programs_is_not_two_slides(finished: Path, tmp_path: Path) -> None:
    assert call("export", finished, "--to", "h5", "--folder", tmp_path / "f").exit_code == 0
    with pytest.raises(SettingsError, match="have one name, and would be two slides. Give the folder of one of them"):
        import_features([tmp_path / "f"], tmp_path / "in")
    (features,) = (tmp_path / "f").rglob("features_*")
    assert import_features([features], tmp_path / "in").imported == 3


def test_objectives_that_differ_by_scanner_are_one_and_others_are_not(tmp_path: Path) -> None:
    """TRIDENT's 20x of a scanner with 0.2265 um per pixel is 0.453 um, and of another 0.5."""
    for name, mpp, power in (("a", 0.2265, 20), ("b", 0.25, 20), ("c", 0.25, 10)):
        folder = tmp_path / "f" / f"{power}x_256px_0px_overlap" / "features_resnet50"
        folder.mkdir(parents=True, exist_ok=True)
        side = 256 * 40 // power
        xy = np.stack(np.meshgrid(np.arange(4) * side, np.arange(3) * side), -1).reshape(-1, 2)
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = np.random.default_rng(ord(name)).normal(size=(12, 8)).astype(np.float32)
            coords = file.create_dataset("coords", data=xy)
            coords.attrs.update(
                {"patch_size": 256, "patch_size_level0": side, "level0_magnification": 40, "target_magnification": power,
                 "overlap": 0, "mpp_x": mpp, "mpp_y": mpp}
            )  # fmt: skip
    assert import_features([tmp_path / "f"], tmp_path / "in").imported == 3
    found = {pathovit.load_features(tmp_path / "in", name).grid.spec.mpp for name in "ab"}
    assert found == {0.5}
    assert pathovit.load_features(tmp_path / "in", "c").grid.spec.mpp == 1.0
    assert pathovit.load_features(tmp_path / "in", "a").pitch_um == pytest.approx(512 * 0.2265)


def test_damaged_features_are_mended_by_the_import_and_not_by_a_run(finished: Path, tmp_path: Path) -> None:
    assert call("export", finished, "--to", "trident", "--folder", tmp_path / "f").exit_code == 0
    assert call("import", tmp_path / "f", "--out", tmp_path / "in").exit_code == 0
    folder = OutFolder(tmp_path / "in").slides()[0]
    torn = folder.features / "features" / "c" / "0" / "0"
    torn.write_bytes(torn.read_bytes()[:-1] + b"?")
    said = call("verify", tmp_path / "in", "--repair")
    assert "Mend it with: pathovit import FILE" in said.stderr, "no slide could be run for it"
    mended = call("import", tmp_path / "f", "--out", tmp_path / "in")
    assert "what lay there had features.zarr/features/c/0/0 missing or changed" in mended.stderr
    assert call("verify", tmp_path / "in").exit_code == 0


def test_names_of_two_sites_are_two_slides_and_those_of_two_encoders_are_one(tmp_path: Path) -> None:
    def write(name: str, seed: int, step: int = 512) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["features"] = np.random.default_rng(seed).normal(size=(12, 8)).astype(np.float32)
            xy = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * step
            about = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
            file.create_dataset("coords", data=xy).attrs.update(about | {"overlap": 0, "encoder": "resnet50"})
            file["features"].attrs["encoder"] = "resnet50"
        return path

    write("sites/features_siteA/S1.h5", 1)
    write("sites/features_siteB/S1.h5", 2)
    assert import_features([tmp_path / "sites"], tmp_path / "a").imported == 2
    for folder in (
        "one/features_uni_v1",
        "one/features_resnet50",
        "two/20x_256px_0px_overlap/features_x",
        "two/10x_512px_0px_overlap/features_x",
    ):
        write(f"{folder}/S1.h5", sum(folder.encode()))
    for folder in ("one", "two"):
        with pytest.raises(SettingsError, match="have one name, and would be two slides"):
            import_features([tmp_path / folder], tmp_path / "b")
    assert import_features(sorted((tmp_path / "two").rglob("*.h5")), tmp_path / "b").imported == 2, "each was named"
