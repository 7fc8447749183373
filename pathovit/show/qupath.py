"""heatmap.geojson: tiles and hot regions for QuPath.

Its rules, from its own reader: `id` is a UUID; geometry in pixels of the image QuPath shows, which is cropped to
`openslide.bounds-*` where these exist; everything else inside `properties`; a classification with a name must have a
colour; measurements are an object of finite numbers.
"""

from __future__ import annotations

import colorsys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from shapely import Polygon, STRtree, box, centroid, coverage_union_all, union_all
from shapely.affinity import translate
from shapely.geometry import mapping

from pathovit import RESEARCH_USE
from pathovit.files import to_json, write_atomically
from pathovit.geometry import XY
from pathovit.outputs.features import SlideFeatures

Feature: TypeAlias = dict[str, object]  # of GeoJSON
MADE_BY = "pathovit review"  # of painted tiles
HOT_COLOUR, UNREAD_COLOUR = [200, 30, 30], [120, 120, 120]
BANDS = 10  # score bands, when tiles are too many to be listed one by one


def write_geojson(
    path: Path,
    stored: SlideFeatures,
    scores: NDArray[np.float32],
    layers: dict[str, NDArray[np.float32]],
    name: str,
    *,
    regions: Sequence[Area],
    marked: Mapping[str, NDArray[np.bool_]],
    max_tiles: int,
) -> None:
    """Write tiles with their measurements, and regions of hot and of marked ones.

    Parameters
    ----------
    scores : (N,), NaN where a tile was not read
    layers : further measurements (N,) of tiles, by name
    name : the class the scores speak of
    regions : tiles that are taken for a class, dissolved
    marked : (N,) tiles of which nothing is known, by what they are called
    """
    squares, overlapping, (x, y) = tile_squares(stored), overlap(stored), offset(stored)
    features: list[Feature] = []
    if len(stored.xy) <= max_tiles:
        features += _tiles(stored, scores, layers, name)
    else:
        features += _bands(squares, overlapping, scores, name)
    for mark, tiles in marked.items():
        features += [
            _feature(stored.slide_id, part, "annotation", mark, UNREAD_COLOUR, {}) for part in _parts(squares[tiles], overlapping)
        ]
    for region in regions:
        numbers = {"Mean score": region.mean, "Highest score": region.highest, "Area mm^2": region.mm2}
        shape = translate(region.shape, -x, -y)
        features.append(_feature(stored.slide_id, shape, "annotation", region.name, HOT_COLOUR, numbers))
    collection = {
        "type": "FeatureCollection",
        "pathovit": RESEARCH_USE,
        **({"trial": stored.trial} if stored.trial else {}),
        "features": features,
    }
    write_atomically(path, to_json(collection, indent=None))


@dataclass(frozen=True)
class Area:
    """Tiles of one class that touch, dissolved."""

    name: str
    shape: Polygon  # level-0 pixels
    mm2: float
    mean: float  # of their scores
    highest: float


def dissolve(stored: SlideFeatures, chosen: NDArray[np.bool_], name: str, scores: NDArray[np.float32]) -> list[Area]:
    """The tiles chosen (N,), as connected areas, the largest first; `scores` (N,) are of the class."""
    index = np.flatnonzero(chosen)
    squares = np.asarray(box(*tile_edges(stored)[index].T))
    tree, um2 = STRtree(centroid(squares)), stored.mpp[0] * stored.mpp[1]
    found = []
    for part in _parts(squares, overlap(stored)):
        inside = scores[index[tree.query(part, predicate="contains")]]
        found.append(Area(name, part, part.area * um2 * 1e-6, float(inside.mean()), float(inside.max())))
    return found


def offset(stored: SlideFeatures) -> XY:
    """What QuPath crops, left and top."""
    bounds = stored.attributes.bounds
    return (float(bounds.x), float(bounds.y)) if stored.attributes.has_bounds else (0.0, 0.0)


def write_squares(path: Path, stored: SlideFeatures, tiles: Mapping[int, str]) -> None:
    """Write some tiles, by index, as annotations that have a name and are to be given a class."""
    squares = tile_squares(stored)
    features = [
        {
            **_feature(stored.slide_id, squares[index], "annotation", None, None, {}),
            "properties": {"objectType": "annotation", "name": name},
        }
        for index, name in tiles.items()
    ]
    write_atomically(path, to_json({"type": "FeatureCollection", "pathovit": RESEARCH_USE, "features": features}))


def write_areas(path: Path, stored: SlideFeatures, areas: Sequence[Area], colours: Mapping[str, list[int]]) -> None:
    """Write areas as annotations, each of the class it is named after, with its colour (red, green, blue)."""
    x, y = offset(stored)
    features = [
        _feature(
            stored.slide_id, translate(area.shape, -x, -y), "annotation", area.name, colours[area.name],
            {"Mean score": area.mean, "Highest score": area.highest, "Area mm^2": area.mm2},
        )
        for area in areas
    ]  # fmt: skip
    write_atomically(path, to_json({"type": "FeatureCollection", "pathovit": RESEARCH_USE, "features": features}, indent=None))


def write_painted(path: Path, stored: SlideFeatures, tiles: Mapping[str, NDArray[np.int64]]) -> None:
    """Write tiles that a person gave a class, by index, as annotations of that class; those that touch are one."""
    squares, (x, y) = np.asarray(box(*_own_edges(stored).T)), offset(stored)
    features = []
    for name, index in tiles.items():
        for part in _parts(squares[index], False):
            shape = translate(part, -x, -y)
            features.append(_feature(stored.slide_id, shape, "annotation", name, _painted_colour(name), {}, locked=False))
    whole = {"type": "FeatureCollection", "pathovit": RESEARCH_USE, "made_by": MADE_BY, "features": features}
    write_atomically(path, to_json(whole, indent=None))


def _own_edges(stored: SlideFeatures) -> NDArray[np.float64]:
    """(N, 4) of each tile the part that is nearest to its own centre: tiles side by side as they are, others a stride wide."""
    if not overlap(stored):
        return tile_edges(stored)
    tile, stride = np.asarray(stored.tile_l0), np.asarray(stored.grid.stride_l0)
    place = stored.grid.lattice()
    corner = np.asarray(stored.grid.origin) + tile / 2 - stride / 2
    return np.concatenate([np.rint(corner + place * stride), np.rint(corner + (place + 1) * stride)], axis=1)


def _painted_colour(name: str) -> list[int]:
    """Always the same of a class."""
    hue = uuid.uuid5(uuid.NAMESPACE_OID, name).int % 360
    return [round(255 * part) for part in colorsys.hls_to_rgb(hue / 360, 0.5, 0.6)]


def tile_squares(stored: SlideFeatures) -> NDArray[Any]:
    """(N,) polygons of tiles, in pixels of the image that QuPath shows."""
    return np.asarray(box(*(tile_edges(stored) - np.tile(offset(stored), 2)).T))


def overlap(stored: SlideFeatures) -> bool:
    """Whether tiles lie over each other, or apart, rather than side by side."""
    return not np.allclose(stored.tile_l0, stored.grid.stride_l0)


def tile_edges(stored: SlideFeatures) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom in whole level-0 pixels; tiles that touch on the lattice share their edge exactly."""
    tile, stride = np.asarray(stored.tile_l0), np.asarray(stored.grid.stride_l0)
    if overlap(stored):
        return np.concatenate([stored.xy, np.rint(stored.xy + tile)], axis=1)
    origin = np.asarray(stored.grid.origin)
    place = np.rint((stored.xy - origin) / stride)
    return np.concatenate([np.rint(origin + place * stride), np.rint(origin + (place + 1) * stride)], axis=1)


def _tiles(
    stored: SlideFeatures, scores: NDArray[np.float32], layers: dict[str, NDArray[np.float32]], name: str
) -> Iterator[Feature]:
    """Many: so by plain numbers, where geometry would take a second for 10,000."""
    edges = tile_edges(stored) - np.tile(offset(stored), 2)
    measured = {f"{name} score": scores, **layers}
    values = np.stack([np.asarray(found, np.float64) for found in measured.values()], 1).tolist()
    for index in np.flatnonzero(stored.ok).tolist():
        left, top, right, bottom = edges[index].tolist()
        ring = ((right, top), (right, bottom), (left, bottom), (left, top), (right, top))
        numbers = {name: value for name, value in zip(measured, values[index], strict=True) if isfinite(value)}
        yield {
            "type": "Feature",
            "id": _identity(stored.slide_id, "tile", None, f"POLYGON (({', '.join(f'{x:.0f} {y:.0f}' for x, y in ring)}))"),
            "geometry": {"type": "Polygon", "coordinates": (ring,)},
            "properties": {"objectType": "tile", "measurements": numbers},
        }


def _bands(squares: NDArray[Any], overlapping: bool, scores: NDArray[np.float32], name: str) -> Iterator[Feature]:
    """Tiles of one score band dissolved into polygons: viewers choke on a hundred thousand squares."""
    band = np.where(np.isfinite(scores), np.minimum(np.nan_to_num(scores) * BANDS, BANDS - 1), -1).astype(int)
    for step in range(BANDS):
        for part in _parts(squares[band == step], overlapping):
            yield _feature("band", part, "tile", None, None, {f"{name} score": (step + 0.5) / BANDS})


def _parts(squares: NDArray[Any], overlapping: bool) -> list[Any]:
    """Squares dissolved; the connected parts, largest first. Much faster where they only touch."""
    if not len(squares):
        return []
    union = union_all(squares) if overlapping else coverage_union_all(squares)
    return sorted(getattr(union, "geoms", [union]), key=lambda part: -part.area)


def _feature(
    slide_id: str, geometry: Any, kind: str, name: str | None, colour: list[int] | None, numbers: dict[str, float],
    locked: bool = True,
) -> Feature:  # fmt: skip
    properties: dict[str, object] = {"objectType": kind, "measurements": numbers}
    if name is not None:
        properties |= {"name": name, "classification": {"name": name, "color": colour}, "isLocked": locked}
    identity = _identity(slide_id, kind, name, geometry.wkt)
    return {"type": "Feature", "id": identity, "geometry": mapping(geometry), "properties": properties}


def _identity(slide_id: str, kind: str, name: str | None, wkt: str) -> str:
    """The same for the same thing, whenever it is written."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide_id} {kind} {name} {wkt}"))
