"""Slide, Level: open, describe, read pixels. The one door to OpenSlide.

Only an allow-list of properties is ever read; label and macro images, which may show a patient's name, are never
opened.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import ResolutionError, SlideOpenError, TileReadError
from pathovit.geometry import XY, Box
from pathovit.preflight import FLAT_SUFFIXES, check_file, content_sha256, slide_id

MPP_RANGE = (0.05, 50.0)  # um per pixel; outside it the metadata is wrong
MAX_FLAT_PX = 600_000_000
PLAIN_PHOTOMETRICS = (1, 2, 6)  # black is zero, RGB, YCbCr
Image.MAX_IMAGE_PIXELS = MAX_FLAT_PX  # our own check names the file and the remedy
RGB = NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class Level:
    """One image of the pyramid."""

    index: int
    size: tuple[int, int]  # width, height in pixels of this level
    downsample: XY  # level-0 pixels per pixel of this level, per axis
    mpp: XY  # um per pixel


class PixelSource(Protocol):
    """What a slide is read from: OpenSlide, or a flat image in memory."""

    sizes: list[tuple[int, int]]

    def read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        """RGBA (H, W, 4), straight alpha; beyond the edge alpha is 0. Raises OSError or openslide.OpenSlideError."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Slide:
    """An open slide. Use it as a context manager; reading is safe from several threads."""

    path: Path
    id: str
    sha256: str
    vendor: str
    mpp: XY
    mpp_source: str  # "metadata (openslide.mpp-x)", "option --mpp", "manifest"
    levels: tuple[Level, ...]
    bounds: Box  # the part that was scanned, level-0 pixels
    has_bounds: bool  # the file states them, so QuPath crops to them
    background: tuple[int, int, int]
    _source: PixelSource = field(repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.levels[0].size

    def best_level(self, mpp: XY, tolerance: float) -> Level:
        """Coarsest level that is at least as sharp as `mpp` on both axes, within a relative tolerance."""
        sharp = [level for level in self.levels if all(h <= w * (1 + tolerance) for h, w in zip(level.mpp, mpp, strict=True))]
        return max(sharp, key=lambda level: level.mpp[0], default=self.levels[0])

    def read(self, level: Level, x_level: int, y_level: int, width: int, height: int) -> tuple[RGB, float]:
        """Pixels of a rectangle given in pixels of `level`, and the share of them that holds no scanned data.

        Transparent pixels take the slide's background colour.

        Returns
        -------
        uint8 (H, W, 3), and the empty share in [0, 1]

        Raises
        ------
        TileReadError : the pixels cannot be decoded
        """
        rgba = self._source.read(level.index, x_level, y_level, width, height)
        return composite(rgba, self.background)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def composite(rgba: NDArray[np.uint8], background: tuple[int, int, int]) -> tuple[RGB, float]:
    """Lay RGBA (H, W, 4) on a colour: uint8 (H, W, 3), and the share of pixels that are fully transparent."""
    alpha = rgba[..., 3]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3]), 0.0
    weight = alpha[..., None].astype(np.float32) / 255
    rgb = rgba[..., :3] * weight + np.asarray(background, np.float32) * (1 - weight)
    return (rgb + 0.5).astype(np.uint8), float((alpha == 0).mean())


class OpenSlideSource:
    """Pixels through OpenSlide. Its first read error is terminal for a handle, so the handle is replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._handle = self._open()
        self.sizes = list(self._handle.level_dimensions)
        self.properties = dict(self._handle.properties)
        self._downsamples = self._handle.level_downsamples

    def _open(self) -> Any:
        import openslide

        try:
            return openslide.OpenSlide(self.path)
        except (openslide.OpenSlideUnsupportedFormatError, openslide.OpenSlideError) as error:
            raise SlideOpenError(
                self.path, f"OpenSlide cannot open it ({_without_path(error, self.path)}). Check that it is a whole slide image."
            ) from error

    def read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        import openslide

        # OpenSlide takes level-0 integers and divides by its own mean downsample (4.0007 for a true 4): rounding the
        # product back keeps the shift under an eighth of a pixel of this level, where x * 4 drifts by up to one.
        scale = self._downsamples[level]
        at = (round(x_level * scale), round(y_level * scale))
        handle = self._handle
        try:
            return np.asarray(handle.read_region(at, level, (width, height)))
        except openslide.OpenSlideError:
            with self._lock:
                if self._handle is handle:
                    self._handle = self._open()
        alone = self._open()  # another thread's bad tile may have spoilt the shared handle: judge this one by itself
        try:
            return np.asarray(alone.read_region(at, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise TileReadError(self.path, f"tile at {at} of level {level} cannot be decoded ({error}).") from error
        finally:
            alone.close()

    def close(self) -> None:
        self._handle.close()


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
            path, f"neither OpenSlide nor the image decoders can read it ({_without_path(error, path)})."
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


def open_slide(
    path: str | Path, mpp: float | XY | None = None, mpp_source: str = "option --mpp", sha256: str | None = None
) -> Slide:
    """Open a slide and describe it.

    Parameters
    ----------
    path : any format OpenSlide reads, or a flat PNG, JPEG or TIFF
    mpp : um per pixel of level 0, one number or (x, y); overrides the file's own
    mpp_source : where that override came from
    sha256 : content digest, if it is known already; else the file is read once to compute it

    Raises
    ------
    SlideOpenError : not a slide, damaged, truncated, unreadable
    ResolutionError : no pixel size, or an absurd one
    """
    path = Path(path)
    check_file(path)
    source, vendor, properties = _open_source(path)
    try:
        pixel_size, origin = _find_mpp(path, mpp, mpp_source, properties)
        bounds, has_bounds = _find_bounds(properties, source.sizes[0])
        digest = sha256 or content_sha256(path)
        return Slide(
            path=path,
            id=slide_id(path, digest),
            sha256=digest,
            vendor=vendor,
            mpp=pixel_size,
            mpp_source=origin,
            levels=_describe_levels(source.sizes, pixel_size),
            bounds=bounds,
            has_bounds=has_bounds,
            background=_find_background(properties),
            _source=source,
        )
    except BaseException:
        source.close()
        raise


def _open_source(path: Path) -> tuple[PixelSource, str, dict[str, str]]:
    """OpenSlide if it can, else a flat image; its vendor and its properties."""
    if path.suffix.lower() in FLAT_SUFFIXES:
        return FlatSource(path), "flat image", {}
    try:
        source = OpenSlideSource(path)
    except SlideOpenError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
        return FlatSource(path), "flat image", {}
    return source, source.properties.get("openslide.vendor", "unknown"), source.properties


def _find_mpp(path: Path, mpp: float | XY | None, mpp_source: str, properties: dict[str, str]) -> tuple[XY, str]:
    if mpp is not None:
        pixel_size = (float(mpp), float(mpp)) if isinstance(mpp, int | float) else (float(mpp[0]), float(mpp[1]))
        origin, remedy = mpp_source, f"Correct it ({mpp_source})."
    else:
        x, y = properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
        if not x or not y:
            raise ResolutionError(
                path, "no pixel size (openslide.mpp-x is missing). Give it with --mpp, or in the mpp column of a --manifest."
            )
        try:
            pixel_size = (float(x), float(y))
        except ValueError:
            raise ResolutionError(path, f"its pixel size is {x!r}, not a number. Give it with --mpp.") from None
        origin, remedy = "metadata (openslide.mpp-x)", "Its metadata is wrong; give the true value with --mpp."
    for value in pixel_size:
        if not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
            raise ResolutionError(path, f"mpp is {value:g} um per pixel, expected {MPP_RANGE[0]} to {MPP_RANGE[1]:g}. {remedy}")
    if not 0.5 <= pixel_size[0] / pixel_size[1] <= 2:
        raise ResolutionError(
            path, f"mpp is {pixel_size[0]:g} by {pixel_size[1]:g}: pixels that far from square are an error. {remedy}"
        )
    return pixel_size, origin


def _find_bounds(properties: dict[str, str], size: tuple[int, int]) -> tuple[Box, bool]:
    names = [f"openslide.bounds-{side}" for side in ("x", "y", "width", "height")]
    if not all(name in properties for name in names):
        return Box(0, 0, *size), False
    x, y, width, height = (int(properties[name]) for name in names)
    return Box(x, y, min(width, size[0] - x), min(height, size[1] - y)), True


def _find_background(properties: dict[str, str]) -> tuple[int, int, int]:
    colour = properties.get("openslide.background-color", "ffffff")
    return int(colour[0:2], 16), int(colour[2:4], 16), int(colour[4:6], 16)


def _describe_levels(sizes: list[tuple[int, int]], mpp: XY) -> tuple[Level, ...]:
    levels = []
    for index, size in enumerate(sizes):
        downsample = (_true_downsample(sizes[0][0], size[0]), _true_downsample(sizes[0][1], size[1]))
        levels.append(Level(index, size, downsample, (mpp[0] * downsample[0], mpp[1] * downsample[1])))
    return tuple(levels)


def _true_downsample(side_l0: int, side: int) -> float:
    """17,883 / 4,470 is 4.0007, because the last, incomplete pixel was cut off; the scanner's factor is 4."""
    ratio = side_l0 / side
    whole = round(ratio)
    cut_off = abs(side_l0 / whole - side) < 1.0 + 1e-9
    return float(whole) if cut_off and abs(ratio - whole) < 0.05 * whole else ratio


def _without_path(error: BaseException, path: Path) -> str:
    """The error's text without the folder it names: reports travel, and folders can name patients."""
    return str(error).replace(str(path), path.name).strip() or type(error).__name__
