"""A store is looked at before a byte of it is decoded: a codec of an older format can run code of its writer's choice."""

from __future__ import annotations

import json
from pathlib import Path

from pathovit.errors import StoreError
from pathovit.files import read_bytes

ARRAYS = ("features", "xy", "coverage", "verdict")
CODECS = {"bytes", "zstd"}  # of our own stores
OLDER = (".zgroup", ".zarray", ".zattrs", ".zmetadata")  # of Zarr 2


def refuse_foreign(store: Path, slide: Path) -> None:
    """Raises StoreError, which names the slide, where a folder is no store of ours; one that is not there is no foreign one."""
    places = [store, *(store / name for name in (*ARRAYS, "tissue"))]
    for about in (place / "zarr.json" for place in places):
        if not about.is_file():
            continue
        try:
            found = json.loads(read_bytes(about))
            codecs = {codec["name"] for codec in found.get("codecs", [])}
            known = found["zarr_format"] == 3 and codecs <= CODECS and not found.get("consolidated_metadata")
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise StoreError(slide, f"{store} was not written by pathovit, and is not read. Embed the slide again.")
    if any((place / older).exists() for place in places for older in OLDER):
        raise StoreError(slide, f"{store} holds a store of Zarr 2, which is not read. Embed the slide again.")
