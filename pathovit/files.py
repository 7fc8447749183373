"""Files on storage that fails now and then: network drives end single reads with an error that is gone a moment later."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO if hasattr(errno, "EREMOTEIO") else errno.EIO)
TRIES, FIRST_PAUSE_S = 6, 0.02  # the pause doubles: 0.6 s together
T = TypeVar("T")


def tried_again(read: Callable[[], T]) -> T:
    """What `read` returns; it is called again after an error that may pass. The last error is raised."""
    for attempt in range(TRIES):
        try:
            return read()
        except OSError as error:
            if error.errno not in PASSING or attempt == TRIES - 1:
                raise
        time.sleep(FIRST_PAUSE_S * 2**attempt)
    raise AssertionError("every attempt returned or raised")


class _PatientFile(io.FileIO):
    def readinto(self, buffer: Any) -> int | None:
        return tried_again(lambda: io.FileIO.readinto(self, buffer))

    def readall(self) -> bytes:
        return tried_again(lambda: io.FileIO.readall(self))


def open_patiently(path: Path) -> io.BufferedReader:
    """A file to read, whose single reads are tried again."""
    return io.BufferedReader(tried_again(lambda: _PatientFile(path, "rb")))


def read_at(file: int, length: int, offset: int) -> bytes:
    """Bytes at a place of an open file; fewer only at its end."""
    return tried_again(lambda: os.pread(file, length, offset))
