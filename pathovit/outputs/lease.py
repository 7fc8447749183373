"""Who writes to an output folder: one run; or several that join, each slide being one's.

The kernel gives a lock back when its owner dies, however it dies; no clock is involved.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pathovit.errors import OutputInUseError, SettingsError, StorageError
from pathovit.files import storage_errors

LOCK = ".lock"
LEASES, TABLES = ".leases", "tables"
LOOK_S = 0.1  # between two looks whether another run has written its tables
NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


@dataclass
class Leases:
    """Which slides of a folder are this run's, and when it may write what is made of all of them.

    A run that has the folder to itself has all of it.
    """

    out: Path
    joined: bool = False
    _held: dict[str, int] = field(default_factory=dict)

    def take(self, slide: str) -> bool:
        """Whether a slide is this run's now; another run may have it."""
        if not self.joined or slide in self._held:
            return True
        path = self.out / LEASES / slide
        while True:
            handle, _ = _open_lock(path)
            try:
                fcntl.flock(handle, NOW)
            except BlockingIOError:
                os.close(handle)
                return False
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:  # else its owner took it away meanwhile
                self._held[slide] = handle
                return True
            os.close(handle)

    def give_back(self, slide: str) -> None:
        if (handle := self._held.pop(slide, None)) is not None:
            (self.out / LEASES / slide).unlink(missing_ok=True)
            os.close(handle)

    def close(self) -> None:
        for slide in [*self._held]:
            self.give_back(slide)

    @contextmanager
    def tables(self, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """While this lasts no other run reads and writes what is made of all slides."""
        if not self.joined:
            yield
            return
        folder = self.out / LEASES
        if folder.is_symlink():
            raise SettingsError(f"{folder} is a link, and is not followed. Remove it, or choose another --out.")
        folder.mkdir(exist_ok=True)
        handle, _ = _open_lock(folder / TABLES)
        try:
            try:
                free = _locked(handle, NOW)
            except OSError as error:
                raise SettingsError(
                    f"{self.out} cannot be locked ({error.strerror}), so that no run can join here. Use one run."
                ) from error
            if not free:
                say("waiting for another run, which writes tables")
                while not _locked(handle, NOW):
                    time.sleep(LOOK_S)
            yield
        finally:
            os.close(handle)


@contextmanager
def lease(out: Path, option: str = "--out", join: bool = False, alone: Callable[[], None] = lambda: None) -> Iterator[Leases]:
    """Hold the folder, by oneself or together with other runs that join.

    Parameters
    ----------
    option : that names another folder, for messages
    alone : called as it begins, if nobody else is at work there

    Raises
    ------
    OutputInUseError : another run holds it; the message says which
    SettingsError : there can be no such folder, or its lock is a link
    StorageError : the folder cannot be made or written
    """
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
    leases = Leases(out, join)
    try:
        with leases.tables():
            _hold(handle, out, option, join, alone)
        if ours:
            with storage_errors(out):
                os.ftruncate(handle, 0)
                owner = {"host": socket.gethostname(), "process": os.getpid(), **({"join": True} if join else {})}
                os.pwrite(handle, json.dumps(owner).encode(), 0)
        try:
            yield leases
        finally:
            leases.close()
            if ours and not join:
                os.ftruncate(handle, 0)  # nobody holds it any more
    finally:
        os.close(handle)


def _hold(handle: int, out: Path, option: str, join: bool, alone: Callable[[], None]) -> None:
    """Lock the folder, for oneself or with others."""
    try:
        nobody_else = _locked(handle, NOW)
    except OSError as error:  # some network file systems have no locks
        sys.stderr.write(f"pathovit: {out} cannot be locked ({error.strerror}): make sure that no other run writes here.\n")
        nobody_else = True
    if nobody_else:
        alone()
        if join:
            fcntl.flock(handle, fcntl.LOCK_SH)
        return
    if join and _locked(handle, fcntl.LOCK_SH | fcntl.LOCK_NB):
        return
    owner = os.pread(handle, 4096, 0).decode("utf-8", "replace").strip() or "unknown"
    remedy = "begin both with --join" if join or '"join"' not in owner else "join it with --join"
    raise OutputInUseError(f"{out}: another run is writing here ({owner}). Wait for it, {remedy}, or choose another {option}.")


def _locked(handle: int, how: int) -> bool:
    """Whether a file is locked now; others may hold it. Raises OSError where there are no locks."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    return True


def _open_lock(path: Path) -> tuple[int, bool]:
    """The lock, and whether it may be written: a colleague's is held all the same. A link's target is not ours."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), True  # less what the user's mask takes away
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW), False
