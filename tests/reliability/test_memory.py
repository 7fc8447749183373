"""What a picture without tiles takes: a few bytes a pixel, or it is refused before it is decoded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathovit.errors import SlideError
from pathovit.reasons import Code
from pathovit.slides.readers.flat import _halved, _on_white
from pathovit.slides.slide import open_slide

LOOK = """
import resource, sys
from pathovit.slides.slide import open_slide
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
with open_slide(sys.argv[1], 0.5) as slide:
    print((peak() - before) / (slide.size[0] * slide.size[1]))
"""


@pytest.mark.parametrize("name", ["rgb.png", "alpha.png", "turned.jpg", "strips.tif", "one_strip.tif"])
def test_a_picture_without_tiles_takes_a_few_bytes_a_pixel(tmp_path: Path, name: str, everything: bool) -> None:
    side = (15_000 if name in ("alpha.png", "turned.jpg") else 20_000) if everything else 6_000
    path = tmp_path / name
    tile = np.random.default_rng(0).integers(0, 256, (250, 500, 3), np.uint8)
    pixels = np.tile(tile, (side // 250, side // 500, 1))
    if name == "alpha.png":
        Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 200, np.uint8)])).save(path, compress_level=1)
    elif name.endswith(".tif"):
        rows = 64 if name == "strips.tif" else side
        tifffile.imwrite(path, pixels, rowsperstrip=rows, photometric="rgb", compression="zlib", compressionargs={"level": 1})
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(path, **({"exif": exif} if name == "turned.jpg" else {"compress_level": 1}))
    done = subprocess.run([sys.executable, "-c", LOOK, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < (
        12.5 if name in ("alpha.png", "turned.jpg") else 9
    )  # twice a copy of four bytes; and what libraries take


def test_a_picture_that_would_take_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (24_000, 24_000)).convert("P").save(tmp_path / "large.png", compress_level=1)
    with pytest.raises(SlideError, match="24,000 x 24,000 pixels does not fit in memory") as caught:
        open_slide(tmp_path / "large.png", 0.5)
    assert caught.value.code == Code.TOO_LARGE


@pytest.mark.parametrize("shape", [(2500, 1030), (1024, 7), (1025, 1), (3073, 2051)])
def test_bands_give_the_same_pixels(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 4), np.uint8)
    image = np.ascontiguousarray(pixels[..., :3])
    assert np.array_equal(_halved(image), np.asarray(Image.fromarray(image).reduce(2)))
    from pathovit.slides.readers import composite

    assert np.array_equal(_on_white(pixels), composite(pixels, (255, 255, 255))[0])
