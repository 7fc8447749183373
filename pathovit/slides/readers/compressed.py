"""CompressedTiles: the tiles of a slide as they lie in its file, located once, read by position, decoded alone.

OpenSlide spends five sixths of its time on other things than decoding, moves the pixels of many lower levels by parts of
a pixel, and overlooks what a decoder warns of. Where a TIFF file holds its pyramid as plain tiles, the bytes of a tile are
read and decoded here, strictly, and JPEG at a half, a quarter or an eighth of its size if that is what is wanted, which
costs less than decoding it whole. Nothing is read here before a sample of tiles of every level has come out as OpenSlide
reads them (`compare`): bit for bit, where OpenSlide does not interpolate. What is missing is left to OpenSlide.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from pathovit.errors import PASSING, TileReadError, io_error
from pathovit.files import open_patiently, read_at, tried_again
from pathovit.slides.readers import RGB, openjpeg
from pathovit.slides.readers.jpeg_head import ADOBE, jpeg_head

JPEG, JPEG_2000 = 7, (33003, 33005, 34712)
LOSSLESS: dict[int, Callable[[bytes], bytes | bytearray]] = {  # by TIFF's number of the compression
    1: lambda coded: coded,
    5: imagecodecs.lzw_decode,
    8: imagecodecs.zlib_decode,
    32946: imagecodecs.zlib_decode,
    50000: imagecodecs.zstd_decode,
}
DAMAGED_BLOCKS = 12  # of a JPEG 2000 tile: more that a decoder complains of are the encoder's way
ENDS_TRIED = 24  # tiles in which the ends of blocks are looked at
SAMPLES, TRIED = 2, 8  # tiles of a level that are compared with OpenSlide, of so many most detailed ones
LIKENESS = 0.6  # correlation of the same tile read by OpenSlide, which may move it by half a pixel and soften it
RGB_PAGE = 2  # TIFF's photometric tag
SCALES = (1, 2, 4, 8)
KEPT_BYTES = 64 * 2**20  # of decoded tiles: neighbours share them


@dataclass(frozen=True)
class TiledLevel:
    """Where the compressed tiles of one level lie."""

    size: tuple[int, int]  # width, height in pixels
    tile: tuple[int, int]
    columns: int  # tiles in a row
    offsets: NDArray[np.int64]  # (tiles,)
    lengths: NDArray[np.int64]  # (tiles,); 0 for a tile that was left out
    compression: int  # TIFF's number
    predicted: bool  # lossless: each pixel is stored as the difference to the one before
    head: bytes  # what a JPEG tile begins with: shared tables and colour transform

    def pieces(self, x: int, y: int, width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
        """The parts of a rectangle that lie on single tiles of the level, each x, y, width, height."""
        right, bottom = min(x + width, self.size[0]), min(y + height, self.size[1])
        x, y = max(x, 0), max(y, 0)
        for top in range(y - y % self.tile[1], bottom, self.tile[1]):
            for left in range(x - x % self.tile[0], right, self.tile[0]):
                at = max(left, x), max(top, y)
                yield *at, min(left + self.tile[0], right) - at[0], min(top + self.tile[1], bottom) - at[1]

    @property
    def is_jpeg(self) -> bool:
        return self.compression == JPEG


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
        self._path = path
        self._file = tried_again(lambda: os.open(path, os.O_RDONLY))
        self._check_ends = True  # of JPEG 2000 blocks; not for encoders that end them otherwise
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int, int], RGB] = OrderedDict()
        self._kept_bytes = 0

    def read(self, level: int, x: int, y: int, width: int, height: int, scale: int = 1) -> RGB | None:
        """Pixels of a rectangle of a level, `scale` times smaller: uint8 (height / scale, width / scale, 3).

        None where this is not the place to read them: no such level, beyond its edge, off the scaled pixels, a tile
        that is missing.

        Raises
        ------
        TileReadError : a tile is damaged, or the decoder complains of it
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

    def check(self, level: int, x: int, y: int, width: int, height: int) -> None:
        """Raises TileReadError where a tile under a rectangle of a level is damaged: for readers that do not notice."""
        if level in self.levels:
            size = self.levels[level].size
            x, y, right, bottom = max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])
            if right > x and bottom > y:
                self.read(level, x, y, right - x, bottom - y)

    def decode(self, tiled: TiledLevel, index: int, scale: int) -> RGB | None:
        """One tile, (h / scale, w / scale, 3); None if it is missing. Raises TileReadError if it is damaged."""
        wide, high = tiled.tile[0] // scale, tiled.tile[1] // scale
        if (coded := self.bytes_of(tiled, index)) is None:
            return None
        try:
            tile = self._decoded(tiled, coded, wide, high)
        except (ValueError, RuntimeError) as error:  # of simplejpeg, openjpeg, imagecodecs
            raise TileReadError(self._path, f"tile {index} is damaged ({error}).") from error
        if tile.shape != (high, wide, 3) or tile.dtype != np.uint8:
            raise TileReadError(self._path, f"tile {index} is damaged (it holds {tile.shape} pixels).")
        return tile

    def _decoded(self, tiled: TiledLevel, coded: bytes, wide: int, high: int) -> RGB:
        if tiled.is_jpeg:
            return np.asarray(simplejpeg.decode_jpeg(coded, "RGB", min_height=high, min_width=wide))
        if tiled.compression in JPEG_2000:
            return openjpeg.decode(coded, self._check_ends) if openjpeg.library() else imagecodecs.jpeg2k_decode(coded)
        pixels = np.frombuffer(LOSSLESS[tiled.compression](coded), np.uint8).reshape(high, wide, 3)
        return np.asarray(np.cumsum(pixels, axis=1, dtype=np.uint8) if tiled.predicted else pixels)

    def bytes_of(self, tiled: TiledLevel, index: int) -> bytes | None:
        """A compressed tile, as a decoder takes it; None for one that was left out. Raises TileReadError if it cannot be read."""
        if index >= len(tiled.lengths) or tiled.lengths[index] < 4:
            return None
        skipped = 2 if tiled.is_jpeg else 0  # the tile's own start-of-image: the head has one
        wanted = int(tiled.lengths[index]) - skipped
        try:
            found = read_at(self._file, wanted, int(tiled.offsets[index]) + skipped)
        except OSError as error:
            damaged = TileReadError(self._path, f"tile {index} cannot be read ({error.strerror}).")
            raise (io_error(self._path, error) if error.errno in PASSING else damaged) from error
        if len(found) < wanted:
            raise TileReadError(self._path, f"tile {index} is cut off.")
        return tiled.head + found

    def compare(self, level: int, read: Callable[[int, int, int, int, int], RGB | None], exactly: bool) -> bool | None:
        """Whether tiles of a level come out as `read(level, x, y, width, height)` reads them; those with most detail are compared.

        None where no tile could be read both ways.

        Colours, tables and the order of the tiles are thus known to be understood; glass would agree by chance.

        Parameters
        ----------
        exactly : bit for bit; else alike, for a reader that interpolates
        """
        tiled = self.levels.get(level)
        if tiled is None:
            return None
        self.judge_ends(level)
        compared = 0
        for box in self.detailed(level, TRIED):
            theirs = read(level, *box)
            if theirs is None:
                continue
            try:
                ours = self.read(level, *box)
            except TileReadError:
                continue
            if ours is None:
                continue
            if not (np.array_equal(ours, theirs) if exactly else alike(ours, theirs)):
                return False
            compared += 1
            if compared == SAMPLES:
                break
        return True if compared else None

    def judge_ends(self, level: int) -> None:
        """Leave out the check of block ends, where an encoder ends them otherwise."""
        tiled = self.levels[level]
        if tiled.compression in JPEG_2000 and self._check_ends:
            self._check_ends = not self._ends_otherwise(tiled)

    def _ends_otherwise(self, tiled: TiledLevel) -> bool:
        """Whether the encoder ended its blocks in a way that the check does not know: it then complains of most blocks of most tiles.

        Damage is a block or two of a tile.
        """
        complaints: list[int] = []
        for index in np.argsort(tiled.lengths)[-ENDS_TRIED:]:
            try:
                if coded := self.bytes_of(tiled, int(index)):
                    self._decoded(tiled, coded, *tiled.tile)
                    complaints.append(0)
            except openjpeg.Damaged as damaged:
                complaints.append(damaged.complaints)
            except (TileReadError, ValueError, RuntimeError):  # damaged otherwise, which is found when it is read
                continue
        most = sum(count > DAMAGED_BLOCKS for count in complaints) > len(complaints) / 2
        return most or (len(complaints) >= TRIED and all(complaints))

    def detailed(self, level: int, count: int) -> list[tuple[int, int, int, int]]:
        """x, y, width, height of the whole tiles of a level that take most bytes."""
        tiled = self.levels[level]
        index = np.arange(len(tiled.lengths))
        column, row = index % tiled.columns, index // tiled.columns
        inside = ((column + 1) * tiled.tile[0] <= tiled.size[0]) & ((row + 1) * tiled.tile[1] <= tiled.size[1])
        chosen = np.argsort(np.where(inside, tiled.lengths, 0))[-count:][::-1]
        return [
            (int(column[i]) * tiled.tile[0], int(row[i]) * tiled.tile[1], *tiled.tile)
            for i in chosen
            if inside[i] and tiled.lengths[i]
        ] or [(0, 0, min(tiled.tile[0], tiled.size[0]), min(tiled.tile[1], tiled.size[1]))]

    def forget(self) -> None:
        """Drop the decoded tiles that are kept."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0

    def close(self) -> None:
        os.close(self._file)
        self.forget()


def alike(ours: RGB, theirs: RGB) -> bool:
    """Whether two pictures (H, W, 3) show the same, moved by part of a pixel at most."""
    a, b = ours.astype(np.float32), theirs.astype(np.float32)
    a, b = (a - a.mean((0, 1))).ravel(), (b - b.mean((0, 1))).ravel()  # of each channel: all tissue is pink
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return norm > 0 and float(a @ b) / norm > LIKENESS


def locate_tiles(path: Path, sizes: list[tuple[int, int]]) -> dict[int, TiledLevel]:
    """The levels, of the given sizes, that a TIFF file holds as plain tiles; empty for any other file."""
    levels: dict[int, TiledLevel] = {}
    try:
        with open_patiently(path) as file, tifffile.TiffFile(file) as tiff:
            for order, page in enumerate(page for page in tiff.pages if page.is_tiled):
                for index, size in enumerate(sizes):
                    if index not in levels and _is_plain(page) and _holds(page, size, fills_up=index == order):
                        levels[index] = _tiled_level(page, size)
                        break
    except Exception as error:  # a damaged TIFF can raise anything in a parser: OpenSlide says what it makes of it
        if isinstance(error, OSError) and error.errno in PASSING:  # a drive that fails must not choose the reader
            raise io_error(path, error) from error
        return {}
    return levels


def _holds(page: tifffile.TiffPage, size: tuple[int, int], fills_up: bool) -> bool:
    """Whether a page is a level of this size; some scanners (Philips) fill its last tiles up, and state their size."""
    spare = (page.imagewidth - size[0], page.imagelength - size[1])
    return bool(spare == (0, 0) or (fills_up and 0 <= spare[0] < page.tilewidth and 0 <= spare[1] < page.tilelength))


def _is_plain(page: tifffile.TiffPage) -> bool:
    coded = (page.compression == JPEG and page.photometric in ADOBE) or page.compression in JPEG_2000
    coded = coded or (page.compression in LOSSLESS and page.photometric == RGB_PAGE and page.predictor in (1, 2))
    whole = len(page.dataoffsets) == len(page.databytecounts)
    contiguous = page.planarconfig == 1 and page.samplesperpixel == 3 and page.bitspersample == 8
    return bool(page.imagedepth == 1 and contiguous and coded and whole)


def _tiled_level(page: tifffile.TiffPage, size: tuple[int, int]) -> TiledLevel:
    is_jpeg = page.compression == JPEG
    return TiledLevel(
        size=size,
        tile=(page.tilewidth, page.tilelength),
        columns=-(-page.imagewidth // page.tilewidth),
        offsets=np.asarray(page.dataoffsets, np.int64),
        lengths=np.asarray(page.databytecounts, np.int64),
        compression=int(page.compression),
        predicted=page.predictor == 2,
        head=jpeg_head(page) if is_jpeg else b"",
    )
