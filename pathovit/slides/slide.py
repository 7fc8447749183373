"""Slide, Level: open, describe, read pixels.

Only an allow-list of properties is ever read; label and macro images, which may show a patient's name, are never
opened.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, fromarray

from pathovit.errors import SettingsError, SlideOpenError, TileReadError
from pathovit.files import FLAT_SUFFIXES
from pathovit.geometry import XY, Box
from pathovit.reasons import Code
from pathovit.slides.check import check_file, check_picture
from pathovit.slides.description import SlideDescription
from pathovit.slides.identity import content_sha256, slide_id
from pathovit.slides.levels import Level, describe_levels, without_other_pictures
from pathovit.slides.overview import small_picture
from pathovit.slides.properties import find_background, find_bounds, find_mpp, refuse_huge
from pathovit.slides.readers import RGB, PixelSource, average, composite
from pathovit.slides.readers.compressed import CompressedTiles, locate_tiles
from pathovit.slides.readers.flat import FlatSource
from pathovit.slides.readers.openslide_reader import OpenSlideSource
from pathovit.text import as_card

FLAT, READERS = "flat image", ("auto", "direct", "device", "openslide")
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
    _closed: threading.Event = field(repr=False, compare=False, default_factory=threading.Event)

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
        for level in self.levels:
            if level.index == index:
                return level
        raise SettingsError(f"{self.path}: it has no level {index}, but {', '.join(str(level.index) for level in self.levels)}.")

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
        if self._closed.is_set():  # its descriptor may be another file's by now
            raise SettingsError(f"{self.path}: the slide is closed. Open it again.")
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

    def thumbnail(self, longer_px: int = 1024) -> Image:
        """The scanned part of the slide, at most `longer_px` on its longer side. Labels and macro pictures are never opened.

        Examples
        --------
        >>> with pathovit.open_slide(path) as slide:
        ...     slide.thumbnail(256).size
        (250, 217)
        """
        if longer_px < 1:
            raise SettingsError(f"longer_px is {longer_px}, expected at least 1.")
        return fromarray(small_picture(self, self.bounds, longer_px)[0])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        sharpest = f"{self.size[0]:,} x {self.size[1]:,} px at {self.mpp[0]:.4g} µm ({self.mpp_source})"
        rows = {
            "file": self.path.name,
            "vendor": self.vendor,
            "size": sharpest,
            "levels": str(len(self.levels)),
            "reader": self.reader,
        }
        return as_card(rows, self.thumbnail(320))

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
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

    Examples
    --------
    >>> with pathovit.open_slide(path) as slide:
    ...     slide.size, slide.mpp, slide.mpp_source
    ((3000, 2600), (0.5, 0.5), 'metadata (openslide.mpp-x)')
    """
    path = Path(path)
    if reader not in READERS:
        raise SettingsError(f"reader is {reader!r}, expected {', '.join(READERS)}.")
    check_file(path)
    source, vendor, properties = _open_source(path)
    tiles = None
    try:
        if vendor in (*PLAIN_PYRAMIDS, FLAT):
            check_picture(path)
        pixel_size, origin = find_mpp(path, mpp, mpp_source, properties)
        refuse_huge(path, source.sizes[0], pixel_size)
        bounds, has_bounds = find_bounds(properties, source.sizes[0])
        levels, remarks = describe_levels(source.sizes, pixel_size)
        tiles = _open_tiles(path, source, levels, compared) if vendor in PLAIN_PYRAMIDS else None
        if reader == "direct" and tiles is None:
            raise SlideOpenError(path, "it does not hold its pyramid as plain tiles. Use --reader auto.", Code.UNSUPPORTED)
        if vendor == "generic-tiff":
            levels, more = without_other_pictures(levels, source, tiles)
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
            background=find_background(properties),
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

    def read(level: int, x: int, y: int, width: int, height: int) -> RGB | None:
        try:
            pixels, scanned = composite(source.read(level, x, y, width, height), (255, 255, 255))
        except TileReadError:
            return None
        return None if scanned is not None else pixels

    agrees = False
    try:
        if compared:
            for index in set(located) - compared:
                del located[index]
            for index in located:
                tiles.judge_ends(index)
            agrees = True
            return tiles
        agrees = tiles.compare(0, read, exactly=True) is True
        for level in levels[1:] if agrees else ():
            exactly = not _interpolates(source, level)
            if level.index in located and tiles.compare(level.index, read, exactly) is False:
                del located[level.index]
    finally:
        if not agrees:
            tiles.close()
    return tiles if agrees else None
