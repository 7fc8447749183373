"""Records that tests need whole, with only what matters to a test given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.geometry import Box
from pathovit.outputs.features import FeatureAttributes, SlideFeatures
from pathovit.outputs.folder import SlideFolder
from pathovit.outputs.recipe import EmbedRecipe, FinishRecipe
from pathovit.outputs.records import SlideRecord, SlideVerdict, TileCounts
from pathovit.outputs.store import FeatureStore
from pathovit.settings import TileSpec
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.tiling import TileGrid

CHUNK = 16  # tiles, of made stores
NO_TISSUE = np.zeros((1, 1), np.uint8)


def made_grid(xy: NDArray[np.int64], tile: float = 96.0, stride: float | None = None, **more: Any) -> TileGrid:
    """A grid of the corners given, one level-0 pixel to a pixel of a tile; `more` replaces what it is made of."""
    step = stride or tile
    spec = TileSpec(tile_px=round(tile), mpp=1.0, stride_px=round(step))
    known = {
        "spec": spec, "xy": xy, "coverage": np.ones(len(xy), np.float32), "tile_l0": (tile, tile), "stride_l0": (step, step), "origin": (0, 0),
        "read_level": 0, "read_px": (round(tile), round(tile)), "read_scale": 1, "upsampled": 1.0, "total": len(xy),
    }  # fmt: skip
    return TileGrid(**(known | more))


def made_attributes(recipe: dict[str, Any] | None = None, mpp: float = 1.0, **more: Any) -> FeatureAttributes:
    known = {
        "mpp": (mpp, mpp), "mpp_source": "manifest", "level0_size": (30_000, 30_000), "bounds": Box(0, 0, 30_000, 30_000), "has_bounds": False,
        "device": "cpu", "recipe": EmbedRecipe(recipe or {}), "tissue_downsample": (16.0, 16.0),
    }  # fmt: skip
    return FeatureAttributes(**(known | more))


def made_features(
    xy: NDArray[np.int64],
    features: NDArray[Any] | None = None,
    verdict: NDArray[np.uint8] | None = None,
    grid: dict[str, Any] | None = None,
    **attributes: Any,
) -> SlideFeatures:
    tiles = len(xy)
    values = np.zeros((tiles, 1), np.float16) if features is None else features
    verdicts = np.zeros(tiles, np.uint8) if verdict is None else verdict
    return SlideFeatures("s-1", made_grid(xy, **(grid or {})), values, verdicts, made_attributes(**attributes))


def made_store(folder: Path, grid: TileGrid, dim: int, chunk_tiles: int, recipe: dict[str, Any] | None = None) -> FeatureStore:
    store = FeatureStore(SlideFolder(folder), Path("s.svs"))
    store.create(grid, dim, chunk_tiles, made_attributes(recipe), NO_TISSUE)
    return store


def made_record(slide_id: str = "a-1", file: str = "a.svs", **more: Any) -> SlideRecord:
    """slide.json of a finished slide of 8 tiles that has no answer."""
    known = {
        "slide_id": slide_id, "sha256": slide_id, "description": SlideDescription(file, "made", (100, 100), (0.5, 0.5), "manifest", "direct"),
        "survey": Survey(1.0, 8), "patient": None, "label": None, "verdict": SlideVerdict.OK, "reason": "", "trial": "",
        "tiles": TileCounts(8, 0, 0, 0, 0), "prediction": None, "heatmap_check": None, "seconds": 1.0, "recipe": EmbedRecipe({}),
        "finish_recipe": FinishRecipe({"model_sha256": None}), "versions": {},
    }  # fmt: skip
    return SlideRecord(**(known | more))
