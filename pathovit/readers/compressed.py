"""CompressedTiles: the tiles of a slide as they lie in its file, located once, read by position, decoded alone.

OpenSlide spends five sixths of its time on other things than decoding. Where a TIFF file holds its pyramid as plain
tiles of JPEG or JPEG 2000, the bytes of a tile are read and decoded here, and JPEG at a half, a quarter or an eighth of
its size if that is what is wanted, which costs less than decoding it whole. OpenSlide stays the judge: nothing is read
here before a sample of tiles has come out bit for bit as OpenSlide reads them (`agrees_with`), and what is missing,
damaged or beyond the edge is left to it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from pathovit.readers import RGB

JPEG, JPEG_2000 = 7, (33003, 33005, 34712)
SCALES = (1, 2, 4, 8)
KEPT_BYTES = 64 * 2**20  # of decoded tiles: neighbours share them
# Says whether the three components are RGB or YCbCr; many scanners leave it to TIFF's photometric tag.
ADOBE = {2: b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00", 6: b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"}


@dataclass(frozen=True)
class TiledLevel:
    """Where the compressed tiles of one level lie."""

    size: tuple[int, int]  # width, height in pixels
    tile: tuple[int, int]
    columns: int  # tiles in a row
    offsets: NDArray[np.int64]  # (tiles,)
    lengths: NDArray[np.int64]  # (tiles,); 0 for a tile that was left out
    is_jpeg: bool
    head: bytes  # what a JPEG tile begins with: shared tables and colour transform


@dataclass(frozen=True)
class Piece:
    """A compressed tile as a part of a tile of the grid."""

    level: int
    index: int
    coded: bytes
    left: int  # of its corner, in pixels of the grid's tile before it is resized
    top: int


@dataclass(frozen=True)
class CodedTile:
    """A tile of the grid as it lies in the file."""

    pieces: list[Piece]
    piece_px: tuple[int, int]  # width, height of a decoded piece


class CompressedTiles:
    """The compressed tiles of a slide file; reading is safe from several threads."""

    def __init__(self, path: Path, levels: dict[int, TiledLevel]) -> None:
        self.levels = levels
        self._file = os.open(path, os.O_RDONLY)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int, int], RGB] = OrderedDict()
        self._kept_bytes = 0

    def read(self, level: int, x: int, y: int, width: int, height: int, scale: int = 1) -> RGB | None:
        """Pixels of a rectangle of a level, `scale` times smaller: uint8 (height / scale, width / scale, 3).

        None where this is not the place to read them: no such level, beyond its edge, off the scaled pixels, a tile
        that is missing or damaged.
        """
        tiled = self._around(level, x, y, width, height)
        if tiled is None or scale not in SCALES or (scale > 1 and not tiled.is_jpeg):
            return None
        if any(length % scale for length in (x, y, width, height, *tiled.tile)):
            return None
        x, y, width, height = x // scale, y // scale, width // scale, height // scale
        wide, high = tiled.tile[0] // scale, tiled.tile[1] // scale
        pixels = np.empty((height, width, 3), np.uint8)
        for row in range(y // high, (y + height - 1) // high + 1):
            top, bottom = max(y, row * high), min(y + height, (row + 1) * high)
            for column in range(x // wide, (x + width - 1) // wide + 1):
                tile = self._tile(level, row * tiled.columns + column, scale)
                if tile is None:
                    return None
                left, right = max(x, column * wide), min(x + width, (column + 1) * wide)
                pixels[top - y : bottom - y, left - x : right - x] = tile[
                    top - row * high : bottom - row * high, left - column * wide : right - column * wide
                ]
        return pixels

    def coded(self, level: int, x: int, y: int, width: int, height: int) -> CodedTile | None:
        """The JPEG tiles that cover a rectangle of a level. None where `read` would give None, or another codec is used."""
        tiled = self._around(level, x, y, width, height)
        if tiled is None or not tiled.is_jpeg:
            return None
        wide, high = tiled.tile
        pieces = []
        for row in range(y // high, (y + height - 1) // high + 1):
            for column in range(x // wide, (x + width - 1) // wide + 1):
                index = row * tiled.columns + column
                if (found := self.bytes_of(tiled, index)) is None:
                    return None
                pieces.append(Piece(level, index, found, column * wide - x, row * high - y))
        return CodedTile(pieces, tiled.tile)

    def _around(self, level: int, x: int, y: int, width: int, height: int) -> TiledLevel | None:
        """The level, if the rectangle lies within it."""
        tiled = self.levels.get(level)
        if tiled is None or x < 0 or y < 0 or x + width > tiled.size[0] or y + height > tiled.size[1]:
            return None
        return tiled

    def _tile(self, level: int, index: int, scale: int) -> RGB | None:
        key = (level, index, scale)
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        tile = self.decode(self.levels[level], index, scale)
        if tile is None:
            return None
        with self._lock:
            if key not in self._kept:
                self._kept[key] = tile
                self._kept_bytes += tile.nbytes
            while self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return tile

    def decode(self, tiled: TiledLevel, index: int, scale: int) -> RGB | None:
        wide, high = tiled.tile[0] // scale, tiled.tile[1] // scale
        if (coded := self.bytes_of(tiled, index)) is None:
            return None
        try:
            if tiled.is_jpeg:
                tile = simplejpeg.decode_jpeg(coded, "RGB", min_height=high, min_width=wide)
            else:
                tile = imagecodecs.jpeg2k_decode(coded)
        except (ValueError, imagecodecs.Jpeg2kError):
            return None  # damaged: OpenSlide is asked, and its answer stands
        return tile if tile.shape == (high, wide, 3) and tile.dtype == np.uint8 else None

    def bytes_of(self, tiled: TiledLevel, index: int) -> bytes | None:
        """A compressed tile, as a decoder takes it; None for one that was left out or cannot be read."""
        if index >= len(tiled.lengths) or tiled.lengths[index] < 4:
            return None
        skipped = 2 if tiled.is_jpeg else 0  # the tile's own start-of-image: the head has one
        try:
            return tiled.head + os.pread(self._file, int(tiled.lengths[index]) - skipped, int(tiled.offsets[index]) + skipped)
        except OSError:
            return None  # OpenSlide is asked, and its answer stands

    def agrees_with(self, read: Callable[[int, int, int, int, int], RGB | None]) -> bool:
        """Whether tiles of level 0 come out as `read(level, x, y, width, height)` reads them, bit for bit.

        The colours, the tables and the order of the tiles are thus known to be understood.
        """
        tiled = self.levels.get(0)
        if tiled is None:
            return False
        index = np.arange(len(tiled.lengths))
        column, row = index % tiled.columns, index // tiled.columns
        inside = ((column + 1) * tiled.tile[0] <= tiled.size[0]) & ((row + 1) * tiled.tile[1] <= tiled.size[1])
        most_detailed = np.argsort(np.where(inside, tiled.lengths, 0))[-2:]  # glass would agree by chance
        compared = 0
        for tile in most_detailed:
            box = (int(column[tile]) * tiled.tile[0], int(row[tile]) * tiled.tile[1], *tiled.tile)
            ours, theirs = self.read(0, *box), read(0, *box)
            if ours is not None and theirs is not None:
                if not np.array_equal(ours, theirs):
                    return False
                compared += 1
        return compared > 0

    def forget(self) -> None:
        """Drop the decoded tiles that are kept."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0

    def close(self) -> None:
        os.close(self._file)
        self.forget()


def locate_tiles(path: Path, sizes: list[tuple[int, int]]) -> dict[int, TiledLevel]:
    """The levels, of the given sizes, that a TIFF file holds as plain tiles; empty for any other file."""
    levels: dict[int, TiledLevel] = {}
    try:
        with tifffile.TiffFile(path) as tiff:
            for order, page in enumerate(page for page in tiff.pages if page.is_tiled):
                for index, size in enumerate(sizes):
                    if index not in levels and _is_plain(page) and _holds(page, size, fills_up=index == order):
                        levels[index] = _tiled_level(page, size)
                        break
    except (tifffile.TiffFileError, ValueError, OSError):
        return {}
    return levels


def _holds(page: tifffile.TiffPage, size: tuple[int, int], fills_up: bool) -> bool:
    """Whether a page is a level of this size; some scanners (Philips) fill its last tiles up, and state their size."""
    spare = (page.imagewidth - size[0], page.imagelength - size[1])
    return bool(spare == (0, 0) or (fills_up and 0 <= spare[0] < page.tilewidth and 0 <= spare[1] < page.tilelength))


def _is_plain(page: tifffile.TiffPage) -> bool:
    coded = (page.compression == JPEG and page.photometric in ADOBE) or page.compression in JPEG_2000
    contiguous = page.planarconfig == 1 and page.samplesperpixel == 3 and page.bitspersample == 8
    return bool(page.imagedepth == 1 and contiguous and coded)


def _tiled_level(page: tifffile.TiffPage, size: tuple[int, int]) -> TiledLevel:
    is_jpeg = page.compression == JPEG
    return TiledLevel(
        size=size,
        tile=(page.tilewidth, page.tilelength),
        columns=-(-page.imagewidth // page.tilewidth),
        offsets=np.asarray(page.dataoffsets, np.int64),
        lengths=np.asarray(page.databytecounts, np.int64),
        is_jpeg=is_jpeg,
        head=((page.jpegtables or b"\xff\xd8\xff\xd9")[:-2] + ADOBE[page.photometric]) if is_jpeg else b"",
    )
