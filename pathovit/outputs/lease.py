"""One run at a time writes to an output folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathovit.errors import OutputInUseError, SettingsError, StorageError
from pathovit.files import storage_errors

LOCK = ".lock"


@contextmanager
def lease(out: Path, option: str = "--out") -> Iterator[None]:
    """Hold the folder. The kernel gives the lock back when its owner dies, however it dies; no clock is involved.

    Parameters
    ----------
    option : that names another folder, for messages

    Raises
    ------
    OutputInUseError : another run holds it; the message says which
    SettingsError : there can be no such folder, or its lock is a link
    StorageError : the folder cannot be made or written
    """
    import fcntl

    try:
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            handle, ours = _open_lock(out / LOCK)
    except (StorageError, SettingsError):
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SettingsError(
                f"{out / '.lock'} is a link, and is not followed. Remove it, or choose another {option}."
            ) from error
        raise SettingsError(f"{option} {out}: there can be no such folder ({error.strerror}). Choose another one.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 4096, 0).decode("utf-8", "replace").strip() or "unknown"
            raise OutputInUseError(
                f"{out}: another run is writing here ({owner}). Wait for it, or choose another {option}."
            ) from error
        except OSError as error:  # some network file systems have no locks
            sys.stderr.write(f"pathovit: {out} cannot be locked ({error.strerror}): make sure that no other run writes here.\n")
        if ours:
            with storage_errors(out):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        try:
            yield
        finally:
            if ours:
                os.ftruncate(handle, 0)  # nobody holds it any more
    finally:
        os.close(handle)


def _open_lock(path: Path) -> tuple[int, bool]:
    """The lock, and whether it may be written: a colleague's is held all the same. A link's target is not ours."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), True  # less what the user's mask takes away
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW), False
