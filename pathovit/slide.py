"""Slide, Level: open, describe, read pixels.

Only an allow-list of properties is ever read; label and macro images, which may show a patient's name, are never
opened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pathovit.errors import ResolutionError, SlideOpenError, TileReadError
from pathovit.geometry import XY, Box
from pathovit.preflight import FLAT_SUFFIXES, check_file, content_sha256, slide_id
from pathovit.readers import RGB, PixelSource, average, composite
from pathovit.readers.compressed import CompressedTiles, locate_tiles
from pathovit.readers.flat import FlatSource
from pathovit.readers.openslide_reader import OpenSlideSource

MPP_RANGE = (0.05, 50.0)  # um per pixel; outside it the metadata is wrong
FLAT = "flat image"
PLAIN_PYRAMIDS = ("aperio", "generic-tiff", "philips")  # vendors whose tiles lie side by side, as the image does


@dataclass(frozen=True)
class Level:
    """One image of the pyramid."""

    index: int
    size: tuple[int, int]  # width, height in pixels of this level
    downsample: XY  # level-0 pixels per pixel of this level, per axis
    mpp: XY  # um per pixel


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
    reader: str  # "direct" or "device": compressed tiles, with OpenSlide behind them; "openslide"; "flat image"
    _source: PixelSource = field(repr=False, compare=False)
    compressed: CompressedTiles | None = field(repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.levels[0].size

    def best_level(self, mpp: XY, tolerance: float) -> Level:
        """Coarsest level that is at least as sharp as `mpp` on both axes, within a relative tolerance."""
        sharp = [level for level in self.levels if all(h <= w * (1 + tolerance) for h, w in zip(level.mpp, mpp, strict=True))]
        return max(sharp, key=lambda level: level.mpp[0], default=self.levels[0])

    def read(self, level: Level, x_level: int, y_level: int, width: int, height: int, scale: int = 1) -> tuple[RGB, float]:
        """Pixels of a rectangle given in pixels of `level`, and the share of them that holds no scanned data.

        Transparent pixels take the slide's background colour.

        Parameters
        ----------
        scale : how many times smaller the pixels are wanted; width and height are multiples of it

        Returns
        -------
        uint8 (height / scale, width / scale, 3), and the empty share in [0, 1]

        Raises
        ------
        TileReadError : the pixels cannot be decoded
        """
        box, empty = (level.index, x_level, y_level, width, height), 0.0
        pixels = self.compressed.read(*box, scale) if self.compressed else None
        if pixels is None and self.compressed and scale > 1:  # JPEG 2000 is decoded whole
            pixels = self.compressed.read(*box)
        if pixels is None:
            pixels, empty = composite(self._source.read(*box), self.background)
        return average(pixels, (width // scale, height // scale)), empty

    def close(self) -> None:
        self._source.close()
        if self.compressed:
            self.compressed.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_slide(
    path: str | Path, mpp: float | XY | None = None, mpp_source: str = "option --mpp", sha256: str | None = None,
    reader: str = "auto",
) -> Slide:  # fmt: skip
    """Open a slide and describe it.

    Parameters
    ----------
    path : any format OpenSlide reads, or a flat PNG, JPEG or TIFF
    mpp : um per pixel of level 0, one number or (x, y); overrides the file's own
    mpp_source : where that override came from
    sha256 : content digest, if it is known already; else the file is read once to compute it
    reader : "auto" reads compressed tiles directly where that gives OpenSlide's pixels; "openslide" never, "direct" always;
        "device" marks slides whose JPEG tiles the encoder's device is to decode (here they are read as ever)

    Raises
    ------
    SlideOpenError : not a slide, damaged, truncated, unreadable, or not to be read as `reader` demands
    ResolutionError : no pixel size, or an absurd one
    """
    path = Path(path)
    check_file(path)
    source, vendor, properties = _open_source(path)
    try:
        pixel_size, origin = _find_mpp(path, mpp, mpp_source, properties)
        bounds, has_bounds = _find_bounds(properties, source.sizes[0])
        background, levels = _find_background(properties), _describe_levels(source.sizes, pixel_size)
        digest = sha256 or content_sha256(path)
        tiles = None if reader == "openslide" or vendor not in PLAIN_PYRAMIDS else _open_tiles(path, source)
        if reader == "direct" and tiles is None:
            raise SlideOpenError(path, "it does not hold its pyramid as plain JPEG or JPEG 2000 tiles. Use --reader auto.")
        on_device = reader == "device" and tiles is not None and tiles.levels[0].is_jpeg
        return Slide(
            path=path,
            id=slide_id(path, digest),
            sha256=digest,
            vendor=vendor,
            mpp=pixel_size,
            mpp_source=origin,
            levels=levels,
            bounds=bounds,
            has_bounds=has_bounds,
            background=background,
            reader="device" if on_device else "direct" if tiles else "flat image" if vendor == FLAT else "openslide",
            _source=source,
            compressed=tiles,
        )
    except BaseException:
        source.close()
        raise


def _open_source(path: Path) -> tuple[PixelSource, str, dict[str, str]]:
    """OpenSlide if it can, else a flat image; its vendor and its properties."""
    if path.suffix.lower() in FLAT_SUFFIXES:
        return FlatSource(path), FLAT, {}
    try:
        source = OpenSlideSource(path)
    except SlideOpenError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
        return FlatSource(path), FLAT, {}
    return source, source.properties.get("openslide.vendor", "unknown"), source.properties


def _open_tiles(path: Path, source: PixelSource) -> CompressedTiles | None:
    """The slide's compressed tiles, if it has any and they are read as OpenSlide reads them."""
    levels = locate_tiles(path, source.sizes)
    if not levels:
        return None
    tiles = CompressedTiles(path, levels)

    def read(level: int, x: int, y: int, width: int, height: int) -> RGB | None:
        try:
            pixels, empty = composite(source.read(level, x, y, width, height), (255, 255, 255))
        except TileReadError:
            return None
        return None if empty else pixels

    agrees = False
    try:
        agrees = tiles.agrees_with(read)
    finally:
        if not agrees:
            tiles.close()
    return tiles if agrees else None


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
