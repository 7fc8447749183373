"""Which files are one slide."""

from __future__ import annotations

from pathlib import Path

from pathovit.slides.identity import content_sha256, file_state, slide_files


def dicom(path: Path, series: str, referenced: str) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    reference = Dataset()
    reference.SeriesInstanceUID = referenced
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", generate_uid()
    made.ReferencedSeriesSequence = Sequence([reference])  # (0008,1115): before the file's own series
    made.SeriesInstanceUID = series
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.save_as(path, enforce_file_format=True)
    return path


def test_two_dicom_slides_that_refer_to_one_series_are_two(tmp_path: Path) -> None:
    from pathovit.slides.find import find_slides
    from pathovit.slides.identity import dicom_series

    a, b = dicom(tmp_path / "a.dcm", "1.2.3", "1.2.99"), dicom(tmp_path / "b.dcm", "1.2.4", "1.2.99")
    same = dicom(tmp_path / "c.dcm", "1.2.3", "1.2.98")
    assert [dicom_series(path) for path in (a, b, same)] == ["1.2.3", "1.2.4", "1.2.3"]
    assert find_slides([tmp_path]) == [a, b]
    assert slide_files(a) == [a, same]


def test_a_vms_is_all_that_it_names(tmp_path: Path) -> None:
    slide = tmp_path / "a.vms"
    slide.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=one.jpg\nImageFile(1,0)=two.jpg\nMapFile=map.jpg\nMacroImage=\n"
    )
    for name in ("one.jpg", "two.jpg", "map.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    assert [path.name for path in slide_files(slide)] == ["a.vms", "map.jpg", "one.jpg", "two.jpg"]
    before, state = content_sha256(slide), file_state(slide)
    (tmp_path / "two.jpg").write_bytes(b"TWO.jpg")
    assert content_sha256(slide) != before
    assert file_state(slide) != state


def test_a_series_is_looked_at_again_where_a_file_of_it_changed(tmp_path: Path) -> None:
    a = dicom(tmp_path / "a.dcm", "1.2.3", "1.2.99")
    b = dicom(tmp_path / "b.dcm", "1.2.3", "1.2.99")
    assert slide_files(a) == [a, b]
    dicom(b, "1.2.4", "1.2.99")
    assert slide_files(a) == [a]


def test_files_of_no_series_are_each_alone(tmp_path: Path) -> None:
    """Else two that are damaged would be one slide, and each of them would change the other's identity."""
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(name.encode() * 99)
    assert slide_files(tmp_path / "a.dcm") == [tmp_path / "a.dcm"]
    assert content_sha256(tmp_path / "a.dcm") != content_sha256(tmp_path / "b.dcm")
