"""Which slide a file is: the digest of its content, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from pathovit.errors import SlideOpenError, slide_errors
from pathovit.files import open_patiently, tried_again
from pathovit.reasons import Code

SERIES = 0x0020000E  # tag of SeriesInstanceUID
LIST_BYTES = 64 * 2**10  # as many as OpenSlide reads of a .vms


def dicom_series(path: Path) -> str:
    """SeriesInstanceUID of a DICOM file itself; "" if there is none. The series that it refers to do not count."""
    if not path.is_file():
        return ""
    with slide_errors(path):
        about = tried_again(path.stat)
    return _dicom_series(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=100_000)
def _dicom_series(path: Path, *state: int) -> str:
    """The same, of a file that is as it was: every look at a slide of a thousand files asks for all of them."""
    import pydicom
    from pydicom.filereader import read_partial

    with slide_errors(path), open_patiently(path) as file:
        try:
            found = read_partial(file, lambda tag, vr, length: tag > SERIES, specific_tags=[SERIES])
        except pydicom.errors.InvalidDicomError:
            return ""
        except OSError:
            raise
        except Exception:  # a damaged file can raise anything in a parser; OpenSlide says what is wrong with it
            return ""
    return str(found.get("SeriesInstanceUID", "") or "")


def slide_files(path: Path) -> list[Path]:
    """All files that make up a slide: the file itself, MRXS data beside it, what a VMS or VMU names, the files of a DICOM series."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        series = dicom_series(path)
        if not series:  # what says of none which it belongs to is alone
            return [path]
        beside = sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".dcm" and p.is_file())
        return [p for p in beside if dicom_series(p) == series]
    if suffix == ".mrxs":
        data = path.with_suffix("")
        inside = sorted(p for p in data.rglob("*") if p.is_file()) if data.is_dir() else []
        return [path, *inside]
    if suffix in (".vms", ".vmu"):
        with slide_errors(path), open_patiently(path) as file:
            lines = file.read(LIST_BYTES).decode("utf-8", "surrogateescape").splitlines()
        named = {value.strip() for _, equals, value in (line.partition("=") for line in lines) if equals and "\0" not in value}
        return [path, *sorted(p for name in named if name and (p := path.parent / name).is_file() and p != path)]
    return [path]


FileState = tuple[tuple[int, int, int], ...]  # size, time and inode of every file of a slide


def file_state(path: Path) -> FileState:
    """What changes when a slide's files are replaced or written to."""
    with slide_errors(path):
        stats = [tried_again(file.stat) for file in slide_files(path)]
    return tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats)


def require_unchanged(path: Path, state: FileState, sha256: str) -> FileState:
    """The state of a slide's files, which hold what they held. Raises SlideOpenError where they are others than those looked at first."""
    now = file_state(path)
    if now != state and content_sha256(path) != sha256:  # a file may be touched, and be the same
        raise SlideOpenError(
            path,
            "changed while it was read: it was replaced, or is still being copied. Run the same command again when it is whole.",
            Code.CHANGED,
        )
    return now


def content_sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of all bytes of a slide; of several files: names and bytes, in order of name."""
    files = slide_files(path)
    digest = hashlib.sha256()
    with slide_errors(path):
        for part in files:
            if len(files) > 1:
                digest.update(part.name.encode("utf-8", "surrogateescape") + b"\0")
            with open_patiently(part) as file:
                while block := file.read(2**22):
                    digest.update(block)
    return digest.hexdigest()


def slug(name: str) -> str:
    """The stem of a file's name in ASCII: safe in paths, tables and HTML."""
    ascii_stem = unicodedata.normalize("NFKD", Path(name).stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", ascii_stem).strip("-")[:60] or "slide"


def slide_id(name: str, sha256: str) -> str:
    """The slug of a file's name, if that may be told, and 12 hex digits of its content: never ambiguous."""
    return f"{slug(name)}-{sha256[:12]}"
