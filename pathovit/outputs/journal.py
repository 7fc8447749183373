"""The journal of a slide's features: a file for each committed chunk, which vouches for it until all are sealed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathovit.files import read_bytes, write_atomically

Span = tuple[float, float]


@dataclass(frozen=True)
class Entry:
    """It vouches for a chunk, and says when that was made."""

    chunk: int
    sha256: list[str]
    span: Span


@dataclass(frozen=True)
class Journal:
    path: Path  # a folder; where it is, some features are being made

    def add(self, entry: Entry) -> None:
        line = json.dumps({"chunk": entry.chunk, "sha256": entry.sha256, "span": entry.span})
        self.path.mkdir(exist_ok=True)
        write_atomically(self.path / f"{entry.chunk:06d}.json", line.encode())

    def entries(self) -> list[Entry]:
        found = []
        for path in sorted(self.path.glob("[0-9]*.json")) if self.path.is_dir() else []:
            try:
                line = json.loads(read_bytes(path))
                begun, ended = line.get("span", (0.0, 0.0))
                found.append(Entry(int(line["chunk"]), [str(digest) for digest in line["sha256"]], (float(begun), float(ended))))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # torn: nobody vouches for that chunk, and it is computed again
        return found


def covered_s(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of the spans lies: parts run side by side, and runs are interrupted."""
    total, end = 0.0, 0.0
    for begun, ended in sorted(spans):
        total += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return total
