"""How many outlined slides are worth how many labels?

python workflows/benchmarks/outlines_worth.py TABLE --features OUT --regions DIR --to FOLDER [--labels 20 40 80] [--outlined 0 5 10 20 40]

TABLE names the slides with `label` (tumour or normal) and `split`; DIR has the outline of each slide's tumour, marked as complete. For every
pair of numbers a model is fitted on so many slides of the training part, half of them with tumour, of which so many are outlined,
too; a fifth of the number, at least eight, stops it, from the validation part, by labels alone. Judged on the test part: slide AUROC, and per tile AUROC and
average precision within slides with tumour. Writes worth.json and worth.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score

from pathovit.manifest import read_manifest
from pathovit.model.targets import read_target
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Bag, Cohort, load_cohort
from pathovit.study.fit import fit

FIGURES = {"slide_auroc": "slide AUROC", "tile_auroc": "AUROC per tile, within slides", "tile_ap": "average precision per tile"}


def chosen(bags: Sequence[Bag], count: int, seed: int) -> list[Bag]:
    """So many, half of each label, a different choice for every seed; smaller numbers are the beginning of larger ones."""
    order = np.random.default_rng(seed).permutation(len(bags))
    by_label = [[bags[place] for place in order if bags[place].truth[0] == label] for label in (1, 0)]
    found = [bag for pair in zip(*by_label, strict=False) for bag in pair][:count]
    assert len(found) == count, f"{count} slides asked for, and {len(found)} there"
    return found


def judge(network: torch.nn.Module, bags: Sequence[Bag]) -> dict[str, float]:
    """Slide AUROC; AUROC per tile within slides with tumour, mean and worst slide; average precision per tile."""
    logits, auroc, precision = [], [], []
    for bag in bags:
        with torch.inference_mode():
            found = network(bag.features.float(), bag.xy_um, bag.pitch_um)
        logits.append(float(found.logits[0]))
        assert bag.marks is not None, "every test slide is outlined"
        known = ~bag.marks[:, 0].isnan()
        truth, scores = bag.marks[known, 0].numpy(), found.evidence[known, 0].numpy()
        if 0 < truth.sum() < len(truth):
            auroc.append(roc_auc_score(truth, scores))
            precision.append(average_precision_score(truth, scores))
    slide = roc_auc_score([bag.truth[0] for bag in bags], logits)
    tiles = {"tile_auroc": float(np.mean(auroc)), "worst": float(np.min(auroc)), "tile_ap": float(np.mean(precision))}
    return {"slide_auroc": slide, **tiles}


def one(cohort: Cohort, parts: dict[str, list[Bag]], labels: int, outlined: int, seed: int) -> dict[str, float]:
    train = chosen(parts["train"], labels, seed)
    train = [bag if place < outlined else replace(bag, marks=None) for place, bag in enumerate(train)]
    stop = [replace(bag, marks=None) for bag in chosen(parts["validation"], max(8, labels // 5), seed)]
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(
            {"train": train, "validation": stop}, cohort.target, cohort.recipe, TrainSettings(seed=seed), lambda line: None,
            Path(folder) / "checkpoint",
        )  # fmt: skip
    return judge(fitted.network, parts["test"])


def draw(path: Path, found: list[dict[str, float]], counts: list[int]) -> None:
    figure = Figure(figsize=(13, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, said) in zip(figure.subplots(1, 3), FIGURES.items(), strict=True):
        for labels in counts:
            of = [line for line in found if line["labels"] == labels]
            outlined = sorted({line["outlined"] for line in of})
            axes.plot(
                outlined,
                [np.mean([line[key] for line in of if line["outlined"] == n]) for n in outlined],
                marker="o",
                label=f"{labels} labels",
            )
        axes.set(xlabel="of these, slides with an outline", title=said)
        axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--regions", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--outlined", type=int, nargs="+", default=[0, 5, 10, 20, 40])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    rows = read_manifest(options.table)
    cohort = load_cohort(rows, read_target(rows, ["label"], None, "tumour"), options.features, regions=[options.regions])
    parts = {name: [bag for bag in cohort.bags if cohort.fixed[bag.patient] == name] for name in ("train", "validation", "test")}
    parts["test"] = [bag for bag in parts["test"] if bag.marks is not None]
    options.to.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, float]] = []
    for labels in options.labels:
        for outlined in (count for count in options.outlined if count <= labels):
            for seed in range(options.seeds):
                line = {"labels": labels, "outlined": outlined, "seed": seed, **one(cohort, parts, labels, outlined, seed)}
                found.append(line)
                print(
                    ", ".join(
                        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items()
                    ),
                    flush=True,
                )
                (options.to / "worth.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(options.to / "worth.png", found, options.labels)


if __name__ == "__main__":
    main()
