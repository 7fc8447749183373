"""The tissue map of a real run: pictures, areas, names, and that it stays what it was when nothing changed."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import pathovit
from PIL import Image

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore
from pathovit.run.tissue_map import map_tissue
from pathovit.show.tissue_map import colour_of


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def areas(out: Path) -> list[dict[str, str]]:
    with (out / "tissue" / "areas.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_a_tissue_map_of_every_slide(out: Path) -> None:
    for row in areas(out):
        stored = FeatureStore(OutFolder(out).slide(row["slide_id"]), Path("x")).read()
        tile = stored.grid.stride_l0[0] * stored.mpp[0] * stored.grid.stride_l0[1] * stored.mpp[1] * 1e-6
        total = sum(float(area) for name, area in row.items() if name.endswith("mm2"))
        assert total == pytest.approx(stored.ok.sum() * tile, rel=0.01)
        picture = np.asarray(Image.open(out / "tissue" / f"{row['slide_id']}.jpg"))
        assert picture.shape[1] >= 400
        drawn = json.loads((out / "tissue" / f"{row['slide_id']}.geojson").read_text())["features"]
        shown = {f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"] for f in drawn}
        assert shown
        assert all(colour == colour_of(ord(name[0]) - ord("A")) for name, colour in shown.items())
    assert len(areas(out)) == 3
    assert Image.open(out / "tissue" / "kinds.png").size[0] > 500
    report = (out / "report.html").read_text()
    assert "What the tissue is made of" in report
    assert report.count("<summary>Tissue map</summary>") == 3


def test_nothing_is_drawn_again_and_no_letter_changes_when_nothing_is_new(out: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "tissue").glob("*.jpg")}
    assert len(before) == 3
    first = areas(out)
    with pytest.MonkeyPatch.context() as patch:  # a folder of thousands is not read for nothing
        patch.setattr(FeatureStore, "read", lambda store: pytest.fail(f"{store.path} is read again"))
        map_tissue(OutFolder(out), lambda text: None)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "tissue").glob("*.jpg")} == before
    assert areas(out) == first


def test_a_lost_picture_is_drawn_again_and_it_alone(out: Path) -> None:
    lost, *others = sorted((out / "tissue").glob("*.jpg"))
    before, times = lost.read_bytes(), [path.stat().st_mtime_ns for path in others]
    lost.unlink()
    map_tissue(OutFolder(out), lambda text: None)
    assert lost.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in others] == times


def test_a_slide_that_cannot_be_drawn_again_keeps_no_map_of_other_kinds(out: Path) -> None:
    note = sorted((out / "tissue" / ".drawn").glob("*.json"))[0]
    note.write_text(json.dumps({"mark": "of other kinds", "mm2": [1.0, 2.0], "nearest": [[]]}))
    shutil.rmtree(out / "slides" / note.stem / "features.zarr" / "verdict" / "c")
    said: list[str] = []
    map_tissue(OutFolder(out), said.append)
    assert [text for text in said if "no tissue map" in text and "is missing" in text]
    assert len(areas(out)) == 2
    assert not list((out / "tissue").rglob(f"{note.stem}.*"))


def test_kinds_get_names_and_are_taught_from(out: Path, tmp_path: Path) -> None:
    done = pathovit("teach", out, out / "tissue" / "names.csv", "--no-maps", "--model", tmp_path / "m")
    assert done.returncode == 2
    assert "no kind has a name" in done.stderr
    done = pathovit("tissue", out, "--name", "A=stroma", "--name", "b=glands")
    assert done.returncode == 0, done.stderr
    assert "A stroma, B glands, C" in done.stderr
    assert any(re.match("A stroma mm2", name) for name in areas(out)[0])
    assert "A stroma" in (out / "report.html").read_text()
    done = pathovit("teach", out, out / "tissue" / "names.csv", "--no-maps", "--model", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "m" / "model.json").read_text())
    assert set(card["target"]["classes"]) == {"stroma", "glands"}
    done = pathovit("tissue", out, "--name", "Z=stroma")
    assert done.returncode == 2
    assert "'Z' is not a kind" in done.stderr


def test_a_folder_without_slides_is_told(tmp_path: Path) -> None:
    done = pathovit("tissue", tmp_path)
    assert done.returncode == 4, done.stderr


def test_more_slides_than_kinds_are_found_on_are_looked_at_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathovit.run.tissue_map.FITTED_SLIDES", 2)
    folder = OutFolder(out)
    kinds = map_tissue(folder, print, afresh=True)
    assert len(kinds.slides) == 3, "those that were not looked at are no news either"
    monkeypatch.setattr("pathovit.run.tissue_map._read", lambda out, record: pytest.fail("nothing is new"))
    assert map_tissue(folder, print).slides == kinds.slides
