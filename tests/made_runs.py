"""What a run left in its folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.names import PRIVATE
from pathovit.outputs.sealed import read_sealed, write_sealed

HOSTILE = 'it\'s [b]a<img src=x onerror=alert(1)>  "ü" slide'


def stored_bytes(out: Path) -> dict[str, bytes]:
    """Every file of every feature store, by path."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("slides/*/features.zarr/**/*")) if p.is_file()}


def rewrite(path: Path, **changes: Any) -> None:
    """Give a sealed record other values, as whoever wrote it would have."""
    write_sealed(path, read_sealed(path) | changes)


def folder_of(out: Path, stem: str) -> Path:
    """The folder of the slide whose file is called so."""
    found = OutFolder(out)
    (folder,) = (
        one.path for one in found.slides() if stem in (Path(found.name_of(one.slide_id)).stem, one.slide_id.rsplit("-", 1)[0])
    )
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    """predictions.csv, with the names of files."""
    found = OutFolder(out)
    with (out / "predictions.csv").open(newline="") as file:
        return [row | {"file": found.name_of(row["file"] or row["slide_id"]) or row["file"]} for row in csv.DictReader(file)]


def move_away(out: Path, to: str = "/gone") -> None:
    """As if the slides had been moved: no run knows where they are."""
    known = read_sealed(out / PRIVATE)["files"]
    rewrite(out / PRIVATE, files={name: about | {"path": f"{to}/{Path(about['path']).name}"} for name, about in known.items()})
