"""Files: read from storage that fails now and then, written whole or not at all, known by their digests, named by their kinds.

Network drives end single reads with an error that is gone a moment later.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pathovit.errors import PASSING, SettingsError, StorageError
from pathovit.text import plain

SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".tif", ".tiff", ".dcm", ".vms", ".vmu", ".svslide", ".czi")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
TRIES, FIRST_PAUSE_S = 8, 0.02  # the pause doubles: 2.5 s together
BLOCK_BYTES = 2**22
HARMLESS = re.compile(r"[+-]|[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
PROBES = 1000
T = TypeVar("T")


_lock = threading.Lock()
_retries = 0


def note_retry(times: int = 1) -> None:
    """Something was read or written again after an error that passed; here, or in a worker."""
    global _retries
    with _lock:
        _retries += times


def take_retries() -> int:
    """How often that happened in this process since it was last asked."""
    global _retries
    with _lock:
        found, _retries = _retries, 0
    return found


def fails_now_and_then(path: Path) -> bool:
    """Whether single reads of a file fail: of a thousand, one at least."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        return error.errno in PASSING
    try:
        size = os.fstat(handle).st_size
        for place in range(PROBES):
            os.pread(handle, 16, size * place // PROBES)
    except OSError as error:
        return error.errno in PASSING
    finally:
        os.close(handle)
    return False


def tried_again(read: Callable[[], T]) -> T:
    """What `read` returns; it is called again after an error that may pass. The last error is raised."""
    for attempt in itertools.count():
        try:
            return read()
        except OSError as error:
            pause_s = pause_after(error, attempt)
        time.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def pause_after(error: OSError, attempt: int) -> float:
    """Seconds after which to try again what ended with an error that may pass; any other, and that of the last attempt, is raised."""
    if error.errno not in PASSING or attempt == TRIES - 1:
        raise error
    note_retry()
    return float(FIRST_PAUSE_S * 2**attempt)


class _PatientFile(io.FileIO):
    def readinto(self, buffer: Any) -> int | None:
        return tried_again(lambda: io.FileIO.readinto(self, buffer))

    def readall(self) -> bytes:  # block by block: what was read before an error is kept
        blocks = []
        while block := tried_again(lambda: io.FileIO.read(self, BLOCK_BYTES)):
            blocks.append(block)
        return b"".join(blocks)


def open_patiently(path: Path) -> io.BufferedReader:
    """A file to read, whose single reads are tried again."""
    return io.BufferedReader(tried_again(lambda: _PatientFile(path, "rb")))


def read_bytes(path: Path) -> bytes:
    with open_patiently(path) as file:
        return file.read()


def open_text(path: Path, encoding: str = "utf-8") -> io.TextIOWrapper:
    """A text to read, its line ends as they are."""
    return io.TextIOWrapper(open_patiently(path), encoding, newline="")


def read_at(file: int, length: int, offset: int) -> bytes:
    """Bytes at a place of an open file; fewer only at its end."""
    return tried_again(lambda: os.pread(file, length, offset))


def slide_stem(name: str) -> str:
    """A file's name without its suffix, if that is one of slides: `P10.3` has none."""
    lower = name.lower()
    for suffix in (".ome.tif", ".ome.tiff", *SLIDE_SUFFIXES, *FLAT_SUFFIXES):
        if lower.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or faulty disk into a StorageError that says so."""
    try:
        yield
    except StorageError:
        raise
    except (FileExistsError, NotADirectoryError) as error:
        raise SettingsError(
            f"{path}: the output cannot be a folder here, there is a file of that name. Choose another --out."
        ) from error
    except OSError as error:
        if error.errno in FULL_DISK or isinstance(error, PermissionError):
            first = {errno.ENOSPC: "Free some space", errno.EDQUOT: "Free some space", errno.EIO: "Look at the drive"}
            raise StorageError(
                f"{path}: the output cannot be written ({error.strerror}). {first.get(error.errno or 0, 'Make it writable')}, or choose another --out; "
                "the same command then goes on where it stopped."
            ) from error
        raise


def write_atomically(path: Path, content: bytes, private: bool = False) -> None:
    """Put a file in place whole: temporary name, fsync, rename, fsync of the folder. A `private` one is its owner's alone."""
    with storage_errors(path):
        tried_again(lambda: _put_in_place(path, content, 0o600 if private else 0o666))


def _beside(path: Path) -> Path:
    """A temporary name, in the same folder; of a name that is as long as names can be, its end."""
    end = os.fsencode(path.name)[-120:].decode("utf-8", "ignore")
    return path.with_name(f".{end}.{uuid.uuid4().hex[:8]}.partial")


def _put_in_place(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


@contextmanager
def put_whole(path: Path) -> Iterator[Path]:
    """A place to write a file or folder at, for libraries that do it themselves; it gets its name when all is written, else nothing stays."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        try:
            yield temporary
            for written in (temporary, *temporary.rglob("*")):
                fsync(written)
            before = temporary.with_name(f".{temporary.name[1:]}.before.partial")
            if path.is_dir():  # a folder cannot be replaced by another one
                path.replace(before)
            temporary.replace(path)
            shutil.rmtree(before, ignore_errors=True)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)
        fsync(path.parent)


def to_json(value: Any, indent: int | None = 1) -> bytes:
    """UTF-8 JSON; NaN and infinities are refused, for other programs cannot read them. Without `indent` it is written much faster."""
    return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def fsync(path: Path) -> None:
    """Put a file, or a folder's list of files, on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    with open_patiently(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_table(names: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """A table as UTF-8 text, a row for each mapping; cells that a row lacks are empty, and no cell is run as a formula."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue().encode("utf-8", "replace")


def cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula is quoted; numbers, and a sign alone, are none."""
    if isinstance(value, str):
        value = plain(value)
        is_plain = HARMLESS.fullmatch(value) or value[:1] not in ("=", "+", "-", "@", "\t", "\r")
        return value if is_plain else f"'{value}"
    return value
