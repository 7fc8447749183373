"""Slides of planted tiles: where each lies, and how hot it is, can be worked out by hand."""

from __future__ import annotations

import numpy as np
from made import made_features

from pathovit.geometry import Box
from pathovit.outputs.features import SlideFeatures
from pathovit.settings import TileSpec
from pathovit.show.heatmap import Heatmap

CASES = {  # name: (mpp, exact tile side in level-0 pixels, bounds or None)
    "plain": (0.5, 192.0, None),
    "odd downsample": (0.263, 365.0211, None),
    "bounds": (0.25, 384.0, (1003, 517, 20_000, 16_000)),
}
COLUMNS, ROWS = 30, 22


def corner_of(slide: SlideFeatures) -> np.ndarray:
    return np.array([slide.attributes.bounds.x, slide.attributes.bounds.y])


def planted(case: str, stride: float = 1.0) -> tuple[SlideFeatures, np.ndarray, np.ndarray]:
    """A full grid of cold tiles with nine hot ones; scores (N,), and the hot tiles' level-0 corners (9, 2)."""
    mpp, tile, bounds = CASES[case]
    step = tile * stride
    width, height = int(COLUMNS * step) + 40, int(ROWS * step) + 40
    box = bounds[:2] + (width, height) if bounds else (0, 0, width, height)
    columns, rows = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    place = np.stack([columns.ravel(), rows.ravel()], -1)
    xy = np.rint(np.array(box[:2]) + place * step).astype(np.int64)
    hot = [(c, r) for c in (0, 14, COLUMNS - 1) for r in (0, 10, ROWS - 1)]
    is_hot = np.array([tuple(p) in hot for p in place.tolist()])
    spec = TileSpec(tile_px=96, mpp=1.0, stride_px=round(96 * stride))
    slide = made_features(
        xy,
        np.ones((len(xy), 4), np.float16),
        grid={"tile": tile, "stride": step, "spec": spec, "origin": box[:2]},
        recipe={"encoder": {"encoder": "e"}},
        mpp=mpp,
        bounds=Box(*box),
        has_bounds=bounds is not None,
    )
    return slide, np.where(is_hot, 0.9, 0.1).astype(np.float32), xy[is_hot]


def heat(slide: SlideFeatures, scores: np.ndarray) -> Heatmap:
    return Heatmap.from_tiles(slide, {"score: tumour": scores, "attention": np.full(len(scores), 1 / len(scores), np.float32)})
