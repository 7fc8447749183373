"""Pixels of a slide for a browser: its own levels, tile by tile, as they lie in the file where that can be.

A level's compressed JPEG tiles are handed over undecoded. Others are decoded at the level's own tile size and kept on disk, up to a limit.
A slide whose coarsest level is large gets overview levels, made once, a quarter of the size each.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from pathovit.errors import SlideError
from pathovit.files import open_patiently, read_bytes, write_atomically
from pathovit.outputs.records import SlideRecord
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide, open_slide

TILE_PX = 512  # of levels that have no plain tiles
LARGEST_TILE_PX = 2048  # no request decodes more pixels than such a tile has
SMALL_PX = 4096  # a level with a longer side than that is no overview
FACTOR = 4  # between a level and the overview made of it
QUALITY = 88
OPEN_SLIDES = 6
CACHE_BYTES = 2 * 2**30
JPEG = "image/jpeg"
STRIP_PX = 2**22  # pixels read at a time, for a small picture of a large square


@dataclass(frozen=True)
class ServedLevel:
    """A level as the browser asks for it."""

    index: int  # of the file; from 1000 on, of overviews that were made
    size: tuple[int, int]
    tile: tuple[int, int]
    downsample: float

    @property
    def columns(self) -> int:
        return ceil(self.size[0] / self.tile[0])

    @property
    def rows(self) -> int:
        return ceil(self.size[1] / self.tile[1])

    def box(self, column: int, row: int) -> tuple[int, int, int, int]:
        """x, y, width, height of a tile, in pixels of the level."""
        x, y = column * self.tile[0], row * self.tile[1]
        return x, y, min(self.tile[0], self.size[0] - x), min(self.tile[1], self.size[1] - y)


MADE = 1000


def served_levels(slide: Slide) -> list[ServedLevel]:
    """The slide's own levels, sharpest first, and overviews below them where its coarsest one is large."""
    found = []
    for level in sorted(slide.levels, key=lambda level: level.downsample[0]):
        tiled = slide.compressed.levels.get(level.index) if slide.compressed else None
        fits = tiled is not None and max(tiled.tile) <= LARGEST_TILE_PX and min(tiled.tile) >= 64
        found.append(
            ServedLevel(level.index, level.size, tiled.tile if tiled and fits else (TILE_PX, TILE_PX), level.downsample[0])
        )
    while max(found[-1].size) > SMALL_PX:
        last = found[-1]
        size = ceil(last.size[0] / FACTOR), ceil(last.size[1] / FACTOR)
        found.append(ServedLevel(MADE + len(found), size, (TILE_PX, TILE_PX), last.downsample * FACTOR))
    return found


def tile_bytes(slide: Slide, level: ServedLevel, column: int, row: int) -> tuple[bytes, bool]:
    """A tile of one of the file's own levels as JPEG, and whether it was handed over as it lies in the file.

    Raises
    ------
    SlideError : it cannot be read
    """
    x, y, width, height = level.box(column, row)
    if (found := slide.compressed) and (tiled := found.levels.get(level.index)) and tiled.is_jpeg:
        whole = tiled.tile == level.tile == (width, height)
        if whole and (coded := found.bytes_of(tiled, row * tiled.columns + column)) is not None:
            return coded, True
    return to_jpeg(slide.read(slide.level(level.index), x, y, width, height)[0]), False


def to_jpeg(pixels: RGB, quality: int = QUALITY) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "444"))


@dataclass
class Overviews:
    """Levels that are made of a slide, on disk below a folder, a file for each tile."""

    folder: Path
    levels: list[ServedLevel]  # all that are served, sharpest first

    @property
    def made(self) -> list[ServedLevel]:
        return [level for level in self.levels if level.index >= MADE]

    @property
    def is_whole(self) -> bool:
        return not self.made or (self.folder / "whole").is_file()

    def path(self, level: ServedLevel, column: int, row: int) -> Path:
        return self.folder / str(level.index) / f"{column}_{row}.jpg"

    def make(self, slide: Slide) -> None:
        """Make all that are missing, from the sharpest; never more pixels at once than the largest tile has."""
        for level in self.made:
            finer = self.levels[self.levels.index(level) - 1]
            for row in range(level.rows):
                for column in range(level.columns):
                    if not self.path(level, column, row).is_file():
                        write_atomically(
                            self.path(level, column, row), to_jpeg(self._shrunk(slide, finer, level.box(column, row)))
                        )
        write_atomically(self.folder / "whole", b"")

    def _shrunk(self, slide: Slide, finer: ServedLevel, box: tuple[int, int, int, int]) -> RGB:
        x, y, width, height = box
        left, top = x * FACTOR, y * FACTOR
        wide, high = min(width * FACTOR, finer.size[0] - left), min(height * FACTOR, finer.size[1] - top)
        pixels = self._region(slide, finer, left, top, wide, high)
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))

    def _region(self, slide: Slide, finer: ServedLevel, left: int, top: int, wide: int, high: int) -> RGB:
        if finer.index < MADE:
            try:
                return slide.read(slide.level(finer.index), left, top, wide, high)[0]
            except SlideError:  # the damaged part is grey here, and told apart at its own level
                return np.full((high, wide, 3), 128, np.uint8)
        pixels = np.empty((high, wide, 3), np.uint8)
        for row in range(top // TILE_PX, ceil((top + high) / TILE_PX)):
            for column in range(left // TILE_PX, ceil((left + wide) / TILE_PX)):
                part = np.asarray(Image.open(open_patiently(self.path(finer, column, row))).convert("RGB"))
                y, x = row * TILE_PX - top, column * TILE_PX - left
                pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
        return pixels


@dataclass
class _Opened:
    slide: Slide
    users: int = 0


@dataclass
class Shelf:
    """Slides that are open: the last few, each closed when it is not read any more."""

    _open: OrderedDict[str, _Opened] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _opening: dict[str, threading.Lock] = field(default_factory=dict)

    @contextmanager
    def slide(self, record: SlideRecord, path: Path) -> Iterator[Slide]:
        """Raises SlideError where it cannot be opened."""
        entry = self._taken(record.sha256) or self._opened(record, path)
        try:
            yield entry.slide
        finally:
            with self._lock:
                entry.users -= 1
                self._close_old()

    def _taken(self, key: str) -> _Opened | None:
        with self._lock:
            entry = self._open.get(key)
            if entry is not None:
                entry.users += 1
                self._open.move_to_end(key)
            return entry

    def _opened(self, record: SlideRecord, path: Path) -> _Opened:
        with self._lock:
            opening = self._opening.setdefault(record.sha256, threading.Lock())
        with opening:  # one thread opens it, the others wait
            if (entry := self._taken(record.sha256)) is not None:
                return entry
            description = record.description
            made = _Opened(open_slide(path, description.mpp, description.mpp_source, record.sha256), 1)
            with self._lock:
                self._open[record.sha256] = made
            return made

    def _close_old(self) -> None:
        for key in [key for key, entry in self._open.items() if not entry.users][: max(0, len(self._open) - OPEN_SLIDES)]:
            self._open.pop(key).slide.close()

    def close(self) -> None:
        with self._lock:
            for entry in self._open.values():
                entry.slide.close()
            self._open.clear()


class TileCache:
    """Decoded tiles on disk, those last used, up to a number of bytes; gone with the server."""

    def __init__(self, folder: Path, limit: int = CACHE_BYTES) -> None:
        self._folder, self._limit = folder, limit
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> bytes | None:
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        try:
            return read_bytes(self._folder / name)
        except OSError:
            return None

    def put(self, name: str, content: bytes) -> None:
        begun = self._folder / f".{name}.{threading.get_ident()}"
        try:
            begun.write_bytes(content)
            begun.replace(self._folder / name)  # whoever reads it meanwhile gets the whole
        except OSError:  # no room: then it is decoded again
            begun.unlink(missing_ok=True)
            return
        with self._lock:
            self._total += len(content) - self._sizes.pop(name, 0)
            self._sizes[name] = len(content)
            while self._total > self._limit:
                old, size = self._sizes.popitem(last=False)
                self._total -= size
                (self._folder / old).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def small_picture(slide: Slide, centre_l0: tuple[float, float], side_um: float, side_px: int) -> bytes:
    """A square around a place as JPEG, `side_um` wide, `side_px` pixels; beyond the slide it is background."""
    wanted = side_um / side_px
    level = slide.best_level((wanted, wanted), 0.01, exact=False)
    width, height = (max(1, round(side_um / um)) for um in level.mpp)
    x, y = (round(c / d - side / 2) for c, d, side in zip(centre_l0, level.downsample, (width, height), strict=True))
    rows = max(1, min(height, STRIP_PX // width))
    method = Image.Resampling.BOX if width > side_px else Image.Resampling.BICUBIC
    picture = Image.new("RGB", (side_px, side_px))
    for top in range(0, height, rows):
        pixels, _ = slide.read(level, x, y + top, width, min(rows, height - top))
        first, last = round(top / height * side_px), round(min(top + rows, height) / height * side_px)
        if last > first:
            picture.paste(Image.fromarray(pixels).resize((side_px, last - first), method), (0, first))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
