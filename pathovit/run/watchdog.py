"""Watchdog: notices what takes too long. A decoder, a drive or a device that hangs cannot be interrupted.

What a hang does is the caller's choice. A worker process ends: its nanny starts another, and a slide that does this twice fails
alone. A library raises where somebody waits for the result, and the thread that hangs is left behind.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pathovit.errors import TileReadError
from pathovit.reasons import Code

TOOK_TOO_LONG, DEVICE_FAILED = 75, 76  # exit codes of a worker that ends itself
POLL_S = 1.0
STEP_READS = 15  # a step that reads a whole slide, a write to disk and a batch on the device may take as long as so many tiles
MOVED_S = 1e-5  # of processor time: a read that returns takes more
OnHang = Literal["exit", "raise"]
T = TypeVar("T")


@dataclass
class Watched:
    """Something that is done by a thread, and may take so long."""

    file: str
    what: str
    limit: float  # seconds in all
    idle_limit: float | None  # seconds in which its thread does nothing at all: it waits for a drive or a lock
    clock: int | None  # of the processor time of its thread; None where the system has none
    began: float
    seen: float = -1.0  # processor time
    moved: float = 0.0  # when that last changed

    def late(self, now: float) -> str:
        """Why it counts as hung; nothing while it does not."""
        if now > self.began + self.limit:
            return f"{self.what} took longer than {self.limit:g} s"
        if self.idle_limit is None or self.clock is None:
            return ""
        used = time.clock_gettime(self.clock)
        if used > self.seen + MOVED_S:
            self.seen, self.moved = used, now
        return f"{self.what} has not moved for {self.idle_limit:g} s" if now > self.moved + self.idle_limit else ""


class Watchdog:
    """Call it for a context that has so many seconds."""

    def __init__(self, timeout_s: float, on_hang: OnHang) -> None:
        """`timeout_s` : of what names no other limit"""
        self.timeout_s = timeout_s
        self._on_hang = on_hang
        self._running: dict[object, Watched] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        if on_hang == "exit":
            self._thread.start()

    @contextmanager
    def __call__(self, file: str, what: str, timeout_s: float | None = None, idle_s: float | None = None) -> Iterator[None]:
        """`idle_s` : in which this thread may do nothing at all"""
        mine, clock = object(), None
        if idle_s is not None and hasattr(time, "pthread_getcpuclockid"):
            clock = time.pthread_getcpuclockid(threading.get_ident())
        self._running[mine] = Watched(file, what, timeout_s or self.timeout_s, idle_s, clock, time.monotonic())
        try:
            yield
        finally:
            del self._running[mine]

    def overdue(self) -> tuple[str, str] | None:
        """A file with which something takes too long, and what; None if nothing does."""
        now = time.monotonic()
        for watched in tuple(self._running.values()):
            if why := watched.late(now):
                return watched.file, why
        return None

    def result(self, future: Future[T], path: Path) -> T:
        """What a future brings. Raises TileReadError, where a library uses us, as soon as something hangs."""
        while self._on_hang == "raise":
            try:
                return future.result(timeout=min(POLL_S, self.timeout_s))
            except TimeoutError:
                if future.done():
                    break  # the error was the future's own
                if late := self.overdue():
                    raise TileReadError(
                        path, f"{late[1]}. Look at the drive it lies on; the file may be damaged.", Code.TIMEOUT
                    ) from None
        return future.result()

    def _watch(self) -> None:
        while not self._stop.wait(min(POLL_S, self.timeout_s / 4)):
            if late := self.overdue():
                sys.stderr.write(f"pathovit: {': '.join(late)}; this worker ends itself.\n")
                sys.stderr.flush()
                os._exit(TOOK_TOO_LONG)

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
