"""FlatSource: a PNG, JPEG or plain TIFF, held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import SlideOpenError
from pathovit.readers import RGB, composite, without_path

MAX_FLAT_PX = 600_000_000
PLAIN_PHOTOMETRICS = (1, 2, 6)  # black is zero, RGB, YCbCr
Image.MAX_IMAGE_PIXELS = MAX_FLAT_PX  # our own check names the file and the remedy


class FlatSource:
    """A PNG, JPEG or plain TIFF held in memory, with a pyramid of halves above it."""

    def __init__(self, path: Path) -> None:
        image = _load_flat(path)
        self._images = [image]
        while max(image.shape[:2]) > 2048:
            half = Image.fromarray(image).reduce(2)
            image = np.asarray(half)
            self._images.append(image)
        self.sizes = [(image.shape[1], image.shape[0]) for image in self._images]

    def read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        image = self._images[level]
        rgba = np.zeros((height, width, 4), np.uint8)
        x0, y0 = max(x_level, 0), max(y_level, 0)
        part = image[y0 : max(y_level + height, 0), x0 : max(x_level + width, 0)]
        rows = slice(y0 - y_level, y0 - y_level + part.shape[0])
        columns = slice(x0 - x_level, x0 - x_level + part.shape[1])
        rgba[rows, columns, :3] = part
        rgba[rows, columns, 3] = 255
        return rgba

    def close(self) -> None:
        self._images.clear()


def _load_flat(path: Path) -> RGB:
    """uint8 (H, W, 3) of a flat image; alpha is laid on white."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                _refuse_huge(path, page.imagewidth, page.imagelength)
                if page.photometric not in PLAIN_PHOTOMETRICS:
                    raise SlideOpenError(path, f"its colours are {page.photometric.name}; RGB or grey is needed. Convert it.")
                pixels = page.asarray()
        else:
            with Image.open(path) as image:
                _refuse_huge(path, *image.size)
                pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"))
    except SlideOpenError:
        raise
    except Exception as error:  # decoders raise what they like; the file is refused with its reason
        raise SlideOpenError(
            path, f"neither OpenSlide nor the image decoders can read it ({without_path(error, path)})."
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise SlideOpenError(path, f"pixels are {pixels.dtype} {pixels.shape}; 8-bit grey or RGB is needed. Convert it.")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 4:
        return composite(pixels, (255, 255, 255))[0]
    if pixels.shape[2] != 3:
        raise SlideOpenError(path, f"it has {pixels.shape[2]} channels; RGB is needed. Convert it.")
    return np.ascontiguousarray(pixels)


def _refuse_huge(path: Path, width: int, height: int) -> None:
    if width * height > MAX_FLAT_PX:
        raise SlideOpenError(
            path,
            f"a flat image of {width:,} x {height:,} pixels does not fit in memory. "
            "Make a pyramid of it, e.g. with `vips tiffsave --tile --pyramid`.",
        )
