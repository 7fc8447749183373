"""Fingerprints: the content of a file that was looked at before is known by its size, time and inode."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pathovit.outputs.sealed import read_sealed, sealed
from pathovit.slides.identity import FileState


@dataclass(frozen=True)
class Note:
    """What is remembered of a file: the digest of its content, and by what it is seen that the file is the same."""

    sha256: str
    state: FileState
    before: tuple[str, ...] = ()  # digests of what the file held earlier

    def to_bytes(self) -> bytes:
        return sealed({"state": self.state, "sha256": self.sha256, "before": self.before})

    @classmethod
    def read(cls, path: Path) -> Note | None:
        """None where there is none, or a damaged one: then the digest is computed again."""
        try:
            found = read_sealed(path)
            state = tuple((int(size), int(time), int(inode)) for size, time, inode in found["state"])
            return cls(str(found["sha256"]), state, tuple(map(str, found.get("before", ()))))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def path_key(path: Path) -> str:
    """What stands for a path on disk."""
    return hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
