"""Does training on 28 slides succeed with every seed?

python workflows/benchmarks/few_patients.py --work WORK [--seeds 10]

Takes 34 lymph node slides of the training part (28 to train, 6 to stop by), as workflows/reference/ made and embedded them in
WORK, and judges on the test part: slide AUROC, and the AUROC per tile within slides with tumour, mean and worst slide.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mosaics import tumour_tiles
from outlines_worth import judge
from stored import by_stem

from pathovit.model.targets import Target
from pathovit.outputs.store import FeatureStore
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Bag, Cohort, make_bag
from pathovit.study.fit import fit
from pathovit.study.parts import split_patients

SLIDES, TRAINED = 34, 28
TARGET = Target("binary", ("label",), ("normal", "tumour"))


def read(work: Path, part: str) -> list[Bag]:
    """Lymph node slides of a part, with their tiles on tumour as marks."""
    stores = by_stem(work / "feat")
    found = []
    with (work / "reference.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == part and "lymph" in row["slide"]]
    for row in rows:
        path = Path(row["slide"])
        stored = FeatureStore(stores[path.stem], path).read()
        bag = make_bag(path.stem, [stored], np.array([row["label"] == "tumour"], np.float32))
        marks = tumour_tiles(stored, path.with_suffix(".geojson"))[stored.ok, None]
        found.append(replace(bag, marks=torch.from_numpy(marks.astype(np.float32))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    test = read(options.work, "test")
    pool = [replace(bag, marks=None) for bag in read(options.work, "train")]
    by_label = [[bag for bag in pool if bag.truth[0] == label][: SLIDES // 2] for label in (0, 1)]
    recipe = {"encoder": {"encoder": "reference", "dim": pool[0].features.shape[1]}, "tiles": {"mpp": 1.0}}
    cohort = Cohort(tuple(bag for bags in by_label for bag in bags), TARGET, recipe, {})
    for seed in range(options.seeds):
        parts = split_patients(cohort, (SLIDES - TRAINED) / SLIDES, 0.0, seed)
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit(parts, TARGET, recipe, TrainSettings(seed=seed), lambda line: None, Path(folder) / "checkpoint")
        found = judge(fitted.network, test)
        print(
            f"seed {seed}: {len(parts['train'])} to train, epoch {fitted.best_epoch} of {len(fitted.history)}, slide AUROC {found['slide_auroc']:.3f}, "
            f"within slides {found['tile_auroc']:.3f}, worst {found['worst']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
