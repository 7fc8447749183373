import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import squares_picture, write_tiff

from pathovit.errors import NoSlidesError, SlideOpenError
from pathovit.preflight import check_file, content_sha256, find_slides, slide_id


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: p.mkdir(), "folder"),
        (lambda p: p.symlink_to("nowhere"), "no such file"),
        (
            lambda p: p.write_bytes(b"II*\0\xff\xff\xff\xff"),
            "truncated: a directory would start at byte 4,294,967,295, and the file has 8",
        ),
    ],
    ids=["missing", "empty", "fifo", "folder", "dangling link", "bad offset"],
)
def test_what_is_no_slide_is_refused_with_its_reason(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "x.svs"
    make(path)
    with pytest.raises(SlideOpenError, match=reason) as caught:
        check_file(path)
    assert str(caught.value).startswith("x.svs: ")


def test_a_truncated_slide_is_refused_although_openslide_would_open_it(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(256, 256), photometric="rgb", metadata=None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SlideOpenError, match="truncated"):
        check_file(path)


def test_a_header_that_declares_a_monstrous_tile_is_refused_unread(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "bomb.tif", squares_picture(), levels=(1,))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages.first.tags
        for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tags[tag].overwrite(60_000)
    with pytest.raises(SlideOpenError, match="60000 x 60000 pixels, more than can be decoded"):
        check_file(path)


def test_folders_are_searched_in_order_and_mirax_data_is_no_slide(tmp_path: Path) -> None:
    for name in ("b.svs", "a.tif", "notes.txt", "c.mrxs"):
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "Data0001.tif").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [p.name for p in find_slides([tmp_path])] == ["a.tif", "b.svs", "c.mrxs"]


def test_our_own_outputs_are_not_slides(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    (tmp_path / "out" / "slides" / "a-1").mkdir(parents=True)
    (tmp_path / "out" / "run.json").touch()
    (tmp_path / "out" / "slides" / "a-1" / "overview.png").touch()
    assert [p.name for p in find_slides([tmp_path])] == ["a.svs"]


def test_no_slide_found_says_where(tmp_path: Path) -> None:
    with pytest.raises(NoSlidesError, match=tmp_path.name):
        find_slides([tmp_path])


def test_files_of_one_dicom_series_are_one_slide(shared: Path) -> None:
    folder = shared / "vendor" / "dicom_CMU-1-Small-Region"
    assert len(list(folder.glob("*.dcm"))) == 3
    assert len(find_slides([folder])) == 1


def test_slide_ids_are_ascii_and_tell_contents_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "Fall 12 – übel <b>.svs", tmp_path / "other"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    name = slide_id(one, content_sha256(one))
    assert name == "Fall-12-ubel-b-6b86b273ff34"  # SHA-256 of "1"
    assert slide_id(one, content_sha256(two)) != name
