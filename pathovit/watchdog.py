"""Watchdog: ends a worker that hangs."""

from __future__ import annotations

import os
import sys
import threading
import time

TOOK_TOO_LONG = 75  # exit code of a worker that ends itself


class Watchdog:
    """Ends this process if something takes too long: a hanging decoder cannot be interrupted otherwise.

    The process is a worker; its nanny starts another, and a slide that does this twice fails alone.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._started: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.timeout_s / 4)):
            now = time.monotonic()
            if any(now - started > self.timeout_s for started in tuple(self._started.values())):
                sys.stderr.write(f"pathovit: reading took longer than {self.timeout_s:g} s; this worker ends itself.\n")
                sys.stderr.flush()
                os._exit(TOOK_TOO_LONG)

    def __enter__(self) -> None:
        self._started[threading.get_ident()] = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._started.pop(threading.get_ident(), None)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
