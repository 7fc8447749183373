"""Labelled tiles: two kinds that an encoder can tell apart, of several patients."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def write_tiles(folder: Path, patients: int = 6, each: int = 4, side: int = 64, seed: int = 0) -> Path:
    """A table of pictures: dense with nuclei, or not. Returns the table."""
    (folder / "pictures").mkdir(parents=True)
    chance, rows = np.random.default_rng(seed), []
    for patient in range(patients):
        for kind, nuclei in (("tumour", 40), ("normal", 8)):
            for number in range(each):
                tile = np.full((side, side, 3), (232, 190, 215), np.float64) + chance.normal(0, 6, (side, side, 3)) - 3 * patient
                for x, y in chance.integers(3, side - 3, (nuclei, 2)):
                    tile[y - 2 : y + 3, x - 2 : x + 3] = (95, 60, 140)
                name = f"pictures/{kind}-{patient}-{number}.png"
                Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(folder / name)
                rows.append((name, kind, f"p{patient}"))
    with (folder / "tiles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient"), *rows])
    return folder / "tiles.csv"
