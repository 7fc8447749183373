"""Does the heatmap lie on the tumour? Per-tile AUROC of a run's scores against the outlines beside the slides.

python workflows/benchmarks/heatmap_truth.py OUT SLIDES     # e.g. demo/out demo/slides
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from mosaics import tumour_outline
from shapely import box
from shapely.geometry import shape
from sklearn.metrics import roc_auc_score
from stored import by_stem


def main() -> None:
    out, slides = map(Path, sys.argv[1:])
    for stem, folder in sorted(by_stem(out).items()):
        done = json.loads((folder.path / "slide.json").read_text())
        tumour = tumour_outline(slides / f"{stem}.geojson")
        tiles = [
            f
            for f in json.loads((folder.path / "heatmap.geojson").read_text())["features"]
            if f["properties"]["objectType"] == "tile"
        ]
        squares = [box(*shape(f["geometry"]).bounds) for f in tiles]
        inside = np.array([tumour.intersection(square).area > 0.5 * square.area for square in squares])
        scores = np.array([f["properties"]["measurements"]["Score: tumour"] for f in tiles])
        found = f"per-tile AUROC {roc_auc_score(inside, scores):.3f}" if inside.any() else "benign"
        print(
            f"{stem}: tumour {done['prediction']['probabilities'][1]:.3f}, {len(tiles)} tiles, {inside.sum()} in the outline, "
            f"{found}, highest score outside {scores[~inside].max():.3f}, share of hot tiles outside {(scores[~inside] > 0.5).mean():.3f}"
        )


if __name__ == "__main__":
    main()
