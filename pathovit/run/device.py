"""Device: batches in, features out, in the order of their parts. What its memory does not hold is done in halves."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import Empty, PriorityQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.encoder import Encoder, Pixels
from pathovit.errors import SettingsError
from pathovit.machine import free_device_memory, is_out_of_memory, use_threads
from pathovit.run.watchdog import STEP_READS, Watchdog

Span = tuple[float, float]  # when the device began and ended a batch, seconds since the epoch
Features = Future[tuple[NDArray[np.float32], Span]]  # (B, D), to come
Chunk = tuple[int, NDArray[np.floating[Any]], NDArray[np.uint8]]  # index, features (n, D), verdict (n,)


@dataclass(frozen=True)
class Batch:
    """Readable tiles of one chunk, and the chunk's arrays that they will fill."""

    pixels: Pixels  # (B, tile_px, tile_px, 3)
    rows: list[int]  # of the chunk
    dealt: int  # tiles done with this batch, readable or not
    chunk: Chunk
    ends_chunk: bool


class Device:
    """Threads that hand batches to the device. On a GPU one does, and begins the next before it fetches the last."""

    def __init__(self, encoder: Encoder, watchdog: Watchdog | None = None) -> None:
        self._encoder = encoder
        self._watchdog = watchdog
        self._lock = threading.Lock()
        self._most = sys.maxsize  # tiles at once that its memory holds, as far as is known
        self._said: list[str] = []
        self._overlaps = encoder.device.type == "cuda"  # elsewhere the work is done when it returns
        self._waiting: PriorityQueue[tuple[float, int, Batch | None, Features]] = PriorityQueue()
        self._order = itertools.count()
        self._threads = [threading.Thread(target=self._run, daemon=True, name="device") for _ in range(encoder.lanes)]
        for thread in self._threads:
            thread.start()

    def submit(self, turn: float, batch: Batch) -> Features:
        """Features (B, D) to come of a batch; lower turns go first."""
        features: Features = Future()
        if batch.rows:
            self._waiting.put((turn, next(self._order), batch, features))
        else:
            features.set_result((np.empty((0, self._encoder.dim), np.float32), (time.time(), time.time())))
        return features

    def _run(self) -> None:
        if self._encoder.device.type == "cpu":
            use_threads(self._encoder.cores // self._encoder.lanes)
        landing: Callable[[], None] | None = None
        while True:
            try:
                _, _, batch, features = self._waiting.get(block=landing is None)
            except Empty:
                launched, ends = None, False
            else:
                launched, ends = (self._launch(batch, features), False) if batch else (None, True)
            if landing is not None:
                landing()
            landing = launched
            if landing is not None and not self._overlaps:
                landing()
                landing = None
            if ends:
                return

    def _launch(self, batch: Batch, features: Features) -> Callable[[], None] | None:
        """Begin a batch; what is returned waits for its end. Errors belong to the part, which waits for its features."""
        begun = time.time()
        fetch: Callable[[], NDArray[np.float32]] | None = None
        try:
            with self._watched():
                fetch = self._encoder.launch(batch.pixels) if len(batch.pixels) <= self._most else None
        except BaseException as error:
            why = error if not is_out_of_memory(error) else self._halved(len(batch.pixels))
            if why is not None:
                features.set_exception(why)
                return None

        def land() -> None:
            try:
                with self._watched():
                    features.set_result((self._land(batch, fetch), (begun, time.time())))
            except BaseException as error:
                features.set_exception(error)

        return land

    def _land(self, batch: Batch, fetch: Callable[[], NDArray[np.float32]] | None) -> NDArray[np.float32]:
        """Features (B, D) of a batch that was begun, or, where the memory of the device does not hold it, of its parts one by one."""
        if fetch is not None:
            try:
                return fetch()
            except RuntimeError as error:  # as torch raises it
                if not is_out_of_memory(error):
                    raise
                self._halve(len(batch.pixels))
        found: list[NDArray[np.float32]] = []
        done = 0
        while done < len(batch.pixels):
            part = batch.pixels[done : done + self._most]
            try:
                found.append(self._encoder.launch(part)())
            except RuntimeError as error:  # as torch raises it
                if not is_out_of_memory(error):
                    raise
                self._halve(len(part))
            else:
                done += len(part)
        return np.concatenate(found)

    def _halved(self, tiles: int) -> SettingsError | None:
        """As `_halve`, with its error as a value."""
        try:
            self._halve(tiles)
        except SettingsError as error:
            return error
        return None

    def _halve(self, tiles: int) -> None:
        """From here on at most half as many tiles at once. Raises SettingsError where that is none."""
        if tiles == 1:
            raise SettingsError(
                f"A single tile of {self._encoder.tile_px} px is too much for the memory of the device. Free it, use smaller tiles or a smaller "
                "encoder, or --device cpu."
            )
        free_device_memory(self._encoder.device)
        with self._lock:
            if tiles <= self._most:
                self._most = -(-tiles // 2)
                self._said.append(
                    f"the memory of the device does not hold {tiles} tiles at once: from here on {self._most} (features may differ in the last bits)"
                )

    def remarks(self) -> list[str]:
        with self._lock:
            said, self._said = self._said, []
        return said

    def _watched(self) -> AbstractContextManager[None]:
        if self._watchdog is None:
            return nullcontext()
        return self._watchdog("the device", "a batch", STEP_READS * self._watchdog.timeout_s)

    def close(self, wait: bool = True) -> None:
        """End when all that waits is done; `wait` for that."""
        for _ in self._threads:
            self._waiting.put((float("inf"), next(self._order), None, Future()))
        for thread in self._threads if wait else ():
            thread.join()
