"""Slides of a folder of results by the stem of their file's name, which no record tells, but their user may know."""

from __future__ import annotations

from pathlib import Path

from pathovit.outputs.folder import OutFolder, SlideFolder


def by_stem(folder: Path) -> dict[str, SlideFolder]:
    """Raises SystemExit where two slides have the same name: of which one the truth is could not be told."""
    out = OutFolder(folder)
    found: dict[str, SlideFolder] = {}
    for record in out.embedded():
        stem = out.called(record).stem
        if stem in found:
            raise SystemExit(f"{folder}: two slides are called {stem}")
        found[stem] = out.slide(record.slide_id)
    return found
