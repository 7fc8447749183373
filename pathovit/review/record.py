"""The record of a review: append-only, hash-chained, on the disk before anybody is told that it is.

    slides/<slide_id>/review.jsonl    events on the slide, a line each
    review/record.jsonl               events on the folder: readers added, models taught, labels written
    review/head.json                  number and digest of the newest event, and where the next is being written

Every event names the one before it in the folder, and the one before it in its file: so an edit, a swap, or a line, an end or a file that is
missing breaks a chain. Whoever can write to all files can write a new history; against that, note the newest digest elsewhere (`audit verify` prints it).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pathovit.errors import SettingsError
from pathovit.files import fsync, read_bytes, storage_errors, to_json, write_atomically
from pathovit.outputs.folder import OutFolder

FOLDER, NAME, HEAD = "review", "review.jsonl", "head.json"
FORMAT = 1
NOTHING = ""  # digest before the first event
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """One line of the record."""

    number: int  # in the folder, from 1
    time: str  # UTC
    slide_id: str  # empty for the folder
    reader: str
    role: str
    said: Json  # what was done: `event` and its fields
    seen: Json  # what was visible
    about: Json  # model, weights, code
    before: str  # digest of the folder's event before
    before_here: str  # digest of the event before in the same file
    digest: str

    @property
    def kind(self) -> str:
        return str(self.said["event"])

    def to_json(self) -> dict[str, object]:
        return {**self._sealed(), "digest": self.digest}

    def _sealed(self) -> dict[str, object]:
        return {
            "format": FORMAT, "number": self.number, "time": self.time, "slide_id": self.slide_id, "reader": self.reader, "role": self.role,
            "said": dict(self.said), "seen": dict(self.seen), "about": dict(self.about), "before": self.before, "before_here": self.before_here,
        }  # fmt: skip

    def computed_digest(self) -> str:
        return hashlib.sha256(json.dumps(self._sealed(), sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    @classmethod
    def from_line(cls, line: bytes) -> Event:
        """Raises ValueError for a line that is no event, or was changed."""
        try:
            found = json.loads(line)
            if found["format"] != FORMAT:
                raise ValueError(f"of another format, {found['format']!r}")
            event = cls(
                found["number"], found["time"], found["slide_id"], found["reader"], found["role"], found["said"], found["seen"],
                found["about"], found["before"], found["before_here"], found["digest"],
            )  # fmt: skip
            extra = set(found) - set(event.to_json())
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"no event ({error!r})") from error
        if extra or event.computed_digest() != event.digest or event.to_line() != line:
            raise ValueError("changed: it does not fit its digest")
        return event

    def to_line(self) -> bytes:
        return to_json(self.to_json(), indent=None)


@dataclass(frozen=True)
class Head:
    """The newest event of a folder."""

    number: int = 0
    digest: str = NOTHING
    writing: str | None = None  # slide_id of the file to which the next one is being added


@dataclass(frozen=True)
class Record:
    """The record of the review of an output folder. Several processes may write to it, one after the other."""

    out: OutFolder

    @property
    def folder(self) -> Path:
        return self.out.path / FOLDER

    def path(self, slide_id: str) -> Path:
        return self.out.slide(slide_id).path / NAME if slide_id else self.folder / "record.jsonl"

    def append(
        self, slide_id: str, reader: str, role: str, said: Json, seen: Json | None = None, about: Json | None = None
    ) -> Event:
        """Write an event; it is on the disk when this returns.

        Raises
        ------
        SettingsError : the record was changed from outside, so that nothing can follow on it
        StorageError : it cannot be written
        """
        path = self.path(slide_id)
        with self._held():
            head, last = self._caught_up(), self._last(path, self.head())
            event = Event(
                head.number + 1, datetime.now(UTC).isoformat(timespec="milliseconds"), slide_id, reader, role, said, seen or {}, about or {},
                head.digest, last.digest if last else NOTHING, "",
            )  # fmt: skip
            event = Event(**{**event.__dict__, "digest": event.computed_digest()})
            self._write_head(Head(head.number, head.digest, slide_id))
            with storage_errors(path):
                _append(path, event.to_line())
            self._write_head(Head(event.number, event.digest))
        return event

    def _caught_up(self) -> Head:
        """The head, after a power cut between a line and it."""
        head = self.head()
        if (
            head.writing is not None
            and (last := self._last(self.path(head.writing), head)) is not None
            and last.number > head.number
        ):
            return Head(last.number, last.digest)
        return head

    def _write_head(self, head: Head) -> None:
        write_atomically(self.folder / HEAD, to_json({"number": head.number, "digest": head.digest, "writing": head.writing}))

    def head(self) -> Head:
        """Raises SettingsError where it is damaged."""
        try:
            found = json.loads(read_bytes(self.folder / HEAD))
            return Head(int(found["number"]), str(found["digest"]), found["writing"])
        except FileNotFoundError:
            return Head()
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{self.folder / HEAD}: damaged. See: pathovit audit verify {self.out.path}") from error

    def events(self, slide_id: str) -> list[Event]:
        """Events of a slide, or of the folder, in order; an end that was never finished does not count.

        Raises
        ------
        SettingsError : a line was changed, and is not believed
        """
        path = self.path(slide_id)
        try:
            return [Event.from_line(line) for line in _lines(path)[0]]
        except ValueError as error:
            raise SettingsError(f"{path}: the record is {error}. See: pathovit audit verify {self.out.path}") from error

    def files(self) -> list[tuple[str, Path]]:
        """slide_id and file of all parts of the record that are there."""
        found = [(folder.slide_id, folder.path / NAME) for folder in self.out.slides()]
        return [(slide_id, path) for slide_id, path in [("", self.path("")), *found] if path.is_file()]

    def _last(self, path: Path, head: Head) -> Event | None:
        if path.is_symlink():
            raise SettingsError(f"{path}: it is a link, and is not followed. Put the record itself there.")
        lines, torn = _lines(path)
        if torn and (head.writing is None or self.path(head.writing) != path):
            raise SettingsError(f"{path}: its end was cut off. See: pathovit audit verify {self.out.path}")
        if torn:  # a power cut: it was never acknowledged to anybody
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - len(torn))
        try:
            return Event.from_line(lines[-1]) if lines else None
        except ValueError as error:
            raise SettingsError(f"{path}: the record is {error}. See: pathovit audit verify {self.out.path}") from error

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nobody writes meanwhile, where there is something to write to."""
        if not self.folder.is_dir():
            yield
            return
        with self._held():
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _lines(path: Path) -> tuple[list[bytes], bytes]:
    """Whole lines, with their ends; and what was begun and not finished."""
    try:
        found = read_bytes(path).splitlines(keepends=True)
    except FileNotFoundError:
        return [], b""
    torn = found.pop() if found and not found[-1].endswith(b"\n") else b""
    return found, torn


def _append(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        written = 0
        while written < len(line):
            written += os.write(handle, line[written:])
        os.fsync(handle)
    finally:
        os.close(handle)
    if is_new:
        fsync(path.parent)
