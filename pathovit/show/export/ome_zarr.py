"""The map as OME-Zarr, 0.5 or 0.4, with the regions as labels. The one door to Zarr, beside that of features.

QuPath and Bio-Formats read 0.4 alone, which is Zarr 2: their reader knows no zstd and no shards. A translation is that of the centre
of the first pixel, in micrometres from the corner of the slide, as the specification has it (https://ngff.openmicroscopy.org/0.5/).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from shapely import contains_xy, prepare

from pathovit import RESEARCH_USE
from pathovit.files import put_whole
from pathovit.show.export.slides import ExportedSlide
from pathovit.show.ome_tiff import SMALLEST_PX, halve
from pathovit.show.qupath import class_colour

if TYPE_CHECKING:
    import zarr

CHUNK_PX = 512
Attributes = Mapping[str, Any]


def write_ome_zarr(folder: Path, slide: ExportedSlide, version: str) -> None:
    """`NAME.ome.zarr`: layers float32 (C, rows, columns), NaN where nothing was read; `labels/regions`, as heatmap.geojson outlines them."""
    import zarr

    names = list(slide.drawn)
    pyramid = [np.stack(list(slide.drawn.values()))]
    while max(pyramid[-1].shape[1:]) >= 2 * SMALLEST_PX:
        pyramid.append(halve(pyramid[-1]))
    regions, legend = _regions(slide, pyramid[0].shape[1:])
    with put_whole(folder / f"{slide.name}.ome.zarr") as place:
        group = zarr.create_group(str(place), zarr_format=2 if version == "0.4" else 3)
        channels = [
            {"label": name, "color": "FF0000", "active": index == 0, "window": {"min": 0, "max": high, "start": 0, "end": high}}
            for index, (name, high) in enumerate(zip(names, map(_high, pyramid[0]), strict=True))
        ]
        about = {"multiscales": [_multiscale("map", slide, len(pyramid), "cyx", version)], "omero": {"channels": channels}}
        _describe(group, about, version)
        group.attrs["pathovit"] = {"research_use": RESEARCH_USE, "slide_id": slide.slide_id, "trial": slide.features.trial}
        for level, layers in enumerate(pyramid):
            _put(group, str(level), layers, np.float32("nan"), "cyx", version)
        labels = group.create_group("labels")
        _describe(labels, {"labels": ["regions"]}, version)
        drawn = labels.create_group("regions")
        colours = [{"label-value": value, "rgba": [*class_colour(name), 128]} for value, name in legend.items()]
        named = [{"label-value": value, "name": name} for value, name in legend.items()]
        _describe(
            drawn,
            {
                "multiscales": [_multiscale("regions", slide, len(pyramid), "yx", version)],
                "image-label": {"colors": colours, "properties": named, "source": {"image": "../../"}}
                | ({"version": "0.4"} if version == "0.4" else {}),
            },
            version,
        )
        for level, layers in enumerate(pyramid):
            step = 2**level
            _put(drawn, str(level), regions[::step, ::step][: layers.shape[1], : layers.shape[2]], 0, "yx", version)


def _high(layer: NDArray[np.float32]) -> float:
    """What is white: 1, or the highest value of a layer that stays far below it, as attention does, or goes beyond."""
    high = float(np.nanmax(layer, initial=0))
    return high if high > 1 or 0 < high < 0.1 else 1.0


def _regions(slide: ExportedSlide, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Cells (rows, columns) whose centre lies in a region, as numbers of classes, and their names; 0 is none."""
    grid = slide.features.grid
    x, y = ((np.arange(shape[1 - axis]) + 0.5) * grid.stride_l0[axis] + grid.origin[axis] for axis in (0, 1))
    legend = {name: value for value, name in enumerate(sorted({region.name for region in slide.regions}), 1)}
    cells = np.zeros(shape, np.uint8)
    for region in slide.regions:
        prepare(region.shape)
        left, top, right, bottom = region.shape.bounds
        across, down = slice(*np.searchsorted(x, (left, right))), slice(*np.searchsorted(y, (top, bottom)))  # else of all cells
        inside = contains_xy(region.shape, *np.meshgrid(x[across], y[down]))
        cells[down, across][inside] = legend[region.name]
    return cells, {value: name for name, value in legend.items()}


def _describe(group: zarr.Group, about: Attributes, version: str) -> None:
    group.attrs.update(dict(about) if version == "0.4" else {"ome": {"version": version, **about}})


def _multiscale(name: str, slide: ExportedSlide, levels: int, axes: str, version: str) -> Attributes:
    grid, mpp = slide.features.grid, slide.features.mpp
    cell_um, corner_um = np.asarray(grid.stride_l0) * mpp, np.asarray(grid.origin) * mpp
    flat = [1.0] if axes == "cyx" else []
    datasets = []
    for level in range(levels):
        width, height = (cell_um * 2**level).tolist()
        left, top = (corner_um + cell_um * 2**level / 2).tolist()
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*flat, height, width]},
                    {"type": "translation", "translation": [*(0.0 for _ in flat), top, left]},
                ],
            }
        )
    known = {"c": {"name": "c", "type": "channel"}} | {
        axis: {"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"
    }
    told: Attributes = {"version": "0.4"} if version == "0.4" else {}
    return {**told, "name": name, "axes": [known[axis] for axis in axes], "datasets": datasets}


def _put(group: zarr.Group, name: str, values: NDArray[Any], nothing: Any, axes: str, version: str) -> None:
    import numcodecs

    chunks = (*(1 for _ in values.shape[:-2]), *(min(CHUNK_PX, side) for side in values.shape[-2:]))
    if version == "0.4":
        how = {"compressors": numcodecs.Zlib(level=6), "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    else:
        how = {"dimension_names": list(axes)}
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, fill_value=nothing, **how)
    array[...] = values
