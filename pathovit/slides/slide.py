"""Slide, Level: open, describe, read pixels.

Only an allow-list of properties is ever read; label and macro images, which may show a patient's name, are never
opened.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import ResolutionError, SlideOpenError, TileReadError
from pathovit.files import FLAT_SUFFIXES
from pathovit.geometry import XY, Box
from pathovit.reasons import Code
from pathovit.slides.check import check_file, check_picture
from pathovit.slides.description import SlideDescription
from pathovit.slides.identity import content_sha256, slide_id
from pathovit.slides.levels import Level, describe_levels, without_other_pictures
from pathovit.slides.readers import RGB, PixelSource, average, composite
from pathovit.slides.readers.compressed import CompressedTiles, locate_tiles
from pathovit.slides.readers.flat import FlatSource
from pathovit.slides.readers.openslide_reader import OpenSlideSource

MPP_RANGE = (0.05, 50.0)  # um per pixel; outside it the metadata is wrong
FLAT = "flat image"
LARGEST_MM = 300.0  # of a slide's side; whole mounts are 150 x 200 mm
PLAIN_PYRAMIDS = ("aperio", "generic-tiff", "philips")  # vendors whose tiles lie side by side, as the image does


@dataclass(frozen=True)
class Slide:
    """An open slide. Use it as a context manager; reading is safe from several threads."""

    path: Path
    description: SlideDescription
    levels: tuple[Level, ...]
    bounds: Box  # the part that was scanned, level-0 pixels
    has_bounds: bool  # the file states them, so QuPath crops to them
    background: tuple[int, int, int]
    remarks: tuple[str, ...]  # what must be said of the file
    _sha256: str | None = field(repr=False, compare=False)  # of its content, if it was known before
    _source: PixelSource = field(repr=False, compare=False)
    compressed: CompressedTiles | None = field(repr=False, compare=False)
    _own_level: tuple[int, ...] = field(repr=False, compare=False, default=())  # levels that the source would interpolate

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of level 0."""
        return self.description.size

    @property
    def mpp(self) -> XY:
        """Micrometres per pixel of level 0."""
        return self.description.mpp

    @property
    def mpp_source(self) -> str:
        return self.description.mpp_source

    @property
    def vendor(self) -> str:
        return self.description.vendor

    @property
    def reader(self) -> str:
        return self.description.reader

    @cached_property
    def sha256(self) -> str:
        """Digest of its content. Asked for the first time, the whole file is read."""
        return self._sha256 or content_sha256(self.path)

    @property
    def compared(self) -> frozenset[int] | None:
        """Levels whose compressed tiles were found to be the pixels of OpenSlide; None where it has no such tiles."""
        return frozenset(self.compressed.levels) if self.compressed else None

    @property
    def id(self) -> str:
        """Its slide_id, by the digest of its content."""
        return slide_id("", self.sha256)

    def best_level(self, mpp: XY, tolerance: float, exact: bool = True) -> Level:
        """Coarsest level that is at least as sharp as `mpp` on both axes, within a relative tolerance.

        Parameters
        ----------
        exact : only levels whose pixels can be had as they are stored; for an overview others do as well
        """
        levels = [level for level in self.levels if level.exact or not exact]
        sharp = [level for level in levels if all(h <= w * (1 + tolerance) for h, w in zip(level.mpp, mpp, strict=True))]
        return max(sharp, key=lambda level: level.mpp[0], default=self.levels[0])

    def level(self, index: int) -> Level:
        """The level of the file's own number; pages that are no levels are left out of `levels`."""
        return next(level for level in self.levels if level.index == index)

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
        TileReadError : the pixels cannot be decoded, or their decoder complains
        """
        pixels, scanned = self.read_scanned(level, x_level, y_level, width, height, scale)
        return average(pixels, (width // scale, height // scale)), 0.0 if scanned is None else float(1 - scanned.mean())

    def read_scanned(
        self, level: Level, x_level: int, y_level: int, width: int, height: int, scale: int = 1
    ) -> tuple[RGB, NDArray[np.bool_] | None]:
        """The same, and where there is scanned data: bool (height, width), or None where all is. Not averaged yet, if that cannot be had."""
        box = (level.index, x_level, y_level, width, height)
        if self.compressed:
            if self.reader == "openslide" and level.index not in self._own_level:
                self.compressed.check(*box)
            else:
                pixels = self.compressed.read(*box, scale)
                if pixels is None and scale > 1:  # only JPEG is decoded smaller
                    pixels = self.compressed.read(*box)
                if pixels is None and level.index in self._own_level:
                    return self._read_over_edge(level, x_level, y_level, width, height)
                if pixels is not None:
                    return pixels, None
        rgba = self._source.read(*box)
        return composite(rgba, self.background)

    def _read_over_edge(self, level: Level, x: int, y: int, width: int, height: int) -> tuple[RGB, NDArray[np.bool_]]:
        """A rectangle of a level that reaches beyond its edge, or over tiles that are missing, with the stored pixels."""
        assert self.compressed
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[:] = self.background
        scanned = np.zeros((height, width), bool)
        tiled = self.compressed.levels[level.index]
        for box in tiled.pieces(x, y, width, height):
            part = self.compressed.read(level.index, *box)
            if part is not None:
                place = (slice(box[1] - y, box[1] - y + box[3]), slice(box[0] - x, box[0] - x + box[2]))
                pixels[place], scanned[place] = part, True
        return pixels, scanned

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
    reader: str = "auto", compared: frozenset[int] | None = None,
) -> Slide:  # fmt: skip
    """Open a slide and describe it.

    Parameters
    ----------
    path : any format OpenSlide reads, or a flat PNG, JPEG or TIFF
    mpp : um per pixel of level 0, one number or (x, y); overrides the file's own
    mpp_source : where that override came from
    sha256 : content digest, if it is known already; else the file is read for it when it is asked for
    reader : "auto" reads compressed tiles directly where that gives OpenSlide's pixels; "direct" always; "openslide" only on levels
        that OpenSlide would interpolate, so that a slide has one set of pixels, and to find damage that it overlooks;
        "device" marks slides whose JPEG tiles the encoder's device is to decode (here they are read as ever)
    compared : what `Slide.compared` was when this very file was opened before: it is not found out again

    Raises
    ------
    SlideOpenError : not a slide, damaged, truncated, unreadable, or not to be read as `reader` demands
    ResolutionError : no pixel size, or an absurd one
    """
    path = Path(path)
    check_file(path)
    source, vendor, properties = _open_source(path)
    tiles = None
    try:
        if vendor in (*PLAIN_PYRAMIDS, FLAT):
            check_picture(path)
        pixel_size, origin = _find_mpp(path, mpp, mpp_source, properties)
        _refuse_huge(path, source.sizes[0], pixel_size)
        bounds, has_bounds = _find_bounds(properties, source.sizes[0])
        levels, remarks = describe_levels(source.sizes, pixel_size)
        tiles = _open_tiles(path, source, levels, compared) if vendor in PLAIN_PYRAMIDS else None
        if reader == "direct" and tiles is None:
            raise SlideOpenError(path, "it does not hold its pyramid as plain tiles. Use --reader auto.", Code.UNSUPPORTED)
        if vendor == "generic-tiff" and tiles is not None:
            levels, more = without_other_pictures(levels, tiles)
            remarks += more
        bent = tuple(level.index for level in levels if _interpolates(source, level))
        own = tuple(index for index in bent if tiles is not None and index in tiles.levels)
        levels = tuple(replace(level, exact=level.index not in bent or level.index in own) for level in levels)
        on_device = reader == "device" and tiles is not None and tiles.levels[0].is_jpeg
        if reader == "openslide" or vendor == FLAT or tiles is None:
            name = FLAT if vendor == FLAT else "openslide"
        else:
            name = "device" if on_device else "direct"
        return Slide(
            path=path,
            description=SlideDescription(path.name, vendor, source.sizes[0], pixel_size, origin, name),
            levels=levels,
            bounds=bounds,
            has_bounds=has_bounds,
            background=_find_background(properties),
            remarks=remarks,
            _sha256=sha256,
            _source=source,
            compressed=tiles,
            _own_level=own,
        )
    except BaseException:
        source.close()
        if tiles:
            tiles.close()
        raise


def _open_source(path: Path) -> tuple[PixelSource, str, dict[str, str]]:
    """OpenSlide if it can, else a flat image; its vendor and its properties."""
    if path.suffix.lower() in FLAT_SUFFIXES:
        return FlatSource(path), FLAT, {}
    try:
        source = OpenSlideSource(path)
    except SlideOpenError as error:
        if path.suffix.lower() not in (".tif", ".tiff") or error.code == Code.IO_ERROR:
            raise
        flat = FlatSource(path)
        return flat, FLAT, flat.properties
    return source, source.properties.get("openslide.vendor", "unknown"), source.properties


def _interpolates(source: PixelSource, level: Level) -> bool:
    return isinstance(source, OpenSlideSource) and source.interpolates(level.index, level.downsample)


def _open_tiles(
    path: Path, source: PixelSource, levels: tuple[Level, ...], compared: frozenset[int] | None
) -> CompressedTiles | None:
    """The slide's compressed tiles, if it has any and they are read as OpenSlide reads them; levels that are not are left out."""
    located = locate_tiles(path, source.sizes)
    if 0 not in located:
        return None
    tiles = CompressedTiles(path, located)
    if compared:
        for index in set(located) - compared:
            del located[index]
        for index in located:
            tiles.judge_ends(index)
        return tiles

    def read(level: int, x: int, y: int, width: int, height: int) -> RGB | None:
        try:
            pixels, scanned = composite(source.read(level, x, y, width, height), (255, 255, 255))
        except TileReadError:
            return None
        return None if scanned is not None else pixels

    agrees = False
    try:
        agrees = tiles.compare(0, read, exactly=True) is True
        for level in levels[1:] if agrees else ():
            exactly = not _interpolates(source, level)
            if level.index in located and tiles.compare(level.index, read, exactly) is False:
                del located[level.index]
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
                path,
                "no pixel size (openslide.mpp-x is missing). Give it with --mpp, or in the mpp column of a --manifest.",
                Code.NO_MPP,
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


def _refuse_huge(path: Path, size: tuple[int, int], mpp: XY) -> None:
    """No glass is that large: the pixel size must be wrong. Found out before anything is read, or room made for it."""
    side_mm = max(side * um / 1000 for side, um in zip(size, mpp, strict=True))
    if side_mm > LARGEST_MM:
        raise ResolutionError(
            path,
            f"at {max(mpp):g} um per pixel its {size[0]:,} x {size[1]:,} pixels would be {side_mm:,.0f} mm wide, and slides are 76 mm. "
            "Give the true pixel size with --mpp (about 0.25 for a scan at 40x, 0.5 at 20x).",
        )
