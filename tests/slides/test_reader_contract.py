"""One contract for all readers: the same picture, whatever file it lies in and whatever reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_slides import squares_picture, truncate_tile, write_tiff
from PIL import Image

from pathovit.errors import SlideOpenError, TileReadError
from pathovit.slides.slide import FLAT, Slide, open_slide

READERS = ("direct", "openslide", "auto", "device", "flat png", "flat tiff")
PICTURE = squares_picture()


@pytest.fixture(params=READERS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Slide]:
    """The picture of squares, lossless, open by each reader."""
    name = str(request.param)
    if name == "flat png":
        Image.fromarray(PICTURE).save(tmp_path / "a.png")
        path, reader = tmp_path / "a.png", "auto"
    elif name == "flat tiff":
        Image.fromarray(PICTURE).save(tmp_path / "a.tif")  # in strips: no slide to OpenSlide
        path, reader = tmp_path / "a.tif", "auto"
    else:
        path, reader = write_tiff(tmp_path / "a.tif", PICTURE), name
    with open_slide(path, 0.5, reader=reader) as slide:
        yield slide


def test_pixels_within_are_those_of_the_picture(opened: Slide) -> None:
    for x, y, width, height in ((0, 0, 64, 48), (500, 250, 300, 200), (2048 - 7, 1536 - 9, 7, 9), (256, 256, 256, 256)):
        pixels, empty = opened.read(opened.levels[0], x, y, width, height)
        assert empty == 0
        assert np.array_equal(pixels, PICTURE[y : y + height, x : x + width])


def test_what_lies_beyond_the_edge_is_empty_and_has_the_colour_of_the_background(opened: Slide) -> None:
    pixels, empty = opened.read(opened.levels[0], 2044, 100, 8, 4)
    assert empty == 0.5
    assert np.array_equal(pixels[:, :4], PICTURE[100:104, 2044:])
    assert (pixels[:, 4:] == opened.background).all()


@pytest.mark.parametrize("scale", [2, 4])
def test_a_smaller_rectangle_is_the_mean_of_the_whole_one(opened: Slide, scale: int) -> None:
    pixels, _ = opened.read(opened.levels[0], 512, 256, 512, 256, scale)
    whole = PICTURE[256:512, 512:1024].reshape(256 // scale, scale, 512 // scale, scale, 3).mean((1, 3))
    assert pixels.shape == whole.shape
    assert np.abs(pixels - whole).max() <= 1


def test_every_level_covers_the_slide(opened: Slide) -> None:
    assert opened.size == (2048, 1536)
    for level in opened.levels:
        assert level.size == pytest.approx([side / d for side, d in zip(opened.size, level.downsample, strict=True)], abs=1)
        pixels, empty = opened.read(level, 0, 0, *level.size)
        assert (pixels.shape[:2], empty) == ((level.size[1], level.size[0]), 0)


def test_it_says_what_it_is(opened: Slide, request: pytest.FixtureRequest) -> None:
    asked = request.node.callspec.params["opened"]
    # Only JPEG is decoded by a device, and a flat image has one reader.
    assert opened.reader == {"auto": "direct", "device": "direct", "flat png": FLAT, "flat tiff": FLAT}.get(asked, asked)


@pytest.mark.parametrize("reader", ["direct", "openslide", "auto"])
def test_damage_is_an_error_and_never_pixels(tmp_path: Path, reader: str) -> None:
    path = write_tiff(tmp_path / "a.tif", PICTURE, jpeg=True)
    truncate_tile(path, 20)  # x 1024 to 1280, y 512 to 768
    with open_slide(path, 0.5, reader=reader) as slide:
        slide.read(slide.levels[0], 512, 512, 256, 256)
        with pytest.raises(TileReadError, match=r"a\.tif"):
            slide.read(slide.levels[0], 1030, 520, 64, 64)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.svs"])
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no picture at all")
    with pytest.raises(SlideOpenError, match=name):
        open_slide(tmp_path / name, 0.5)
