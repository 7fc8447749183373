"""FlatSource: a PNG, JPEG or plain TIFF, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

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
from pathovit.slides.readers.compressed import JPEG, JPEG_2000, CompressedTiles, TiledLevel, locate_tiles
from pathovit.slides.readers.jpeg_head import ADOBE, jpeg_head

if TYPE_CHECKING:
    import tifffile

MAX_FLAT_BYTES = 3_000_000_000  # while it is decoded; from then on it is 4 a pixel
PX_BYTES, PX_BYTES_COPIED = 7, 12  # of Pillow's pixels and ours; of pixels that have to be turned, or have alpha
BAND_ROWS = 1024  # that are worked on at a time; an even number
COARSEST_UM = 10.0  # per pixel; 300 dots per inch are 85 um, and say how large to print
ORIENTATION = 0x0112  # tag of EXIF
SEPARATE = 2  # TIFF's planar configuration
TRANSPARENT = "every pixel is transparent: its fourth channel is 0 everywhere. Save it without that channel."
YCBCR, OLD_JPEG = 6, 6  # TIFF's numbers
PLAIN_PHOTOMETRICS = (1, 2, 6)  # black is zero, RGB, YCbCr


class FlatSource:
    """A PNG, JPEG or plain TIFF held in memory, with a pyramid of halves above it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        image, alpha, self._damaged = _load_flat(path)
        self.properties = _pixel_size(path) if path.suffix.lower() in (".tif", ".tiff") else {}
        self._images, self._alphas = [image], [alpha]
        while max(image.shape[:2]) > 2048:
            image, alpha = _halved(image), None if alpha is None else _halved(alpha)
            self._images.append(image)
            self._alphas.append(alpha)
        self.sizes = [(image.shape[1], image.shape[0]) for image in self._images]

    def read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        image, alpha = self._images[level], self._alphas[level]
        self._refuse_damaged(level, x_level, y_level, width, height)
        rgba = np.zeros((height, width, 4), np.uint8)
        x0, y0 = max(x_level, 0), max(y_level, 0)
        there = slice(y0, max(y_level + height, 0)), slice(x0, max(x_level + width, 0))
        part = image[there]
        rows = slice(y0 - y_level, y0 - y_level + part.shape[0])
        columns = slice(x0 - x_level, x0 - x_level + part.shape[1])
        rgba[rows, columns, :3] = part
        rgba[rows, columns, 3] = 255 if alpha is None else alpha[there]
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
        self._alphas.clear()


Plane = NDArray[np.uint8]  # (H, W)
Boxes = NDArray[np.int64]  # (n, 4) left, top, right, bottom, in pixels
NONE: Boxes = np.empty((0, 4), np.int64)


def _load_flat(path: Path) -> tuple[RGB, Plane | None, Boxes]:
    """uint8 (H, W, 3) of a flat image, upright, laid on white; (H, W) 0 where it is wholly transparent and 255 elsewhere, None if it is nowhere; and the parts of it that are damaged."""
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
        seen = np.where(pixels[..., 3], np.uint8(255), np.uint8(0))
        return _on_white(pixels), None if seen.all() else seen, damaged
    return np.ascontiguousarray(pixels), None, damaged


def _halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image of half the size, band by band: Pillow needs four bytes a pixel."""
    height, width = -(-image.shape[0] // 2), -(-image.shape[1] // 2)
    half = np.empty((height, width, *image.shape[2:]), np.uint8)
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
        page = _main_page(tiff)
        _refuse_huge(path, page.imagewidth, page.imagelength, PX_BYTES if page.samplesperpixel == 3 else PX_BYTES_COPIED)
        components = page.compression == JPEG_2000[0] or (page.photometric == YCBCR and page.compression not in (JPEG, OLD_JPEG))
        if page.photometric not in PLAIN_PHOTOMETRICS or components:  # which decoders of JPEG alone make RGB of
            colours = "YCBCR" if components else page.photometric.name
            raise SlideOpenError(path, f"its colours are {colours}; RGB is needed. Convert it.", Code.UNSUPPORTED)
        strict = page.is_tiled and page.compression in (JPEG, *JPEG_2000)
        located = locate_tiles(path, [(page.imagewidth, page.imagelength)]) if strict else {}
        turned = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
        if 0 in located and turned in (0, 1):
            return _load_strictly(path, located[0])
        whole = page.samplesperpixel == 3 and page.planarconfig != SEPARATE  # strips of all colours together
        if page.compression == JPEG and not page.is_tiled and page.photometric in ADOBE and turned in (0, 1) and whole:
            return _load_strips(page, file)
        pixels = np.asarray(page.asarray())
        if pixels.ndim == 3 and page.planarconfig == SEPARATE:  # (3, H, W): each colour for itself
            pixels = np.moveaxis(pixels, 0, 2)
        if pixels.ndim == 3 and pixels.shape[2] == 4:
            pixels = _straight(path, pixels, page.extrasamples)
    return _upright(pixels, turned), NONE


def _main_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The largest picture of a file: the first one may be its thumbnail."""
    pages = [page for page in tiff.pages if hasattr(page, "imagewidth") and page.samplesperpixel >= 3]
    return cast("tifffile.TiffPage", max(pages, key=lambda page: page.imagewidth * page.imagelength, default=tiff.pages.first))


def _load_strips(page: tifffile.TiffPage, file: BinaryIO) -> tuple[NDArray[np.uint8], Boxes]:
    """JPEG strips, each decoded alone; and those that their decoder complains of, which others take for sound."""
    import simplejpeg

    width, height, rows = page.imagewidth, page.imagelength, page.rowsperstrip
    pixels = np.full((height, width, 3), 255, np.uint8)
    head, damaged = jpeg_head(page), []
    for index, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        top = index * rows
        part = pixels[top : top + rows]
        file.seek(offset + 2)  # the strip's own start-of-image: the head has one
        try:
            found = simplejpeg.decode_jpeg(head + file.read(length - 2), "RGB")
            part[:] = found[: len(part)]
        except ValueError:
            damaged.append((0, top, width, top + len(part)))
    return pixels, np.array(damaged, np.int64).reshape(-1, 4)


def _straight(path: Path, pixels: NDArray[np.uint8], extra: Sequence[int]) -> NDArray[np.uint8]:
    """RGBA as it is meant, by TIFF's ExtraSamples: 1 colours that are multiplied by alpha already, 2 straight ones."""
    alpha = pixels[..., 3:]
    if alpha.min(initial=255) == 255:
        return pixels[..., :3]
    kind = int(extra[0]) if len(extra) else 0
    if kind == 0 and alpha.any():
        raise SlideOpenError(
            path, "it has a fourth channel, and does not say what that means. Save it without that channel.", Code.UNSUPPORTED
        )
    if kind != 1:
        return pixels
    for top in range(0, len(pixels), BAND_ROWS):
        band = pixels[top : top + BAND_ROWS]
        band[..., :3] = np.minimum(band[..., :3].astype(np.uint16) * 255 // np.maximum(band[..., 3:], 1), 255)
    return pixels


def _load_strictly(path: Path, tiled: TiledLevel) -> tuple[RGB, Boxes]:
    """All tiles of a file of JPEG or JPEG 2000 ones, and those that their decoder complains of."""
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
        page = _main_page(tiff)
        unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.resolutionunit or 0))
        sides = [page.tags[name].value if name in page.tags else None for name in ("XResolution", "YResolution")]
    if unit_um is None or any(not side or not side[0] for side in sides):
        return {}
    x, y = (unit_um * side[1] / side[0] for side in sides if side)
    return {"openslide.mpp-x": repr(x), "openslide.mpp-y": repr(y)} if max(x, y) <= COARSEST_UM else {}


def _load_picture(path: Path) -> NDArray[np.uint8]:
    import simplejpeg

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
        if kind is JpegImageFile and wanted == image.mode:  # Pillow takes a damaged one for sound
            turned = int(image.getexif().get(ORIENTATION, 1))
            file.seek(0)
            return _upright(simplejpeg.decode_jpeg(file.read(), "RGB"), turned)
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
