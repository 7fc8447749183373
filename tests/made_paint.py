"""Strokes as a person paints them in QuPath, over a stored slide whose tumour is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from shapely import contains_xy, union_all
from shapely.geometry import shape

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore

STROKE = 4  # tiles


def paint_strokes(out: Path, slide_id: str, truth: Path, folder: Path, strokes: int = 4) -> Path:
    """Write horizontal strokes of two classes, named after the slide; `truth` holds the outlines of its tumour."""
    stored = FeatureStore(OutFolder(out).slide(slide_id), truth).read()
    tumour = union_all([shape(feature["geometry"]) for feature in json.loads(truth.read_text())["features"]])
    centres = stored.xy + np.asarray(stored.tile_l0) / 2
    inside = contains_xy(tumour, *centres.T)
    features = []
    for name, tiles in (("Tumor", np.flatnonzero(inside)), ("other tissue", np.flatnonzero(~inside))):
        begins = [
            i for i in tiles if np.isin(np.arange(i, i + STROKE), tiles).all() and len(set(stored.xy[i : i + STROKE, 1])) == 1
        ]
        for begin in [begins[place] for place in np.linspace(0, len(begins) - 1, strokes).astype(int)]:
            path = {"type": "LineString", "coordinates": centres[[begin, begin + STROKE - 1]].tolist()}
            properties = {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}}
            features.append({"type": "Feature", "geometry": path, "properties": properties})
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{slide_id}.geojson"
    written.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return written
