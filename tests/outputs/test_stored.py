"""What earlier versions stored is still known, opened, resumed, reported and redrawn.

`stored/out_2026_11.zip` holds a slide (`squares_picture`, as JPEG tiles) and the folder that
`pathovit run squares.tif --precision fp32 --device cpu` made of it on 2026-11-25.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pathovit.cli import app, commands  # noqa: F401  # registers them
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore

STORED = Path(__file__).parent / "stored" / "out_2026_11.zip"
ID = "squares-049695e34eee"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "out"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def of_features(out: Path) -> dict[str, str]:
    """Digests of everything in features.zarr."""
    root = out / "slides" / ID / "features.zarr"
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


def test_the_recipe_of_a_stored_slide_is_that_of_today(stored: Path) -> None:
    """Byte for byte: a recipe that is spelled otherwise would have every slide embedded again. The bundled model is another one by now."""
    before = of_features(stored)
    command = ["run", stored.parent / "squares.tif", "--out", stored, "--precision", "fp32", "--device", "cpu", "--json"]
    found = call(*command)
    assert found.exit_code == 0, found.stderr
    assert of_features(stored) == before
    assert json.loads((stored / "slides" / ID / "slide.json").read_bytes())["seconds"] == 0.26  # that embedding took, then
    again = call(*command)
    assert "done already" in again.stderr
    assert json.loads(again.stdout)["slides"][0]["skipped"] is True


def test_stored_features_are_recognised_and_redrawn_with_another_threshold(stored: Path) -> None:
    before = of_features(stored)
    done = call("heatmap", stored.parent / "squares.tif", "--out", stored, "--hot-score", "0.3")
    assert done.exit_code == 0, done.stderr
    assert of_features(stored) == before
    record = json.loads((stored / "slides" / ID / "slide.json").read_bytes())
    assert record["finish_recipe"]["heatmap"]["hot_score"] == 0.3
    assert record["seconds"] == 0.26


def test_a_stored_chunk_that_is_lost_is_embedded_again_alike(stored: Path) -> None:
    features = stored / "slides" / ID / "features.zarr" / "features" / "c" / "0" / "0"

    before = FeatureStore(OutFolder(stored).slide(ID), Path("squares.tif")).read()
    features.unlink()
    done = call("run", stored.parent / "squares.tif", "--out", stored, "--precision", "fp32", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    after = FeatureStore(OutFolder(stored).slide(ID), Path("squares.tif")).read()
    assert np.array_equal(before.xy, after.xy)
    assert np.allclose(before.features, after.features, atol=2e-2)  # another machine rounds otherwise


def test_a_stored_folder_is_verified_predicted_and_exported(stored: Path) -> None:
    assert call("verify", stored).exit_code == 0
    told = call("predict", stored)
    assert told.exit_code == 0, told.stderr
    (row,) = csv.DictReader(told.stdout.splitlines())
    (kept,) = csv.DictReader((stored / "predictions.csv").read_text().splitlines())
    assert row["slide_id"] == kept["slide_id"] == ID
    assert (kept["answer"], row["answer"], row["prob_tumour"]) == ("unsure", "outside", "")  # a strange slide was called unsure
    assert call("export", stored).exit_code == 0
