"""A slide of 200,704 tiles with an answer, without hours of embedding: one large region of a class, and as many of another as there can be."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import tifffile
from made import made_attributes, made_grid
from made_runs import folder_of
from PIL import Image

from pathovit.geometry import Box
from pathovit.outputs.folder import SlideFolder
from pathovit.outputs.sealed import write_sealed
from pathovit.outputs.store import FeatureStore
from pathovit.show.heatmap import Heatmap
from pathovit.show.ome_tiff import write_ome_tiff
from pathovit.slides.identity import content_sha256, slide_id

SIDE, TILE = 448, 96  # tiles on a side, level-0 pixels of a tile
SLIDE_PX, STORED_PX = SIDE * TILE, 512
CHUNK = 8192


def write_large_slide(path: Path, mpp: float = 1.0) -> Path:
    """43,008 x 43,008 pixels, every stored tile the same few hundred bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (STORED_PX, STORED_PX), (200, 120, 180)).save(buffer, "JPEG", quality=80)
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 4, 16):
            side = SLIDE_PX // factor
            tiles = [buffer.getvalue()] * (-(-side // STORED_PX)) ** 2
            tiff.write(
                iter(tiles), shape=(side, side, 3), dtype=np.uint8, tile=(STORED_PX, STORED_PX), compression="jpeg", photometric="ycbcr",
                subsampling=(2, 2), subfiletype=int(factor > 1), resolution=(1e4 / (mpp * factor),) * 2, resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def write_large(out: Path, slide: Path) -> None:
    """A finished slide beside those of `out`: tumour is one region of half the tiles, normal every second tile of a chessboard."""
    sha256, name = content_sha256(slide), slide_id(slide, content_sha256(slide))
    place = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)
    folder = SlideFolder(out / "slides" / name)
    store = FeatureStore(folder, slide)
    box = {"level0_size": (SLIDE_PX, SLIDE_PX), "bounds": Box(0, 0, SLIDE_PX, SLIDE_PX)}
    store.create(made_grid(place * TILE, float(TILE)), 3, CHUNK, made_attributes(**box), np.zeros((1, 1), np.uint8))
    for chunk in range(-(-len(place) // CHUNK)):
        tiles = len(place[chunk * CHUNK : (chunk + 1) * CHUNK])
        store.write_chunk(chunk, np.ones((tiles, 3), np.float16), np.zeros(tiles, np.uint8))
    half, chess = place[:, 0] < SIDE // 2, place.sum(1) % 2
    layers = {
        "score: tumour": np.where(half, 0.9, 0.1).astype(np.float32),
        "score: normal": np.where(chess, 0.8, 0.2).astype(np.float32),
    }
    write_ome_tiff(folder.path / "heatmap.ome.tiff", Heatmap.from_tiles(store.read(), layers))
    known = json.loads((folder_of(out, "one") / "slide.json").read_text())
    known["slide"] |= {
        "slide_id": name,
        "sha256": sha256,
        "file": slide.name,
        "size": [SLIDE_PX] * 2,
        "mpp": [1.0, 1.0],
        "tiles": len(place),
    }
    known["tiles"]["ok"] = len(place)
    write_sealed(folder.path / "slide.json", known)
