"""A cohort of stored features without slides: normal ones, and tumour slides with a few marked tiles."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from made import CHUNK, made_grid, made_record, made_store

from pathovit.manifest import read_manifest
from pathovit.model.targets import read_target
from pathovit.settings import TrainSettings
from pathovit.study.cohort import load_cohort
from pathovit.study.study import train_model

DIM, SIDE = 6, 8
FAST = TrainSettings(epochs=8, width=32, depth=1, learning_rate=5e-3, patience=8)
ONCE = TrainSettings(epochs=1, width=32, depth=1)


def write_slide(
    features: Path,
    name: str,
    tumour: bool,
    chance: np.random.Generator,
    weights: str = "w",
    file: str = "",
    total: int = 0,
    count: int = SIDE * SIDE,
    shift: float = 0.0,
    **recipe: Any,
) -> None:
    """A stored slide of 64 tiles, or fewer; a tumour slide has a few tiles with a marked feature."""
    place = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)[:count] * 96
    grid = made_grid(place, total=total or count)
    values = chance.normal(size=(count, DIM)) + shift
    if tumour:
        values[chance.integers(0, count, 12), 0] += 6
    file = file or f"{name}.svs"
    recipe = {
        "encoder": {"encoder": "e", "weights_sha256": weights, "dim": DIM, "tile_px": 96},
        "tiles": {"mpp": 1.0, "stride_px": 96},
    } | recipe
    store = made_store(features / "slides" / name, grid, DIM, CHUNK, recipe)
    for chunk in range(count // CHUNK):
        store.write_chunk(chunk, values[chunk * CHUNK : (chunk + 1) * CHUNK].astype(np.float16), np.zeros(CHUNK, np.uint8))
    store.folder.write(made_record(name, file), [])


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def study(
    path: Path, features: Path, model: Path, settings: TrainSettings = FAST, target: str = "label", **options: Any
) -> dict[str, Any]:
    """What `pathovit train` does."""
    rows = read_manifest(path)
    asked = read_target(rows, target.split(","), options.pop("task", None), options.pop("positive", None))
    cohort = load_cohort(rows, asked, features, options.pop("group", None))
    options.setdefault("folds", 0)
    return dict(train_model(cohort, model, settings, **options).values)


def write_cohort(folder: Path) -> Path:
    """28 slides of 28 patients under features/, and labels.csv."""
    chance = np.random.default_rng(0)
    rows = []
    for index in range(28):
        name = f"slide-{index:02d}"
        write_slide(folder / "features", name, bool(index % 2), chance)
        rows.append({"slide": f"{name}.svs", "label": "tumour" if index % 2 else "normal", "patient": f"p{index}"})
    write_table(folder / "labels.csv", rows)
    return folder
