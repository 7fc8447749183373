"""pathovit teach on real files: maps of all slides anew, from what is stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command import pathovit
from made_paint import paint_strokes
from made_runs import folder_of, move_away, rows_of, stored_bytes
from PIL import Image

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.runs import last_run


@pytest.fixture
def taught(finished: Path, slides: list[Path], tmp_path: Path) -> tuple[Path, Path]:
    """A folder of three slides, their files gone, and strokes on the first of them."""
    out, here = tmp_path / "out", tmp_path / "slides"
    shutil.copytree(finished, out)
    here.mkdir()
    first = folder_of(out, "one").name
    return out, paint_strokes(out, first, slides[0].with_suffix(".geojson"), tmp_path / "strokes")


def test_maps_of_all_slides_are_drawn_anew_without_the_slides(taught: tuple[Path, Path], tmp_path: Path) -> None:
    out, strokes = taught
    move_away(out)
    before, shown = stored_bytes(out), {p: p.read_bytes() for p in out.glob("slides/*/overview.png")}
    done = pathovit("teach", out, strokes, "--model", tmp_path / "model", "--json")
    assert done.returncode == 0, done.stderr
    assert "How good it is" in done.stderr  # on so small a slide no stroke is far from the others
    assert min(json.loads(done.stdout)["taught"]["tiles"].values()) >= 12
    assert stored_bytes(out) == before
    assert all(p.read_bytes() != old for p, old in shown.items())
    for row in rows_of(out):
        assert row["answer"] == "map"
        assert row["model"] == "model"
        shares = [float(row[f"share_{name}"]) for name in ("untaught", "other tissue", "Tumor")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert "prob_tumour" not in row
    record = folder_of(out, "one") / "slide.json"
    assert json.loads(record.read_text())["top_tiles"] == []  # their pictures take the slide
    assert pathovit("verify", out).returncode == 0
    found = OutFolder(out)
    assert last_run(found).with_names(found.names()).model == str(tmp_path / "model")
    assert "map" in (out / "report.html").read_text()


def test_the_map_lies_where_the_tumour_is(taught: tuple[Path, Path], slides: list[Path], tmp_path: Path) -> None:
    out, strokes = taught
    done = pathovit("teach", out, strokes, "--model", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    by_file = {row["file"]: row for row in rows_of(out)}
    assert float(by_file["one.svs"]["share_Tumor"]) > float(by_file["two.svs"]["share_Tumor"])
    folder = folder_of(out, "one")
    assert len(json.loads((folder / "slide.json").read_text())["top_tiles"]) > 0  # the slide is at hand
    with tifffile.TiffFile(folder / "heatmap.ome.tiff") as tiff:
        assert tiff.ome_metadata is not None
        assert "score: Tumor" in tiff.ome_metadata
    with Image.open(folder / "views" / "01.jpg") as view:
        assert np.asarray(view).std() > 10


def test_tiles_to_ask_about_are_named_and_can_be_taught_from(taught: tuple[Path, Path], tmp_path: Path) -> None:
    out, strokes = taught
    model = tmp_path / "model"
    done = pathovit("teach", out, strokes, "--model", model, "--suggest", 6, "--no-maps", "--json")
    assert done.returncode == 0, done.stderr
    assert "6 tiles to ask about" in done.stderr
    assert all(row["answer"] != "map" for row in rows_of(out))  # --no-maps
    files = sorted((out / "suggested").glob("*.geojson"))
    features = [feature for file in files for feature in json.loads(file.read_text())["features"]]
    assert sorted(feature["properties"]["name"] for feature in features) == [f"suggested {rank}" for rank in range(1, 7)]
    with Image.open(out / "suggested" / "suggested.png") as picture:
        assert picture.width > 500
    answered = 0
    for file in files:  # as a person answers them
        found = json.loads(file.read_text())
        for feature in found["features"]:
            feature["properties"]["classification"] = {"name": "other tissue"}
            answered += 1
        file.write_text(json.dumps(found))
    again = pathovit("teach", out, strokes, out / "suggested", "--model", model, "--no-maps", "--json")
    assert again.returncode == 0, again.stderr
    first, more = (json.loads(run.stdout)["taught"]["tiles"] for run in (done, again))
    assert more == {**first, "other tissue": first["other tissue"] + answered}


def test_a_trained_model_is_not_replaced_unasked(taught: tuple[Path, Path], tmp_path: Path) -> None:
    out, strokes = taught
    model = tmp_path / "model"
    model.mkdir()
    bundled = Path(__file__).parents[2] / "pathovit" / "model" / "bundled" / "reference"
    for name in ("model.json", "model.safetensors"):
        shutil.copy(bundled / name, model / name)
    done = pathovit("teach", out, strokes, "--model", model, "--no-maps")
    assert done.returncode == 2
    assert "there is a model here that was trained" in done.stderr


def test_a_slide_without_a_picture_or_its_file_is_told_and_the_others_are_drawn(
    taught: tuple[Path, Path], tmp_path: Path
) -> None:
    out, strokes = taught
    move_away(out)
    shutil.rmtree(folder_of(out, "two") / "views")
    done = pathovit("teach", out, strokes, "--model", tmp_path / "model")
    assert done.returncode == 3
    assert "failed  two.svs" in done.stderr
    assert "Run `pathovit run` on it" in done.stderr
    assert "2 of 3 maps drawn" in done.stderr


def test_a_taught_model_runs_on_other_slides(taught: tuple[Path, Path], slides: list[Path], tmp_path: Path) -> None:
    out, strokes = taught
    model = tmp_path / "model"
    assert pathovit("teach", out, strokes, "--model", model, "--no-maps").returncode == 0
    done = pathovit("run", slides[1], "--model", model, "--out", tmp_path / "more")
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "more")
    assert row["answer"] == "map"
    predicted = pathovit("predict", tmp_path / "more", "--model", model, "--json")
    assert json.loads(predicted.stdout)[0]["share_Tumor"] == pytest.approx(float(row["share_Tumor"]), abs=1e-4)
