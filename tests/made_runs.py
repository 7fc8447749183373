"""What a run left in its folder."""

from __future__ import annotations

from pathlib import Path

HOSTILE = 'it\'s [b]a<img src=x onerror=alert(1)>  "ü" slide'


def stored_bytes(out: Path) -> dict[str, bytes]:
    """Every file of every feature store, by path."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("slides/*/features.zarr/**/*")) if p.is_file()}


def folder_of(out: Path, stem: str) -> Path:
    (folder,) = (p for p in (out / "slides").iterdir() if p.name.startswith(stem + "-"))
    return folder
