"""DICOM objects beside DICOM slides: read back by highdicom, and found where the map has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_dicom import made_dicom
from pydicom import dcmread
from typer.testing import CliRunner

from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.outputs.folder import OutFolder
from pathovit.show.export import dicom
from pathovit.show.export.slides import ExportedSlide

hd = pytest.importorskip("highdicom")


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)


@pytest.fixture(scope="module")
def dicom_slides(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """Two slides, of which the second does not say where on the glass it lies; results in `out`."""
    folder = tmp_path_factory.mktemp("dicom")
    for number, name in enumerate(("placed", "lost")):
        made_dicom(folder / name, shared / "vendor/dicom_CMU-1-Small-Region", number + 7, placed=name == "placed")
    done = call("run", folder / "placed", folder / "lost", "--out", folder / "out", "--workers", 1)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def exported(dicom_slides: Path) -> tuple[Path, ExportedSlide, str]:
    """The folder that was written, the slide that says where it lies, and what was said."""
    done = call("export", dicom_slides / "out", "--to", "dicom", "--folder", dicom_slides / "objects")
    assert done.exit_code == 3, "one slide cannot be done"
    out = OutFolder(dicom_slides / "out")
    record = next(found for found in out.finished()[0] if (dicom_slides / "objects" / f"{found.slide_id}.seg.dcm").exists())
    return dicom_slides / "objects", ExportedSlide(out, record, record.slide_id), done.stderr


def test_a_slide_that_does_not_say_where_it_lies_is_named_and_has_no_object(exported: tuple[Path, ExportedSlide, str]) -> None:
    folder, slide, said = exported
    assert "er.dcm: it does not say TotalPixelMatrixOriginSequence, which DICOM objects beside it need" in said
    assert "they are private" in said
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["slides.csv", f"{slide.slide_id}.seg.dcm", f"{slide.slide_id}.sr.dcm"]
    )


def test_the_map_lies_on_the_pixels_of_the_coarsest_level(dicom_slides: Path, exported: tuple[Path, ExportedSlide, str]) -> None:
    folder, slide, _ = exported
    level = dcmread(dicom_slides / "placed" / "coarser.dcm")
    map_ = hd.seg.segread(folder / f"{slide.slide_id}.seg.dcm")
    for same in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "TotalPixelMatrixRows", "TotalPixelMatrixColumns"):
        assert map_[same].value == level[same].value
    assert [map_.get_segment_description(n).segment_label for n in map_.segment_numbers] == [
        "outside the model, tumour",  # a slide that the bundled model was not made for
        "tissue that could not be read",
    ]
    assert "research use" in map_.SeriesDescription.lower()
    pixels = map_.get_total_pixel_matrix(rescale_fractional=False)
    stored, (score, *_) = slide.features, slide.drawn.values()
    x, y = (np.floor(stored.centres_l0() / 4)).astype(int).T  # four pixels of the finest level in one
    found, place = pixels[y, x, 0], stored.grid.lattice()
    wanted = score[place[:, 1], place[:, 0]]
    assert np.ptp(wanted[stored.ok]) > 0.1, "a map that says something"
    assert np.array_equal(found, np.where(stored.ok, np.maximum(np.rint(np.nan_to_num(wanted) * 255), 1), 0))
    left = np.floor(stored.xy / 4).astype(int).clip(1)[stored.ok]
    outside = pixels[:, :, 0].copy()
    for (x0, y0), (width, height) in zip(left, np.tile(np.asarray(stored.tile_l0) / 4, (len(left), 1)), strict=True):
        outside[y0 - 1 : int(y0 + height + 2), x0 - 1 : int(x0 + width + 2)] = 0
    assert not outside.any() and not pixels[:, :, 1].any()


def test_of_a_slide_without_a_coarser_level_pixels_are_put_together(
    exported: tuple[Path, ExportedSlide, str], dicom_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, slide, _ = exported
    monkeypatch.setattr(dicom, "MOST_PIXELS", 50_000)
    call("export", dicom_slides / "out", "--to", "dicom", "--folder", tmp_path)
    map_ = hd.seg.segread(tmp_path / f"{slide.slide_id}.seg.dcm")
    assert (map_.TotalPixelMatrixColumns, map_.TotalPixelMatrixRows) == (555 // 3, 741 // 3)
    spacing = map_.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert list(spacing) == pytest.approx([0.000499 * 4 * 3] * 2)
    pixels, stored = map_.get_total_pixel_matrix(rescale_fractional=False), slide.features
    x, y = np.floor(stored.centres_l0() / 12).astype(int).clip(0, (184, 246)).T
    place = stored.grid.lattice()
    wanted = next(iter(slide.drawn.values()))[place[:, 1], place[:, 0]]
    assert np.array_equal(pixels[y, x, 0], np.where(stored.ok, np.maximum(np.rint(np.nan_to_num(wanted) * 255), 1), 0))


def test_the_report_has_the_answer_and_the_regions_where_they_lie(
    dicom_slides: Path, exported: tuple[Path, ExportedSlide, str]
) -> None:
    folder, slide, _ = exported
    finest, answer = dcmread(dicom_slides / "placed" / "finest.dcm", stop_before_pixels=True), slide.record.prediction
    assert answer
    report = hd.sr.srread(folder / f"{slide.slide_id}.sr.dcm")
    assert (report.PatientID, report.StudyInstanceUID) == (finest.PatientID, finest.StudyInstanceUID)
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    (whole,) = report.content.get_image_measurement_groups()
    assert whole.get_qualitative_evaluations()[0].value.meaning == answer.headline
    assert {one.name.meaning: one.value for one in whole.get_measurements()} == pytest.approx(
        {name: value for name, value in {**answer.columns, "novelty": answer.novelty}.items() if value is not None}, rel=1e-6
    )
    back = hd.spatial.ReferenceToImageTransformer.for_image(finest, for_total_pixel_matrix=True)
    groups = report.content.get_planar_roi_measurement_groups()
    assert len(groups) == len(slide.regions) > 0
    for group, region in zip(groups, slide.regions, strict=True):
        assert group.finding_type.meaning == region.name
        assert np.allclose(back(group.roi.value)[:, :2], np.asarray(region.shape.exterior.coords), atol=0.01)
        assert {one.name.meaning: one.value for one in group.get_measurements()} == pytest.approx(dict(region.measured), rel=1e-6)
    assert any("research use" in str(item.get("TextValue", "")).lower() for item in report.content[0].ContentSequence)


def test_the_same_map_has_the_same_numbers_whenever_it_is_written(
    dicom_slides: Path, exported: tuple[Path, ExportedSlide, str], tmp_path: Path
) -> None:
    folder, slide, _ = exported
    call("export", dicom_slides / "out", "--to", "dicom", "--folder", tmp_path)
    for kind in ("seg", "sr"):
        first, again = (dcmread(place / f"{slide.slide_id}.{kind}.dcm") for place in (folder, tmp_path))
        assert first.SOPInstanceUID == again.SOPInstanceUID and first.SeriesInstanceUID == again.SeriesInstanceUID


def test_slides_that_are_none_of_dicom_are_left_out_and_said(finished: Path, tmp_path: Path) -> None:
    done = call("export", finished, "--to", "dicom", "--folder", tmp_path)
    assert done.exit_code == 3, done.output
    assert "left out 3 slides (" in done.stderr
    assert "no DICOM slide, to which such objects belong" in done.stderr
    assert "one.svs" in done.stderr
    assert done.stderr.endswith("Nothing was written.\n")
    assert not list(tmp_path.iterdir())
