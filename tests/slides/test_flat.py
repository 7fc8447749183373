"""Flat pictures: what is damaged, transparent, or not RGB is never taken for tissue."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

import pathovit
from pathovit.errors import SlideError
from pathovit.slides.slide import open_slide

SIDE = 512


def tissue(side: int = SIDE) -> NDArray[np.uint8]:
    chance = np.random.default_rng(0)
    coarse = chance.integers(60, 230, (side // 16, side // 16, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def harmed(content: bytes, start: int, count: int = 12) -> bytes:
    """With bytes in its compressed part changed; none becomes a marker."""
    chance, found = random.Random(3), bytearray(content)
    for place in chance.sample(range(start, len(found) - 64), count):
        found[place] = chance.randrange(1, 254)
    return bytes(found)


def read_all(path: Path) -> NDArray[np.uint8]:
    with open_slide(path, mpp=0.5) as slide:
        return slide.read(slide.levels[0], 0, 0, *slide.size)[0]


def test_a_damaged_jpeg_is_refused_as_a_damaged_png_is(tmp_path: Path) -> None:
    """Pillow, and what many programs build on it, reads it without a word."""
    path = tmp_path / "a.jpg"
    Image.fromarray(tissue()).save(path, quality=90)
    whole = path.read_bytes()
    assert np.abs(read_all(path).astype(int) - np.asarray(Image.open(path)).astype(int)).max() <= 1
    refused = 0
    for start in (1000, 4000, 9000):
        path.write_bytes(harmed(whole, start))
        try:
            read_all(path)
        except SlideError as error:
            refused += "Corrupt JPEG" in str(error) or "decode" in str(error)
    assert refused == 3


def test_a_jpeg_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(tissue()[:256]).save(path, quality=95, exif=exif)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.size == (256, SIDE)


def test_a_damaged_strip_is_not_read_and_the_others_are(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(), photometric="ycbcr", compression="jpeg", compressionargs={"level": 90}, rowsperstrip=64)
    before = read_all(path)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        at, length = page.dataoffsets[3], page.databytecounts[3]
        assert len(page.dataoffsets) == 8
    content = bytearray(path.read_bytes())
    content[at : at + length] = harmed(bytes(content[at : at + length]), 300)
    path.write_bytes(content)
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(slide.read(slide.levels[0], 0, 0, SIDE, 192)[0], before[:192])
        with pytest.raises(pathovit.SlideError, match="a tile of it at 0, 192 is damaged"):
            slide.read(slide.levels[0], 0, 200, 64, 32)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_what_is_transparent_is_missing_and_no_glass(suffix: str, tmp_path: Path) -> None:
    path, alpha = tmp_path / f"a.{suffix}", np.full((SIDE, SIDE, 1), 255, np.uint8)
    alpha[:, SIDE // 2 :] = 0
    rgba = np.concatenate([tissue(), alpha], 2)
    if suffix == "png":
        Image.fromarray(rgba).save(path)
    else:
        tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=64)
    with open_slide(path, mpp=0.5) as slide:
        rgb, empty = slide.read(slide.levels[0], SIDE // 2 - 10, 0, 20, 20)
        assert empty == 0.5
        assert np.array_equal(rgb[:, :10], tissue()[:20, SIDE // 2 - 10 : SIDE // 2])


def test_a_fourth_channel_is_what_the_file_says_it_is(tmp_path: Path) -> None:
    path, half = tmp_path / "a.tif", np.full((SIDE, SIDE, 1), 128, np.uint8)
    tifffile.imwrite(path, np.concatenate([tissue(), half], 2), photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(SlideError, match="a fourth channel, and does not say what that means"):
        read_all(path)
    tifffile.imwrite(path, np.concatenate([tissue(), half * 0 + 255], 2), photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read_all(path), tissue())
    multiplied = (tissue().astype(np.uint32) * 128 // 255).astype(np.uint8)
    tifffile.imwrite(path, np.concatenate([multiplied, half], 2), photometric="rgb", extrasamples=["assocalpha"])
    wanted = tissue() * (128 / 255) + 255 * (127 / 255)  # on white, and not half as light again
    assert np.abs(read_all(path) - wanted).max() < 3


@pytest.mark.parametrize(
    "how",
    [{"photometric": "ycbcr", "subsampling": (1, 1)}, {"photometric": "separated", "extra": True}, {"photometric": "cielab"}],
)
@pytest.mark.parametrize("tile", [None, (256, 256)])
def test_colours_that_are_not_rgb_are_refused_by_name(how: dict[str, Any], tile: tuple[int, int] | None, tmp_path: Path) -> None:
    path, how = tmp_path / "a.tif", dict(how)
    pixels = np.concatenate([tissue(), tissue()[..., :1]], 2) if how.pop("extra", False) else tissue()
    tifffile.imwrite(path, pixels, **how, tile=tile)
    if how["photometric"] == "ycbcr" and tile:  # OpenSlide makes RGB of these
        assert (
            np.abs(read_all(path).mean((0, 1)) - np.asarray(Image.fromarray(tissue(), "YCbCr").convert("RGB")).mean((0, 1))).max()
            < 3
        )
        return
    with pytest.raises(SlideError, match=r"its colours are (YCBCR|SEPARATED|CIELAB); RGB is needed"):
        read_all(path)


def test_the_largest_page_is_the_slide_and_not_its_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(tissue(64), photometric="rgb", metadata=None)
        tiff.write(tissue(), photometric="rgb", metadata=None)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.size == (SIDE, SIDE)


def test_a_progressive_jpeg_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(tissue()).save(buffer, "JPEG", progressive=True)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert read_all(tmp_path / "a.jpg").shape == (SIDE, SIDE, 3)


def test_strips_of_each_colour_for_itself_are_put_together(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    planes = np.moveaxis(tissue(), 2, 0)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", compression="jpeg", rowsperstrip=64)
    found = read_all(path)
    assert np.abs(found.astype(int) - tissue()).max() < 40
    assert (found.max(2) - found.min(2)).mean() > 20, "not grey"
