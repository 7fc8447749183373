"""The slide's own levels for a browser: the same pixels, undecoded where that can be."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made import made_record
from made_slides import squares_picture, write_tiff
from numpy.typing import NDArray
from PIL import Image

from pathovit.review.pixels import MADE, SMALL_PX, Overviews, Shelf, TileCache, served_levels, small_picture, tile_bytes
from pathovit.slides.slide import open_slide

RGB = NDArray[np.uint8]


def shown(content: bytes) -> RGB:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "slide.tif", squares_picture()[:1400, :1900], jpeg=True)


def test_compressed_tiles_are_handed_over_as_they_lie_in_the_file(jpeg: Path) -> None:
    content = jpeg.read_bytes()
    with open_slide(jpeg) as slide:
        level = served_levels(slide)[0]
        tile, as_it_lies = tile_bytes(slide, level, 2, 3)
        assert as_it_lies
        assert tile[-600:] in content
        pixels = slide.read(slide.level(0), 512, 768, 256, 256)[0]
    assert np.abs(shown(tile).astype(int) - pixels).max() <= 2  # another decoder


def test_all_tiles_together_are_the_level(jpeg: Path) -> None:
    with open_slide(jpeg) as slide:
        for level in served_levels(slide):
            whole = slide.read(slide.level(level.index), 0, 0, *level.size)[0]
            made = np.zeros_like(whole)
            for row in range(level.rows):
                for column in range(level.columns):
                    x, y, width, height = level.box(column, row)
                    tile = shown(tile_bytes(slide, level, column, row)[0])
                    assert tile.shape == (height, width, 3)  # the last of a row ends where the level does
                    made[y : y + height, x : x + width] = tile
            assert np.abs(made.astype(int) - whole).mean() < 1


def test_a_lossless_slide_is_decoded(tmp_path: Path) -> None:
    with open_slide(write_tiff(tmp_path / "s.tif", squares_picture())) as slide:
        tile, as_it_lies = tile_bytes(slide, served_levels(slide)[0], 3, 2)
        assert not as_it_lies
        assert np.abs(shown(tile).astype(int) - slide.read(slide.level(0), 768, 512, 256, 256)[0]).mean() < 4


def test_a_slide_without_small_levels_gets_some(tmp_path: Path) -> None:
    picture = np.kron(squares_picture(), np.ones((4, 4, 1), np.uint8))
    path = write_tiff(tmp_path / "s.tif", picture, levels=(1,), jpeg=True)
    with open_slide(path) as slide:
        levels = served_levels(slide)
        assert [level.index >= MADE for level in levels] == [False, True]
        assert max(levels[-1].size) <= SMALL_PX
        made = Overviews(tmp_path / "made", levels)
        assert not made.is_whole
        made.make(slide)
        assert made.is_whole
        last = levels[-1]
        whole = np.zeros((last.size[1], last.size[0], 3), np.uint8)
        for row in range(last.rows):
            for column in range(last.columns):
                x, y, width, height = last.box(column, row)
                whole[y : y + height, x : x + width] = shown(made.path(last, column, row).read_bytes())
    assert np.abs(whole.astype(int) - squares_picture()[: last.size[1], : last.size[0]]).mean() < 3
    assert Overviews(tmp_path / "made", levels).is_whole


def test_overviews_of_overviews_fit_to_the_pixel(tmp_path: Path) -> None:
    """A slide so large that two are made below each other, with sides that no factor divides."""
    picture = np.full((300, 17_001, 3), 255, np.uint8)
    picture[:, 9000:9400] = (200, 120, 180)
    with open_slide(write_tiff(tmp_path / "s.tif", picture, levels=(1,), jpeg=True)) as slide:
        levels = served_levels(slide)
        assert [level.size[0] for level in levels] == [17_001, 4251, 1063]
        made = Overviews(tmp_path / "made", levels)
        made.make(slide)
        row = np.concatenate([shown(made.path(levels[2], column, 0).read_bytes())[9] for column in range(levels[2].columns)])
    dark = np.flatnonzero(row[:, 1] < 200)
    assert abs(dark[0] - 9000 / 16) <= 1
    assert abs(dark[-1] + 1 - 9400 / 16) <= 1


def test_slides_stay_open_while_they_are_read_and_only_a_few_do(tmp_path: Path) -> None:
    paths = [write_tiff(tmp_path / f"{n}.tif", squares_picture(), jpeg=True) for n in range(9)]
    shelf = Shelf()

    def look(number: int) -> None:
        for _ in range(5):
            with shelf.slide(made_record(f"s-{number}"), paths[number]) as slide:
                slide.read(slide.level(0), 0, 0, 64, 64)

    with ThreadPoolExecutor(18) as readers:
        list(readers.map(look, [number % 9 for number in range(18)]))  # raises what one of them raised
    assert len(shelf._open) <= 6
    shelf.close()


def test_the_cache_keeps_what_was_used_last_up_to_its_limit(tmp_path: Path) -> None:
    cache = TileCache(tmp_path / "cache", limit=250)
    for name in "abc":
        cache.put(name, name.encode() * 100)
        cache.get("b")
    assert cache.get("a") is None
    assert cache.get("b") == b"b" * 100
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 250
    cache.close()
    assert not (tmp_path / "cache").exists()


def test_a_small_picture_shows_the_place_asked_for(jpeg: Path) -> None:
    with open_slide(jpeg) as slide:
        purple = shown(small_picture(slide, (1280, 1000), 50, 96))
        assert purple.shape == (96, 96, 3)
        assert np.abs(purple.mean((0, 1)) - (110, 70, 150)).max() < 12
        assert shown(small_picture(slide, (0, 0), 50, 96)).mean() > 240  # beyond the slide is background
