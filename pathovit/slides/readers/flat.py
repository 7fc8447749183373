"""FlatSource: a PNG, JPEG or plain TIFF, held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pathovit.errors import PASSING, SlideOpenError, TileReadError
from pathovit.files import open_patiently
from pathovit.reasons import Code
from pathovit.slides.check import parsing
from pathovit.slides.readers import CUT_OFF, RGB, composite, without_path
from pathovit.slides.readers.compressed import JPEG_2000, CompressedTiles, TiledLevel, locate_tiles

MAX_FLAT_BYTES = 3_000_000_000  # while it is decoded; from then on it is 4 a pixel
PX_BYTES, PX_BYTES_COPIED = 7, 12  # of Pillow's pixels and ours; of pixels that have to be turned, or have alpha
BAND_ROWS = 1024  # that are worked on at a time; an even number
COARSEST_UM = 10.0  # per pixel; 300 dots per inch are 85 um, and say how large to print
ORIENTATION = 0x0112  # tag of EXIF
SEPARATE = 2  # TIFF's planar configuration
TRANSPARENT = "every pixel is transparent: its fourth channel is 0 everywhere. Save it without that channel."
PLAIN_PHOTOMETRICS = (1, 2, 6)  # black is zero, RGB, YCbCr


class FlatSource:
    """A PNG, JPEG or plain TIFF held in memory, with a pyramid of halves above it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        image, self._damaged = _load_flat(path)
        self.properties = _pixel_size(path) if path.suffix.lower() in (".tif", ".tiff") else {}
        self._images = [image]
        while max(image.shape[:2]) > 2048:
            image = _halved(image)
            self._images.append(image)
        self.sizes = [(image.shape[1], image.shape[0]) for image in self._images]

    def read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        image = self._images[level]
        self._refuse_damaged(level, x_level, y_level, width, height)
        rgba = np.zeros((height, width, 4), np.uint8)
        x0, y0 = max(x_level, 0), max(y_level, 0)
        part = image[y0 : max(y_level + height, 0), x0 : max(x_level + width, 0)]
        rows = slice(y0 - y_level, y0 - y_level + part.shape[0])
        columns = slice(x0 - x_level, x0 - x_level + part.shape[1])
        rgba[rows, columns, :3] = part
        rgba[rows, columns, 3] = 255
        return rgba

    def _refuse_damaged(self, level: int, x: int, y: int, width: int, height: int) -> None:
        if not len(self._damaged):
            return
        scale = self.sizes[0][0] / self.sizes[level][0]
        left, top, right, bottom = self._damaged.T
        hit = (left < (x + width) * scale) & (right > x * scale) & (top < (y + height) * scale) & (bottom > y * scale)
        if hit.any():
            raise TileReadError(self._path, f"a tile of it at {left[hit][0]}, {top[hit][0]} is damaged.")

    def close(self) -> None:
        self._images.clear()


Boxes = NDArray[np.int64]  # (n, 4) left, top, right, bottom, in pixels
NONE: Boxes = np.empty((0, 4), np.int64)


def _load_flat(path: Path) -> tuple[RGB, Boxes]:
    """uint8 (H, W, 3) of a flat image, upright, alpha laid on white; and the parts of it that are damaged."""
    damaged = NONE
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            pixels, damaged = _load_tiff(path)
        else:
            pixels = _load_picture(path)
    except (SlideOpenError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like; the file is refused with its reason
        if isinstance(error, OSError) and error.errno in PASSING:
            raise
        if CUT_OFF.search(str(error)):
            raise SlideOpenError(
                path, f"truncated ({without_path(error, path)}). Copy it again from its source.", Code.TRUNCATED
            ) from error
        raise SlideOpenError(
            path, f"neither OpenSlide nor the image decoders can read it ({without_path(error, path)})."
        ) from error
    if pixels.dtype != np.uint8:
        raise SlideOpenError(path, f"its pixels are {pixels.dtype}, and 8 bits are needed. Convert it.", Code.UNSUPPORTED)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        raise SlideOpenError(path, f"it has {channels} channels; a stained slide needs RGB. Convert it.", Code.UNSUPPORTED)
    if pixels.shape[2] == 4:
        if not pixels[..., 3].any():
            raise SlideOpenError(path, TRANSPARENT, Code.UNSUPPORTED)
        return _on_white(pixels), damaged
    return np.ascontiguousarray(pixels), damaged


def _halved(image: RGB) -> RGB:
    """An image of half the size, band by band: Pillow needs four bytes a pixel."""
    height, width = -(-image.shape[0] // 2), -(-image.shape[1] // 2)
    half = np.empty((height, width, 3), np.uint8)
    for top in range(0, image.shape[0], BAND_ROWS):
        band = np.asarray(Image.fromarray(image[top : top + BAND_ROWS]).reduce(2))
        half[top // 2 : top // 2 + len(band)] = band
    return half


def _on_white(pixels: NDArray[np.uint8]) -> RGB:
    """RGBA (H, W, 4) without its alpha."""
    image = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), BAND_ROWS):
        image[top : top + BAND_ROWS] = composite(pixels[top : top + BAND_ROWS], (255, 255, 255))[0]
    return image


def _load_tiff(path: Path) -> tuple[NDArray[np.uint8], Boxes]:
    import tifffile

    with open_patiently(path) as file, tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        _refuse_huge(path, page.imagewidth, page.imagelength)
        if page.photometric not in PLAIN_PHOTOMETRICS:
            raise SlideOpenError(path, f"its colours are {page.photometric.name}; RGB is needed. Convert it.", Code.UNSUPPORTED)
        strict = page.is_tiled and page.compression in JPEG_2000
        located = locate_tiles(path, [(page.imagewidth, page.imagelength)]) if strict else {}
        if 0 in located:
            return _load_strictly(path, located[0])
        pixels = np.asarray(page.asarray())
        if pixels.ndim == 3 and page.planarconfig == SEPARATE:  # (3, H, W): each colour for itself
            pixels = np.moveaxis(pixels, 0, 2)
        turned = page.tags["Orientation"].value if "Orientation" in page.tags else 1
    return _upright(pixels, int(turned)), NONE


def _load_strictly(path: Path, tiled: TiledLevel) -> tuple[RGB, Boxes]:
    """All tiles of a JPEG 2000 file, and those that their decoder complains of."""
    tiles = CompressedTiles(path, {0: tiled})
    pixels = np.full((tiled.size[1], tiled.size[0], 3), 255, np.uint8)
    damaged = []
    try:
        tiles.judge_ends(0)
        for x, y, width, height in tiled.pieces(0, 0, *tiled.size):
            try:
                found = tiles.read(0, x, y, width, height)
            except TileReadError:
                found = None
            if found is None:
                damaged.append((x, y, x + width, y + height))
            else:
                pixels[y : y + height, x : x + width] = found
    finally:
        tiles.close()
    return pixels, np.array(damaged, np.int64).reshape(-1, 4)


def _pixel_size(path: Path) -> dict[str, str]:
    """um per pixel, as OpenSlide would find it in a tiled TIFF; nothing where the tags speak of a printer."""
    import tifffile

    with parsing(path), open_patiently(path) as file, tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.resolutionunit or 0))
        sides = [page.tags[name].value if name in page.tags else None for name in ("XResolution", "YResolution")]
    if unit_um is None or any(not side or not side[0] for side in sides):
        return {}
    x, y = (unit_um * side[1] / side[0] for side in sides if side)
    return {"openslide.mpp-x": repr(x), "openslide.mpp-y": repr(y)} if max(x, y) <= COARSEST_UM else {}


def _load_picture(path: Path) -> NDArray[np.uint8]:
    with open_patiently(path) as file:
        head = file.read(25)
    kind = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile}.get(head[:4] if head[:1] == b"\x89" else head[:3])
    if kind is None:
        raise SlideOpenError(path, "it is neither a PNG nor a JPEG. Convert it.", Code.NOT_A_SLIDE)
    with (
        open_patiently(path) as file,
        kind(file) as image,
    ):  # Image.open would refuse it above a limit of the whole process; ours names the file and the remedy
        wanted = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
        copied = wanted == "RGBA" or image.mode != wanted or image.getexif().get(ORIENTATION, 1) != 1
        _refuse_huge(path, *image.size, PX_BYTES_COPIED if copied else PX_BYTES)
        if head[:4] == b"\x89PNG" and head[24] != 8 and image.mode != "P":
            raise SlideOpenError(
                path, f"its pixels have {head[24]} bits a sample, and 8 are needed. Convert it.", Code.UNSUPPORTED
            )
        if image.mode in ("CMYK", "YCCK", "LAB", "HSV"):
            raise SlideOpenError(path, f"its colours are {image.mode}; RGB is needed. Convert it.", Code.UNSUPPORTED)
        if image.mode in ("1", "L", "LA", "I", "F", "I;16"):
            raise SlideOpenError(path, "its pixels are grey; a stained slide needs its colours.", Code.UNSUPPORTED)
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image if image.mode == wanted else image.convert(wanted))  # each copy is four bytes a pixel


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels (H, W, C) as TIFF's Orientation tag (1 to 8) means them to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _refuse_huge(path: Path, width: int, height: int, px_bytes: int = PX_BYTES) -> None:
    if width * height * px_bytes > MAX_FLAT_BYTES:
        raise SlideOpenError(
            path,
            f"a flat image of {width:,} x {height:,} pixels does not fit in memory. "
            "Make a pyramid of it, e.g. with `vips tiffsave --tile --pyramid`.",
            Code.TOO_LARGE,
        )
