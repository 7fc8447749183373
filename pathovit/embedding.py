"""Tiles in, chunks of features out: readers run ahead of the device, memory is bounded, order never changes.

Batches are cut from the readable tiles of one chunk, so the bits of a chunk do not depend on where a run was
interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders import Encoder
from pathovit.errors import TileReadError, WeightsError
from pathovit.features import Verdict
from pathovit.readers import RGB
from pathovit.slide import Slide
from pathovit.tiling import TileGrid, read_tile
from pathovit.watchdog import Watchdog

AHEAD_BATCHES = 4  # batches that readers may be ahead of the device
AHEAD_BYTES = 512 * 2**20  # and no more than this
T = TypeVar("T")
Chunk = tuple[int, NDArray[np.float16], NDArray[np.uint8]]  # index, features (n, D), verdict (n,)


def judge_tile(slide: Slide, grid: TileGrid, index: int) -> tuple[RGB | None, Verdict]:
    """Read one tile: its pixels and OK, or None and why not."""
    try:
        tile = read_tile(slide, grid, index)
    except TileReadError:
        return None, Verdict.UNREADABLE
    return (tile, Verdict.OK) if tile is not None else (None, Verdict.MISSING)


def embed_chunks(
    slide: Slide,
    grid: TileGrid,
    encoder: Encoder,
    chunks: Sequence[int],
    *,
    chunk_tiles: int,
    batch_tiles: int,
    readers: int,
    read_timeout_s: float = 120.0,
    on_batch: Callable[[int], None] = lambda tiles: None,
) -> Iterator[Chunk]:
    """Features of the given chunks of a grid, one chunk at a time, in the order given.

    Parameters
    ----------
    readers : threads that decode; decoding releases the interpreter lock
    on_batch : called with the number of tiles that have just been dealt with

    Returns
    -------
    chunk index, float16 (n, D) with NaN where a tile was not OK, uint8 (n,) of Verdict
    """
    watchdog = Watchdog(read_timeout_s)

    def read(index: int) -> tuple[RGB | None, Verdict]:
        with watchdog:
            return judge_tile(slide, grid, index)

    tile_bytes = 3 * max(encoder.tile_px**2, grid.read_px[0] * grid.read_px[1])
    window = max(readers, min(AHEAD_BATCHES * batch_tiles, AHEAD_BYTES // tile_bytes))
    rows = {chunk: range(chunk * chunk_tiles, min((chunk + 1) * chunk_tiles, len(grid))) for chunk in chunks}
    try:
        with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
            judged = _run_ahead(pool, read, (index for chunk in chunks for index in rows[chunk]), window)
            for chunk in chunks:
                yield chunk, *_embed_chunk(judged, len(rows[chunk]), encoder, batch_tiles, on_batch)
    finally:
        watchdog.close()


def _run_ahead(pool: ThreadPoolExecutor, read: Callable[[int], T], indices: Iterable[int], window: int) -> Iterator[T]:
    """Results in order, with at most `window` of them read or being read ahead."""
    waiting: deque[Future[T]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _embed_chunk(
    judged: Iterator[tuple[RGB | None, Verdict]],
    tiles: int,
    encoder: Encoder,
    batch_tiles: int,
    on_batch: Callable[[int], None],
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    features = np.full((tiles, encoder.dim), np.nan, np.float16)
    verdict = np.full(tiles, Verdict.PENDING, np.uint8)
    batch = np.empty((batch_tiles, encoder.tile_px, encoder.tile_px, 3), np.uint8)
    rows: list[int] = []
    reported = 0
    for row in range(tiles):
        tile, verdict[row] = next(judged)
        if tile is not None:
            batch[len(rows)] = tile
            rows.append(row)
        if len(rows) == batch_tiles or row == tiles - 1:
            if rows:
                with np.errstate(over="ignore"):
                    features[rows] = encoder.embed(batch[: len(rows)]).astype(np.float16)
                if not np.isfinite(features[rows]).all():
                    raise WeightsError(
                        f"Encoder {encoder.name!r} gives features that are no numbers. Try --precision fp32, or other weights."
                    )
            rows = []
            on_batch(row + 1 - reported)
            reported = row + 1
    return features, verdict
