"""log.private.txt: what was said during the runs into a folder, and how every slide ended, with the time. For its owner alone: it has names."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pathovit import __version__
from pathovit.errors import SettingsError
from pathovit.files import storage_errors
from pathovit.outputs.names import LOG
from pathovit.run.progress import outcome
from pathovit.tables import Say
from pathovit.text import plain

if TYPE_CHECKING:
    from pathovit.run.drive import Listener
    from pathovit.run.schedule import SlideState


class Diary:
    """Lines at the end of the log of a folder; runs that join write to the same one, a line at a time."""

    def __init__(self, out: Path, command: Sequence[str]) -> None:
        self._path = out / LOG
        self._told: set[int] = set()
        self._lock = threading.Lock()
        self._closed = self._path.exists() and not os.access(self._path, os.W_OK)  # another user's, in a folder of several
        self.note(f"pathovit {__version__} begins: {' '.join(command)}")

    def note(self, text: str) -> None:
        """Raises StorageError where nothing can be written."""
        if self._closed:
            return
        lines = [plain(line) for line in text.splitlines()] or [""]
        whole = "\n    ".join([f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {lines[0]}", *lines[1:]])
        if self._path.is_symlink():  # of a folder that somebody gave: what it leads to is not written to
            raise SettingsError(f"{self._path} is a link, and is not followed. Remove it.")
        with storage_errors(self._path):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.write(handle, f"{whole}\n".encode("utf-8", "replace"))
            finally:
                os.close(handle)

    def telling(self, say: Say) -> Say:
        """What is said, noted, too."""

        def told(text: str) -> None:
            self.note(text)
            say(text)

        return told

    def following(self, changed: Listener) -> Listener:
        """States of slides, of which the last is noted, too: with the whole reason where it failed."""

        def seen(state: SlideState) -> None:
            with self._lock:
                ends = state.over and state.index not in self._told
                self._told |= {state.index} if ends else set()
            if ends:
                self.note(f"{state.job.path.name}: " + (f"failed: {state.reason}" if state.stage == "failed" else outcome(state)))
            changed(state)

        return seen
