"""The inventory: which slides an output folder holds, and the digests of what was made of all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathovit import RESEARCH_USE
from pathovit.files import file_sha256
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.lease import Leases, lease
from pathovit.outputs.records import DONE
from pathovit.outputs.runs import RUN
from pathovit.outputs.sealed import read_sealed, write_sealed

INVENTORY = ".inventory.json"
FOLDERS = ("tissue", "suggested")  # of files that are made of several slides
Files = Mapping[str, tuple[str, int, int]]  # path within the folder -> SHA-256, size, time


@dataclass(frozen=True)
class Inventory:
    """What an output folder held when it was last written to."""

    slides: frozenset[str]
    files: Files = field(default_factory=dict)

    @classmethod
    def read(cls, out: OutFolder) -> Inventory | None:
        """None where there is none: of a version before 2026-11-28, or before the first run ended. Raises ValueError for a damaged one."""
        try:
            found = read_sealed(out.path / INVENTORY)
            return cls(
                frozenset(found["slides"]), {str(name): (str(a), int(b), int(c)) for name, (a, b, c) in found["files"].items()}
            )
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"is damaged ({error!r})") from error

    def to_json(self) -> dict[str, Any]:
        return {
            "research_use": RESEARCH_USE,
            "slides": sorted(self.slides),
            "files": {name: list(self.files[name]) for name in sorted(self.files)},
        }


def common_files(out: OutFolder) -> Iterator[str]:
    """Files that were made of several slides, within the folder."""
    for path in (out.predictions, out.report):
        if path.is_file() and not path.is_symlink():
            yield path.name
    for name in FOLDERS:
        for path in sorted((out.path / name).rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.endswith(".partial"):
                yield path.relative_to(out.path).as_posix()


def write_inventory(out: OutFolder) -> None:
    """Note what lies there now. A file that looks as it did when it was noted keeps its digest, so that damage is not made good by it."""
    try:
        before = Inventory.read(out)
    except ValueError:
        before = None
    known = before.files if before else {}
    files = {}
    for name in common_files(out):
        about = (out.path / name).stat()
        look = about.st_size, about.st_mtime_ns
        files[name] = known[name] if name in known and known[name][1:] == look else (file_sha256(out.path / name), *look)
    there = {folder.slide_id for folder in out.slides() if (folder.path / DONE).is_file()}
    write_sealed(out.path / INVENTORY, Inventory(frozenset(there), files).to_json())


@contextmanager
def holding(path: Path, join: bool = False) -> Iterator[tuple[OutFolder, Leases]]:
    """Hold an output folder, as `lease` does; what was half written is removed, and what lies there at the end is noted."""
    out = OutFolder(path)
    with lease(path, join=join, alone=out.sweep) as leases:
        try:
            yield out, leases
        finally:
            with leases.tables():
                if (path / RUN).is_file():
                    write_inventory(out)


@contextmanager
def writing(path: Path) -> Iterator[OutFolder]:
    """Hold an output folder by oneself."""
    with holding(path) as (out, _):
        yield out
