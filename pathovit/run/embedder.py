"""Embedder: tiles in, chunks of features out. Readers run ahead, the device never waits, memory is bounded.

One process has one Embedder. Its reading threads and its device threads serve every part of a slide that is embedded at
the same time: while one part ends, or is written to disk, the next is already read, whatever slide it belongs to, and
on the device the part that was begun first goes first. Batches are cut from the readable tiles of one chunk, so the bits of a chunk
depend neither on where a run was interrupted nor on what else is embedded beside it.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.encoder import Encoder, Pixels
from pathovit.errors import FeatureError, TileReadError
from pathovit.machine import step_back
from pathovit.outputs.features import TileVerdict
from pathovit.run.device import Batch, Chunk, Device, Features, Span
from pathovit.run.watchdog import POLL_S, STEP_READS, OnHang, Watchdog
from pathovit.slides.readers import RGB
from pathovit.slides.readers.compressed import CodedTile
from pathovit.slides.readers.device_decoder import DeviceDecoder
from pathovit.slides.slide import Slide
from pathovit.slides.tiling import TileGrid, corner, read_tile

READ_TOGETHER = 8  # neighbouring tiles that one thread reads
AHEAD_BATCHES = 4  # batches that readers may be ahead of the device
AHEAD_BYTES = 128 * 2**20  # and no more than this, unless there are more readers than tiles in it
FLYING_BATCHES = 4  # batches of a part that the device knows of
Judged = tuple[RGB | CodedTile | None, TileVerdict]


def judge_tile(slide: Slide, grid: TileGrid, index: int) -> tuple[RGB | None, TileVerdict]:
    """Read one tile: its pixels and OK, or None and why not."""
    try:
        tile = read_tile(slide, grid, index)
    except TileReadError:
        return None, TileVerdict.UNREADABLE
    return (tile, TileVerdict.OK) if tile is not None else (None, TileVerdict.MISSING)


def fetch_tile(slide: Slide, grid: TileGrid, index: int) -> Judged:
    """A tile as it lies in the file, for the device to decode; where that cannot be had, as `judge_tile` reads it."""
    assert slide.compressed
    try:
        coded = slide.compressed.coded(grid.read_level, *corner(slide, grid, index), *grid.read_px)
    except TileReadError:
        return None, TileVerdict.UNREADABLE
    return (coded, TileVerdict.OK) if coded else judge_tile(slide, grid, index)


class Embedder:
    """The readers, the device and the watchdog of one process. Use it as a context manager.

    Examples
    --------
    >>> with pathovit.Embedder(pathovit.load_encoder("reference"), readers=2) as embedder:
    ...     embedder.encoder.dim
    256
    """

    def __init__(
        self, encoder: Encoder, readers: int, read_timeout_s: float = 120.0, decoder: DeviceDecoder | None = None,
        on_hang: OnHang = "raise",
    ) -> None:  # fmt: skip
        """`decoder` serves the slides whose reader is "device"; `on_hang` says what becomes of a tile that takes too long."""
        self.encoder = encoder
        self._decoder = decoder
        self._watchdog = Watchdog(read_timeout_s, on_hang)
        give_way = step_back if encoder.device.type == "cpu" else None  # the readers' cores are the device
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="reader", initializer=give_way)
        self._reading = readers
        self._device = Device(encoder, self._watchdog)
        self._turns = itertools.count()
        # An embedder that nobody uses any more ends by itself, too: a worker may live through many recipes.
        self._ending = weakref.finalize(self, _end, self._device, self._readers, self._watchdog)
        self._ending.atexit = False

    def step_watchdog(self, path: Path, what: str) -> AbstractContextManager[None]:
        """For what is done with a slide beside its tiles: opening, storing."""
        return self._watchdog(path.name, what, STEP_READS * self._watchdog.timeout_s)

    def embed(
        self,
        slide: Slide,
        grid: TileGrid,
        chunks: Sequence[int],
        *,
        chunk_tiles: int,
        batch_tiles: int,
        dtype: str = "float16",
        on_batch: Callable[[int], None] = lambda tiles: None,
        on_device: Callable[[Span], None] = lambda span: None,
    ) -> Generator[Chunk]:
        """Features of the given chunks of a grid, in the order given.

        Parameters
        ----------
        dtype : of the features that are returned
        on_batch : called with the number of tiles that have just been dealt with
        on_device : called with the times between which the device had a batch

        Returns
        -------
        chunk index, features (n, D) with NaN where a tile was not OK, uint8 (n,) of TileVerdict

        Raises
        ------
        FeatureError : a feature is no number, or too large for `dtype`
        TileReadError : something hangs, where that is to be raised
        SettingsError : a single tile does not fit into the device's memory
        """
        turn = next(self._turns)
        flying: deque[tuple[Batch, Features]] = deque()

        def land(batch: Batch, coming: Features) -> Iterator[Chunk]:
            found, span = self._watchdog.result(coming, slide.path)
            self._store(slide.path, batch, found)
            on_device(span)
            on_batch(batch.dealt)
            if batch.ends_chunk:
                yield batch.chunk

        with closing(self._batches(slide, grid, chunks, chunk_tiles, batch_tiles, dtype)) as batches:
            for batch in batches:
                flying.append((batch, self._device.submit(turn, batch)))
                if len(flying) == FLYING_BATCHES:
                    yield from land(*flying.popleft())
        while flying:
            yield from land(*flying.popleft())

    def _store(self, path: Path, batch: Batch, found: NDArray[np.float32]) -> None:
        _, features, _ = batch.chunk
        with np.errstate(over="ignore"):
            features[batch.rows] = found.astype(features.dtype)
        if np.isfinite(features[batch.rows]).all():
            return
        name, largest = self.encoder.name, float(np.abs(found).max(initial=0.0))
        if np.isfinite(found).all():
            raise FeatureError(
                path,
                f"encoder {name!r} gives features of up to {largest:,.0f}, and {features.dtype} holds {float(np.finfo(features.dtype).max):,.0f} at "
                "most. Store them as float32: --feature-dtype float32.",
            )
        raise FeatureError(path, f"encoder {name!r} gives features that are no numbers. Try --precision fp32, or other weights.")

    def _batches(
        self, slide: Slide, grid: TileGrid, chunks: Sequence[int], chunk_tiles: int, batch_tiles: int, dtype: str
    ) -> Generator[Batch]:
        decoder = self._decoder if slide.reader == "device" else None
        if decoder and slide.compressed:
            decoder.check(slide.path, slide.compressed, grid.read_level)
        rows_of = {chunk: range(chunk * chunk_tiles, min((chunk + 1) * chunk_tiles, len(grid))) for chunk in chunks}
        indices = [index for chunk in chunks for index in rows_of[chunk]]
        judge = fetch_tile if decoder else judge_tile
        with closing(self._read_ahead(judge, slide, grid, indices, batch_tiles)) as judged:
            for index in chunks:
                tiles = len(rows_of[index])
                features = np.full((tiles, self.encoder.dim), np.nan, dtype)
                chunk = (index, features, np.full(tiles, TileVerdict.PENDING, np.uint8))
                gather = partial(self._decode, decoder, slide, grid, rows_of[index].start) if decoder else self._copy
                found: dict[int, RGB | CodedTile] = {}
                dealt = 0
                for row in range(tiles):
                    tile, chunk[2][row] = next(judged)
                    dealt += 1
                    if tile is not None:
                        found[row] = tile
                    if len(found) == batch_tiles or row == tiles - 1:
                        yield Batch(gather(found, chunk[2]), list(found), dealt, chunk, row == tiles - 1)
                        found, dealt = {}, 0

    def _copy(self, found: dict[int, Any], verdict: NDArray[np.uint8]) -> Pixels:
        """Tiles, by their rows of a chunk, as one array that the device takes up without another copy."""
        pixels = self.encoder.buffer(len(found))
        for place, tile in enumerate(found.values()):
            pixels[place] = tile
        return pixels

    def _decode(
        self, decoder: DeviceDecoder, slide: Slide, grid: TileGrid, first: int, found: dict[int, Any], verdict: NDArray[np.uint8]
    ) -> Pixels:
        """The same on the device. What it cannot decode is read as ever, and leaves `found` if that cannot be done either."""
        rows = list(found)

        def instead(place: int) -> RGB | None:
            with self._watchdog(slide.path.name, "reading a tile"):
                tile, verdict[rows[place]] = judge_tile(slide, grid, first + rows[place])
            if tile is None:
                del found[rows[place]]
            return tile

        return decoder.read(slide.path, list(found.values()), grid.read_px, self.encoder.tile_px, instead)

    def _read_ahead(
        self,
        judge: Callable[[Slide, TileGrid, int], Judged],
        slide: Slide,
        grid: TileGrid,
        indices: list[int],
        batch_tiles: int,
    ) -> Generator[Judged]:
        """Tiles in order, with a bounded number of them read or being read ahead."""

        def read(some: Sequence[int]) -> list[Judged]:
            found = []
            for index in some:
                with self._watchdog(slide.path.name, "reading a tile"):
                    found.append(judge(slide, grid, index))
            return found

        tile_bytes = 3 * max(self.encoder.tile_px**2, grid.read_px[0] * grid.read_px[1])
        ahead = max(1, min(AHEAD_BATCHES * batch_tiles, AHEAD_BYTES // tile_bytes) // READ_TOGETHER, self._reading)
        waiting: deque[Future[list[Judged]]] = deque()
        try:
            for first in range(0, len(indices), READ_TOGETHER):
                waiting.append(self._readers.submit(read, indices[first : first + READ_TOGETHER]))
                if len(waiting) > ahead:
                    yield from self._watchdog.result(waiting.popleft(), slide.path)
            while waiting:
                yield from self._watchdog.result(waiting.popleft(), slide.path)
        finally:
            running = [future for future in waiting if not future.cancel()]
            while wait(running, timeout=POLL_S).not_done:  # the slide may be closed after this
                if self._watchdog.overdue():
                    break  # a thread that hangs is left behind

    def remarks(self) -> list[str]:
        """What there is to say of the device, since this was asked last."""
        return self._device.remarks()

    def close(self) -> None:
        self._ending()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _end(device: Device, readers: ThreadPoolExecutor, watchdog: Watchdog) -> None:
    hung = bool(watchdog.overdue())
    device.close(wait=not hung)
    readers.shutdown(wait=not hung, cancel_futures=True)
    watchdog.close()
