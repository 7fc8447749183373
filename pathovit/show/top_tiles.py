"""Pictures of the tiles with the highest scores."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit.files import write_atomically
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import TopTile
from pathovit.slides.slide import Slide

TILE_SIDE_PX = 192


def save_top_tiles(
    slide: Slide,
    folder: Path,
    features: SlideFeatures,
    scores: NDArray[np.float32],
    attention: NDArray[np.float32],
    count: int,
    name: str,
) -> list[TopTile]:
    """Pictures of the tiles with the highest scores; `name` is the class that these are of."""
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")
    order = order[np.isfinite(scores[order])][:count]
    level, size = slide.level(features.grid.read_level), features.grid.read_px
    kept = []
    for rank, index in enumerate(order, start=1):
        x, y = (int(v) for v in features.xy[index])
        pixels, _ = slide.read(level, round(x / level.downsample[0]), round(y / level.downsample[1]), *size)
        image = Image.fromarray(pixels).resize((TILE_SIDE_PX, TILE_SIDE_PX), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        file = f"top_tiles/{rank:02d}.jpg"
        write_atomically(folder / file, buffer.getvalue())
        kept.append(TopTile(file, float(scores[index]), float(attention[index]), x, y, name))
    for stale in (folder / "top_tiles").glob("*.jpg"):
        if int(stale.stem) > len(kept):
            stale.unlink()
    return kept
