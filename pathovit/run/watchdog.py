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
from pathlib import Path
from typing import Literal, TypeVar

from pathovit.errors import TileReadError
from pathovit.reasons import Code

TOOK_TOO_LONG, DEVICE_FAILED = 75, 76  # exit codes of a worker that ends itself
POLL_S = 1.0
OnHang = Literal["exit", "raise"]
T = TypeVar("T")


class Watchdog:
    """Call it for a context that has so many seconds."""

    def __init__(self, timeout_s: float, on_hang: OnHang) -> None:
        """`timeout_s` : of what names no other limit"""
        self.timeout_s = timeout_s
        self._on_hang = on_hang
        self._running: dict[object, tuple[float, float, str, str]] = {}  # deadline, limit, file, what is done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        if on_hang == "exit":
            self._thread.start()

    @contextmanager
    def __call__(self, file: str, what: str, timeout_s: float | None = None) -> Iterator[None]:
        limit, mine = timeout_s or self.timeout_s, object()
        self._running[mine] = (time.monotonic() + limit, limit, file, what)
        try:
            yield
        finally:
            del self._running[mine]

    def overdue(self) -> tuple[str, str] | None:
        """A file with which something takes too long, and what; None if nothing does."""
        now = time.monotonic()
        for deadline, limit, file, what in tuple(self._running.values()):
            if now > deadline:
                return file, f"{what} took longer than {limit:g} s"
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
