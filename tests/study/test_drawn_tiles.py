"""Regions drawn on slides as labelled tiles of a probe: the same places for every encoder, each at its own size and resolution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import pathovit
from shapely import box, contains_xy, union_all
from shapely.geometry import mapping, shape

from pathovit.encoders import known_record
from pathovit.errors import SettingsError
from pathovit.run.plan import SlideJob
from pathovit.settings import Settings
from pathovit.study import drawn_tiles
from pathovit.study.drawn_tiles import find_drawn


@pytest.fixture
def regions(slides: list[Path], tmp_path: Path) -> Path:
    """What the slide maker knows of two slides: all of their tumour, and that it is all."""
    folder = tmp_path / "regions"
    folder.mkdir()
    for slide in slides[:2]:
        found = json.loads(slide.with_suffix(".geojson").read_text())
        found["features"].append(
            {
                "type": "Feature",
                "geometry": mapping(box(0, 0, 100_000, 100_000)),
                "properties": {"objectType": "annotation", "classification": {"name": "complete"}},
            }
        )
        (folder / f"{slide.stem}.geojson").write_text(json.dumps(found))
    return folder


def jobs_of(slides: list[Path], patients: tuple[str | None, ...] = (None, None, None)) -> list[SlideJob]:
    return [SlideJob(slide, patient=patient) for slide, patient in zip(slides, patients, strict=True)]


def test_every_encoder_sees_the_same_places(slides: list[Path], regions: Path) -> None:
    said: list[str] = []
    records = [known_record("reference"), known_record("vit_small")]  # 96 and 112 um wide
    found = find_drawn(jobs_of(slides), [regions], records, Settings(), said.append)
    assert found.classes == ("not Tumor", "Tumor")
    assert found.unit == "slide"
    assert len(set(found.groups.tolist())) == 2
    assert any("patients are not known" in line for line in said)
    wide, narrow, coarse = found.pixels(96, 1.0), found.pixels(48, 1.0), found.pixels(48, 2.0)
    assert wide.shape == (len(found), 96, 96, 3)
    far = np.abs(wide.astype(int) - np.roll(wide, 8, axis=2)).mean()
    assert np.abs(wide[:, 24:72, 24:72].astype(int) - narrow).mean() < 0.3 * far  # to a pixel, as corners are whole ones
    assert np.abs(wide.reshape(len(found), 48, 2, 48, 2, 3).mean((2, 4)) - coarse).mean() < 0.3 * far
    seen = np.array([colour.std() for colour in wide.reshape(len(found), -1)])
    assert (seen > 2).all()  # tissue, not glass


def test_classes_are_those_that_were_drawn(slides: list[Path], regions: Path) -> None:
    drawn = json.loads(slides[0].with_suffix(".geojson").read_text())["features"]
    tumour = union_all([shape(feature["geometry"]) for feature in drawn])
    looked = []
    real = drawn_tiles._look

    def look(*given: Any) -> drawn_tiles.DrawnSlide:
        looked.append(real(*given))
        return looked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_tiles, "_look", look)
        found = find_drawn(jobs_of(slides), [regions], [known_record("reference")], Settings(), lambda text: None)
    assert len(found) == sum(len(slide.truth) for slide in looked)
    inside = contains_xy(tumour, *looked[0].middles.T)
    assert (inside == (looked[0].truth == 1)).mean() > 0.95  # but for tiles on the edge, whose middle is outside


def test_the_command_judges_on_slides_that_were_left_out(slides: list[Path], regions: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    done = pathovit("probe", regions, "--slides", slides[0].parent, "--encoders", "reference", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["patients"], found["slides"], found["classes"]) == (None, 2, ["not Tumor", "Tumor"])
    assert found["encoders"][0]["linear"]["value"] > 0.85
    assert (out / "probe.png").stat().st_size > 10_000


def test_patients_of_a_manifest_are_kept_together(slides: list[Path], regions: Path) -> None:
    jobs = jobs_of(slides, ("p1", "p1", "p2"))
    found = find_drawn(jobs, [regions], [known_record("reference")], Settings(), lambda text: None)
    assert (found.unit, len(set(found.groups.tolist()))) == ("patient", 1)


def test_many_tiles_of_a_class_are_thinned_and_said(slides: list[Path], regions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn_tiles, "MOST_TILES", 5)
    said: list[str] = []
    found = find_drawn(jobs_of(slides), [regions], [known_record("reference")], Settings(), said.append)
    assert len(found) == 20
    assert sum("5 of " in line and "spread evenly" in line for line in said) == 4


def test_regions_of_no_slide_are_refused(slides: list[Path], regions: Path) -> None:
    (regions / "two.geojson").rename(regions / "nine.geojson")
    (regions / "one.geojson").unlink()
    with pytest.raises(SettingsError, match=r"the slide 'nine' is none of the slides"):
        find_drawn(jobs_of(slides), [regions], [known_record("reference")], Settings(), lambda text: None)


def test_a_pixel_size_is_given_to_probe_as_to_run(slides: list[Path], regions: Path, tmp_path: Path) -> None:
    done = pathovit(
        "probe", regions, "--slides", slides[0].parent, "--mpp", "2.5", "--encoders", "reference", "--out", tmp_path / "out"
    )
    assert done.returncode == 3
    assert "its sharpest level has 2.5 um per pixel, and the encoder needs 1" in done.stderr
