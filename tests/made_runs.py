"""What a run left in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pathovit.outputs.sealed import read_sealed, write_sealed

HOSTILE = 'it\'s [b]a<img src=x onerror=alert(1)>  "ü" slide'


def stored_bytes(out: Path) -> dict[str, bytes]:
    """Every file of every feature store, by path."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("slides/*/features.zarr/**/*")) if p.is_file()}


def rewrite(path: Path, **changes: Any) -> None:
    """Give a sealed record other values, as whoever wrote it would have."""
    write_sealed(path, read_sealed(path) | changes)


def folder_of(out: Path, stem: str) -> Path:
    (folder,) = (p for p in (out / "slides").iterdir() if p.name.startswith(stem + "-"))
    return folder
