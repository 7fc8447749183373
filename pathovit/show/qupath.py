"""heatmap.geojson: tiles and hot regions for QuPath.

Its rules, from its own reader: `id` is a UUID; geometry in pixels of the image QuPath shows, which is cropped to
`openslide.bounds-*` where these exist; everything else inside `properties`; a classification with a name must have a
colour; measurements are an object of finite numbers.
"""

from __future__ import annotations

import colorsys
import gzip
import json
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from shapely import GEOSException, Polygon, STRtree, box, centroid, coverage_union_all, get_num_coordinates, points, union_all
from shapely.affinity import translate
from shapely.geometry import mapping, shape

from pathovit import RESEARCH_USE
from pathovit.errors import StoreError
from pathovit.files import open_patiently, put_whole, to_json, write_atomically
from pathovit.geometry import XY
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import GEOJSON

Feature: TypeAlias = dict[str, object]  # of GeoJSON
MADE_BY = "pathovit review"  # of painted tiles
UNREAD, UNTAUGHT, OUTSIDE = MARKED = ("Unread", "Not taught", "Outside what the model was made for")  # areas without an answer
HOT_COLOUR, UNREAD_COLOUR = [200, 30, 30], [120, 120, 120]
IS_REGION = b'"objectType": "annotation"'  # in a line
LARGE_BYTES = 5_000_000  # above which it is compressed
MOST_CORNERS = 10_000
MEAN, HIGHEST, MM2 = "Mean score", "Highest score", "Area mm^2"  # measurements of a region
BANDS = 10  # score bands, when tiles are too many to be listed one by one


def write_geojson(
    folder: Path,
    stored: SlideFeatures,
    scores: NDArray[np.float32],
    layers: Mapping[str, NDArray[np.float32]],
    name: str,
    *,
    regions: Sequence[Area],
    marked: Mapping[str, NDArray[np.bool_]],
    max_tiles: int,
    colours: Mapping[str, list[int]] | None = None,
) -> Path:
    """Write tiles with their measurements, and regions of hot and of marked ones: heatmap.geojson, or .geojson.gz of much.

    Parameters
    ----------
    scores : (N,), NaN where a tile was not read
    layers : further measurements (N,) of tiles, by name
    name : the class the scores speak of
    regions : tiles that are taken for a class, dissolved
    marked : (N,) tiles of which nothing is known, by what they are called
    colours : of classes, as on the slide's overview; one class that is asked for is red
    """
    measured = {f"Score: {name}": scores, **layers}
    features = (_tiles if len(stored.xy) <= max_tiles else _bands)(stored, measured)
    x, y = offset(stored)
    unknown = (
        _feature(stored.slide_id, part, "annotation", mark, UNREAD_COLOUR, {})
        for mark, tiles in marked.items()
        for part in _parts(tile_squares(stored, tiles), overlap(stored))
    )
    red = {area.name: HOT_COLOUR for area in regions} | dict(colours or {})
    found = (
        _feature(stored.slide_id, translate(area.shape, -x, -y), "annotation", area.name, red[area.name], area.measured())
        for area in regions
    )
    return _write(folder / GEOJSON[0], stored, chain(features, unknown, found))


def _write(path: Path, stored: SlideFeatures, features: Iterable[Feature]) -> Path:
    """One after the other: a hundred thousand at once are a gigabyte. Compressed where they are many."""
    packed = path.with_name(f"{path.name}.gz")
    with put_whole(path) as place:
        with place.open("wb") as file:
            about = {"type": "FeatureCollection", "pathovit": RESEARCH_USE} | ({"trial": stored.trial} if stored.trial else {})
            file.write(to_json(about, indent=None).rstrip().removesuffix(b"}") + b', "features": [')
            for index, feature in enumerate(features):
                file.write(b",\n" * bool(index) + to_json(feature, indent=None).rstrip())
            file.write(b"]}\n")
        if place.stat().st_size > LARGE_BYTES:
            with (
                put_whole(packed) as small,
                open_patiently(place) as file,
                small.open("wb") as raw,
                gzip.GzipFile("", "wb", 6, raw, mtime=0) as target,  # the same bytes whenever it is written
            ):
                shutil.copyfileobj(file, target, 2**20)
            found = packed
        else:
            found = path
    (path if found == packed else packed).unlink(missing_ok=True)
    return found


class Annotation(NamedTuple):
    """A region of the map, as it was written."""

    name: str  # its class
    shape: Any  # level-0 pixels
    measured: Mapping[str, float]


def read_annotations(folder: Path, stored: SlideFeatures) -> list[Annotation]:
    """The regions that `write_geojson` wrote; none where there is no such file.

    Raises
    ------
    StoreError : it is damaged
    """
    path = next((path for name in GEOJSON if (path := folder / name).is_file()), None)
    if path is None:
        return []
    try:
        found, line = [], b""
        with open_patiently(path) as raw:
            for line in gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw:
                if IS_REGION in line:
                    found.append(_annotation(line, stored))
        if not line.rstrip().endswith(b"]}"):
            raise ValueError("it ends in the middle")
        return found
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, GEOSException) as error:
        raise StoreError(
            folder, f"its {path.name} is damaged, or of an older pathovit. Draw it again: pathovit heatmap."
        ) from error


def _annotation(line: bytes, stored: SlideFeatures) -> Annotation:
    """Of one line of the file, which holds one feature; the first and the last hold what is around them, too."""
    found = json.loads(line[line.index(b'{"type": "Feature"') :].rstrip().removesuffix(b",").removesuffix(b"]}"))
    about = found["properties"]
    return Annotation(about["name"], translate(shape(found["geometry"]), *offset(stored)), about["measurements"])


@dataclass(frozen=True)
class Area:
    """Tiles of one class that touch, dissolved."""

    name: str
    shape: Polygon  # level-0 pixels
    mm2: float
    mean: float  # of their scores
    highest: float

    def measured(self) -> dict[str, float]:
        return {MEAN: self.mean, HIGHEST: self.highest, MM2: self.mm2}


def dissolve(stored: SlideFeatures, chosen: NDArray[np.bool_], name: str, scores: NDArray[np.float32]) -> list[Area]:
    """The tiles chosen (N,), as connected areas, the largest first; `scores` (N,) are of the class."""
    index, um2 = np.flatnonzero(chosen), stored.mpp[0] * stored.mpp[1]
    edges = tile_edges(stored)[index]
    parts = _parts(np.asarray(box(*edges.T)), overlap(stored))  # whose squares are gone when the tree is made
    tree = STRtree(points((edges[:, :2] + edges[:, 2:]) / 2))
    found = []
    for part in parts:
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
            area.measured(),
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
            features.append(_feature(stored.slide_id, shape, "annotation", name, class_colour(name), {}))
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


def class_colour(name: str) -> list[int]:
    """Always the same of a class."""
    hue = uuid.uuid5(uuid.NAMESPACE_OID, name).int % 360
    return [round(255 * part) for part in colorsys.hls_to_rgb(hue / 360, 0.5, 0.6)]


def tile_squares(stored: SlideFeatures, tiles: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """(N,) polygons of tiles, or of some, in pixels of the image that QuPath shows; half a kilobyte each."""
    edges = tile_edges(stored) if tiles is None else tile_edges(stored)[tiles]
    return np.asarray(box(*(edges - np.tile(offset(stored), 2)).T))


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


def _tiles(stored: SlideFeatures, measured: Mapping[str, NDArray[np.float32]]) -> Iterator[Feature]:
    """Many: so by plain numbers, where geometry would take a second for 10,000."""
    edges = tile_edges(stored) - np.tile(offset(stored), 2)
    values = np.stack([np.asarray(found, np.float64) for found in measured.values()], 1)
    for index in np.flatnonzero(stored.ok).tolist():
        left, top, right, bottom = edges[index].tolist()
        ring = ((right, top), (right, bottom), (left, bottom), (left, top), (right, top))
        yield {
            "type": "Feature",
            "id": _identity(stored.slide_id, "tile", None, f"POLYGON (({', '.join(f'{x:.0f} {y:.0f}' for x, y in ring)}))"),
            "geometry": {"type": "Polygon", "coordinates": (ring,)},
            "properties": {"objectType": "tile", "measurements": _known(measured, values[index])},
        }


def _known(names: Iterable[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values.tolist(), strict=True) if isfinite(value)}


def _bands(stored: SlideFeatures, measured: Mapping[str, NDArray[np.float32]]) -> Iterator[Feature]:
    """Tiles of one score band dissolved into polygons, with the means of their measurements: viewers choke on millions of squares."""
    squares, overlapping, (scores, *_) = tile_squares(stored), overlap(stored), measured.values()
    values = np.stack([np.asarray(found, np.float64) for found in measured.values()], 1)
    band = np.where(np.isfinite(scores), np.minimum(np.nan_to_num(scores) * BANDS, BANDS - 1), -1).astype(int)
    for step in range(BANDS):
        index = np.flatnonzero(band == step)
        parts = _parts(squares[index], overlapping)
        tree = STRtree(centroid(squares[index]))
        for part in parts:
            inside = index[tree.query(part, predicate="contains")]
            yield _feature(stored.slide_id, part, "tile", None, None, _known(measured, np.nanmean(values[inside], 0)))


def _parts(squares: NDArray[Any], overlapping: bool) -> list[Any]:
    """Squares dissolved; the connected parts, largest first. Much faster where they only touch."""
    if not len(squares):
        return []
    union = union_all(squares) if overlapping else coverage_union_all(squares)
    return sorted((_drawable(part) for part in getattr(union, "geoms", [union])), key=lambda part: -part.area)


def _drawable(part: Any) -> Any:
    """Without the corners of tiles along straight edges. QuPath's stack overflows on very long outlines, so these lose steps, too (qupath#2115)."""
    found, step = part.simplify(0), 1.0
    while get_num_coordinates(found) > MOST_CORNERS:
        found, step = part.simplify(step), step * 2
    return found


def _feature(
    slide_id: str, geometry: Any, kind: str, name: str | None, colour: list[int] | None, numbers: dict[str, float]
) -> Feature:
    properties: dict[str, object] = {"objectType": kind, "measurements": numbers}
    if name is not None:
        properties |= {"name": name, "classification": {"name": name, "color": colour}, "isLocked": False}
    identity = _identity(slide_id, kind, name, geometry.wkt)
    return {"type": "Feature", "id": identity, "geometry": mapping(geometry), "properties": properties}


def _identity(slide_id: str, kind: str, name: str | None, wkt: str) -> str:
    """The same for the same thing, whenever it is written."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide_id} {kind} {name} {wkt}"))
