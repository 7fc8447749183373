"""A SpatialData store as LazySlide keeps one beside a slide. The one door to spatialdata.

What its reader (wsidata) looks for: shapes `tiles` and `tissues` in level-0 pixels, a table `<encoder>_tiles` on the tiles, and attributes
`tile_spec` and `slide_properties`; it refuses the store of a slide of another size.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely import STRtree, box, centroid

from pathovit import RESEARCH_USE
from pathovit.encoders.elsewhere import IN_LAZYSLIDE
from pathovit.errors import SettingsError
from pathovit.files import put_whole
from pathovit.show.export.slides import ExportedSlide, encoder_name
from pathovit.show.qupath import dissolve, tile_edges

TILES = "tiles"


def write_spatialdata(folder: Path, slide: ExportedSlide) -> None:
    """`NAME.zarr`: tiles that were read, with what the map shows of them, and their features; `tissues` are the tiles that touch, dissolved."""
    try:
        import geopandas as gpd
        import pandas as pd
        from spatialdata import SpatialData
        from spatialdata.models import ShapesModel, TableModel
    except ImportError as error:
        raise SettingsError(
            f'--to spatialdata: spatialdata cannot be imported ({error}). pip install "pathovit[spatialdata]"'
        ) from error

    stored, spec = slide.features, slide.features.grid.spec
    assert spec.tile_px and spec.stride_px and spec.mpp, "of a grid that was laid"
    read = np.flatnonzero(stored.ok)
    squares = box(*tile_edges(stored)[read].T)
    pieces = [area.shape for area in dissolve(stored, stored.ok, "tissue", stored.coverage)]
    tile, piece = STRtree(pieces).query(centroid(squares), predicate="intersects")
    of_piece = np.zeros(len(read), np.int64)
    of_piece[tile] = piece
    measured: dict[str, NDArray[np.float32]] = {}
    for name, values in slide.measured.items():
        key = stem = re.sub(r"[^\w.-]+", "_", name)  # what its names may hold
        while key in measured:  # `ER +` and `ER ?` are two
            key = f"{stem}_{len(measured)}"
        measured[key] = values
    table = stored.to_anndata(measured)
    table.obs = table.obs.assign(tile_id=read, library_id=pd.Categorical([TILES] * len(read)))
    shapes = {
        TILES: {"tile_id": read, "x": stored.xy[read, 0], "y": stored.xy[read, 1], "tissue_id": of_piece, "geometry": squares}
        | {name: values[read] for name, values in measured.items()},
        "tissues": {"tissue_id": np.arange(len(pieces)), "geometry": pieces},
    }
    down = (round(stored.tile_l0[0]) + 1e-6) / spec.tile_px  # they cut off what is behind the point
    (width, height), bounds = stored.attributes.level0_size, stored.attributes.bounds
    attributes = {
        "tile_spec": {
            TILES: {
                **{
                    "height": spec.tile_px,
                    "width": spec.tile_px,
                    "stride_height": spec.stride_px,
                    "stride_width": spec.stride_px,
                },
                **{"mpp": spec.mpp, "ops_level": 0, "ops_downsample": down, "base_level": 0, "base_downsample": down},
                "tissue_name": "tissues",
            }
        },
        "slide_properties": {
            "shape": [height, width],
            "mpp": stored.mpp[0],
            "bounds": [bounds.x, bounds.y, bounds.width, bounds.height],
        },
        "pathovit": {"research_use": RESEARCH_USE, "slide_id": slide.slide_id, "trial": stored.trial},
    }
    made = SpatialData(
        shapes={name: ShapesModel.parse(gpd.GeoDataFrame(data)) for name, data in shapes.items()},
        tables={
            f"{encoder_name(stored, IN_LAZYSLIDE)}_{TILES}": TableModel.parse(
                table, region=TILES, region_key="library_id", instance_key="tile_id"
            )
        },
        attrs=attributes,
    )
    with (
        put_whole(folder / f"{slide.name}.zarr") as place,
        warnings.catch_warnings(action="ignore"),
    ):  # of its libraries, for its makers
        made.write(place)
