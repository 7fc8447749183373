"""One run at a time writes to an output folder."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathovit.errors import OutputInUseError
from pathovit.store import storage_errors


@contextmanager
def lease(out: Path) -> Iterator[None]:
    """Hold the folder. The kernel gives the lock back when its owner dies, however it dies; no clock is involved.

    Raises
    ------
    OutputInUseError : another run holds it; the message says which
    StorageError : the folder cannot be made or written
    """
    import fcntl

    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 4096, 0).decode("utf-8", "replace").strip() or "unknown"
            raise OutputInUseError(
                f"{out}: another run is writing here ({owner}). Wait for it, or choose another --out."
            ) from error
        except OSError as error:  # some network file systems have no locks
            sys.stderr.write(f"pathovit: {out} cannot be locked ({error.strerror}): make sure that no other run writes here.\n")
        with storage_errors(out):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        yield
    finally:
        os.close(handle)
