import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from made_slides import squares_picture, write_tiff
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import NoSlidesError, ResolutionError, SettingsError, SlideOpenError
from pathovit.files import tried_again
from pathovit.run.jobs import check_mpp
from pathovit.settings import TileSpec, fill_spec
from pathovit.slides.check import check_file, check_kind
from pathovit.slides.find import find_slides
from pathovit.slides.identity import content_sha256, slide_id
from pathovit.slides.properties import refuse_huge
from pathovit.slides.slide import Level, open_slide
from pathovit.slides.tiling import check_resolution


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
    for name in (
        "out/slides/a-1/heatmap.ome.tiff",
        "out/slides/killed-2/heatmap.ome.tiff",
        "export/a.seg.dcm",
        "export/a.sr.dcm",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "out" / "slides" / "a-1" / "slide.json").touch()
    assert [p.name for p in find_slides([tmp_path])] == ["a.svs"]


def test_what_is_left_of_a_slide_has_a_row_and_a_folder_without_any_is_said(tmp_path: Path) -> None:
    for name in ("given", "given/rest.svs", "rest.ndpi", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "given" / "a.svs").touch()
    said: list[str] = []
    found = find_slides([tmp_path / "given", tmp_path / "rest.ndpi", tmp_path / "nothing"], said.append)
    assert [p.name for p in found] == ["a.svs", "rest.svs", "rest.ndpi"]
    assert said == [f"{tmp_path / 'nothing'}: no slide in this folder"]
    with pytest.raises(SlideOpenError, match="There is nothing in it: copy the slide again"):
        check_kind(tmp_path / "rest.ndpi")


def test_no_slide_found_says_where(tmp_path: Path) -> None:
    with pytest.raises(NoSlidesError, match=tmp_path.name):
        find_slides([tmp_path])


def test_files_of_one_dicom_series_are_one_slide(shared: Path) -> None:
    folder = shared / "vendor" / "dicom_CMU-1-Small-Region"
    assert len(list(folder.glob("*.dcm"))) == 3
    assert len(find_slides([folder])) == 1


def test_what_lies_in_folders_that_are_passed_over_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("batch1/a.svs", "batch1/run.json", "batch2/b.svs", ".Trash-1000/files/c.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    said: list[str] = []
    assert [path.name for path in find_slides([tmp_path], said.append)] == ["b.svs"]
    (line,) = said
    assert line.startswith(f"{tmp_path / 'batch1'}: left out, with a.svs: it looks like a folder of results")
    assert [path.name for path in find_slides([tmp_path / "batch1"])] == ["a.svs"]
    listed = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "batch2":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SlideOpenError, match="batch2: this folder cannot be listed"):
        find_slides([tmp_path])


def test_slide_ids_are_ascii_and_tell_contents_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "Fall 12 – übel <b>.svs", tmp_path / "other"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    name = slide_id(one, content_sha256(one))
    assert name == "Fall-12-ubel-b-6b86b273ff34"  # SHA-256 of "1"
    assert slide_id(one, content_sha256(two)) != name


def test_a_named_folder_is_looked_at_and_plain_pictures_count_only_when_named(tmp_path: Path) -> None:
    for name in ("a.svs", "run.json", "training.png", "thumb.jpg", "label.png", "heatmap.ome.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "slides" / "a-1").mkdir(parents=True)
    for name in ("slide.json", "heatmap.ome.tiff"):
        (tmp_path / "slides" / "a-1" / name).touch()
    assert [p.name for p in find_slides([tmp_path])] == ["a.svs"]
    assert [p.name for p in find_slides([tmp_path / "thumb.jpg"])] == ["thumb.jpg"]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "flat.png").touch()
    with pytest.raises(NoSlidesError, match=r"Plain pictures count only when they are named, e.g. .*flat.png"):
        find_slides([tmp_path / "pictures"])


@pytest.mark.parametrize("name", ["labels.csv", "labels.xlsx", "notes.json", "slides.zip", "features.h5"])
def test_files_of_other_kinds_are_refused_by_their_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(SlideOpenError, match=f"{name}: this is a|numbers"):
        check_kind(tmp_path / name)


def write_rgb(path: Path, picture: NDArray[Any] | None = None, **options: Any) -> Path:
    picture = squares_picture() if picture is None else picture
    usual: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (256, 256),
        "metadata": None,
        "resolution": (2e4, 2e4),
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, **(usual | options))
    return path


def write_planes(path: Path) -> Path:
    """Red, green and blue as three grey pages."""
    with tifffile.TiffWriter(path) as tiff:
        for plane in np.moveaxis(squares_picture(), 2, 0):
            tiff.write(plane, tile=(256, 256), photometric="minisblack", metadata=None)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: write_rgb(p, extratags=[(274, "H", 1, 3, True)]), r"its Orientation tag is 3 \(turned by 180 degrees\)"),
        (lambda p: write_rgb(p, squares_picture().astype(np.uint16) * 16), "its pixels have 16 bits a sample"),
        (write_planes, "its pixels are grey in 3 pages of one channel each"),
        (
            lambda p: write_rgb(p, squares_picture()[..., 0].copy(), photometric="minisblack"),
            "its pixels are grey; a stained slide",
        ),
    ],
    ids=["turned", "16 bits", "planes", "grey"],
)
def test_pictures_that_would_be_taken_for_others_are_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    with pytest.raises(SlideOpenError, match=reason):
        open_slide(make(tmp_path / "odd.tif"), 0.5)


def test_flat_pictures_are_read_as_they_are_meant_or_refused(tmp_path: Path) -> None:
    picture = squares_picture()
    turned = write_rgb(
        tmp_path / "turned.tif", picture[::-1, ::-1].copy(), tile=None, rowsperstrip=64, extratags=[(274, "H", 1, 3, True)]
    )
    planes = write_rgb(
        tmp_path / "planes.tif", np.moveaxis(picture, 2, 0).copy(), planarconfig="separate", tile=None, rowsperstrip=1
    )
    exif = Image.Exif()
    exif[274] = 6  # to be seen turned by 90 degrees
    Image.fromarray(np.rot90(picture).copy()).save(tmp_path / "phone.png", exif=exif)
    for path in (turned, planes, tmp_path / "phone.png"):
        with open_slide(path, 0.5) as slide:
            assert np.array_equal(slide.read(slide.levels[0], 0, 0, 2048, 1536)[0], picture), path.name
    with open_slide(planes) as slide:
        assert slide.mpp == pytest.approx((0.5, 0.5))  # from its tags, as for a tiled one
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "print.jpg")
    clear = write_rgb(
        tmp_path / "clear.tif",
        np.dstack([picture, picture[..., 0] * 0]),
        tile=None,
        extrasamples=["unspecified"],
        rowsperstrip=64,
    )
    for path, reason in (
        (tmp_path / "grey.png", "grey"),
        (tmp_path / "print.jpg", "CMYK"),
        (clear, "every pixel is transparent"),
    ):
        with pytest.raises(SlideOpenError, match=reason):
            open_slide(path, 0.5)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_that_was_cut_off_says_where(tmp_path: Path, shared: Path, share: float) -> None:
    whole = (shared / "vendor/CMU-1-Small-Region.svs").read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        SlideOpenError, match=rf"truncated: a directory would start at byte [\d,]+, and the file has {path.stat().st_size:,}"
    ):
        check_file(path)


def test_a_slide_larger_than_any_glass_is_refused_before_a_pixel_is_read(squares: Path) -> None:
    wide = Level(0, (100_000, 100_000), (1, 1), (25, 25))
    with pytest.raises(ResolutionError, match=r"would be 2,500 mm wide, and slides are 76 mm"):
        refuse_huge(squares, wide.size, wide.mpp)


def test_a_magnification_is_no_pixel_size() -> None:
    with pytest.raises(SettingsError, match="--mpp 40 looks like a magnification.*40x is about 0.25"):
        check_mpp(40)


def test_a_slide_far_too_coarse_is_not_offered_to_be_upsampled(squares: Path) -> None:
    with open_slide(squares, 20.0) as slide, pytest.raises(ResolutionError, match=r"20 times too coarse.*--mpp") as caught:
        check_resolution(slide, fill_spec(TileSpec(), 96, 1.0))
    assert "--max-upsampling" not in str(caught.value)


def test_reads_that_fail_for_a_moment_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathovit.files.FIRST_PAUSE_S", 0)
    calls = []

    def read() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise OSError(5, "Input/output error")
        return "read"

    assert tried_again(read) == "read"
    with pytest.raises(PermissionError):
        tried_again(lambda: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
