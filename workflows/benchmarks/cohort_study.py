"""Does the slide transformer learn from slide labels, and does its heatmap show where the tumour is?

python workflows/benchmarks/cohorts.py      --data DATA --work WORK --cohort lymph breast
for c in lymph breast; do
    pathovit embed --manifest WORK/$c/all.csv    --settings WORK/$c/tiles.toml --out WORK/$c/feat         # lymph: --weights FILE
    pathovit embed --manifest WORK/$c/retile.csv --settings WORK/$c/half.toml  --out WORK/$c/feat_half
done
python workflows/benchmarks/cohort_study.py fit   --work WORK --cohort lymph breast     # can be killed and goes on
python workflows/benchmarks/cohort_study.py judge --work WORK --cohort lymph breast     # looks at the test part, once

The encoders have not seen a label of these patches: DINOv2 ViT-S/14 for the lymph nodes, the bundled one for the breast.
`fit` trains every kind of aggregator on slide labels alone, on the same split, with several seeds, and chooses settings of
the yardsticks by their Brier score on the validation part. `judge` scores them on the test slides, against the outlines
that no model has seen, and writes WORK/<cohort>/study.json. Test slides share patches (lymph) or patients (breast) with
each other, so that the intervals, which take them as independent, are too narrow.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cohort_checks import HOT, Judged, Scores, complete, faithfulness, invariance, judge_model, novelty, retiled, truth_of
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from pathovit.files import to_json
from pathovit.manifest import read_manifest
from pathovit.model.metrics import calibration_error
from pathovit.model.slide_model import SlideModel, load_model
from pathovit.model.targets import read_target
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Cohort, load_cohort
from pathovit.study.parts import split_patients
from pathovit.study.study import train_model

KINDS = ("slide_transformer", "mean", "abmil", "clam_sb", "transmil", "transformer")
NOISES = (0.0, 1.0)  # of the yardsticks: as published, and with the feature noise that ours is trained with
ONE_NOISE = {"slide_transformer": (1.0,), "transformer": (0.0,)}  # the last is as published alone: it is slow to fit
SMALL = 0.02  # of the tissue
DRAWS = 2000


def read_cohort(folder: Path, table: str) -> Cohort:
    rows = read_manifest(folder / table)
    return load_cohort(rows, read_target(rows, ["label"], "binary", "tumour"), folder / "feat")


def fit(folder: Path, seeds: int, kinds: list[str]) -> None:
    """One model per kind, seed and noise; those there already are kept."""
    cohort = read_cohort(folder, "labels.csv")
    for seed in range(seeds):
        for kind in kinds:
            for noise in ONE_NOISE.get(kind, NOISES):
                target = folder / "models" / f"{kind}-{seed}-{noise:g}"
                if not (target / "model.json").exists():
                    print(target, flush=True)
                    train_model(without_test(cohort), target, replace(TrainSettings(kind=kind, seed=seed), feature_noise=noise))


def without_test(cohort: Cohort) -> Cohort:
    """The test part is not looked at while models are made."""
    return replace(cohort, bags=tuple(bag for bag in cohort.bags if cohort.fixed[bag.patient] != "test"))


def best_model(folder: Path, kind: str, seed: int) -> SlideModel:
    """Of the noises tried, the one with the lower Brier score on the validation part."""
    models = [load_model(path) for path in sorted((folder / "models").glob(f"{kind}-{seed}-*")) if (path / "model.json").exists()]
    return min(models, key=lambda model: model.card.values["metrics"]["validation"]["brier"]["value"])


def interval(draws: list[float]) -> list[float]:
    return [round(float(v), 4) for v in np.nanpercentile(draws, [2.5, 97.5])]


def slide_figures(judged: dict[str, list[Judged]], label: NDArray[np.int64], share: Scores) -> dict[str, Any]:
    """AUROC of each kind over seeds, on all slides and on small tumours; ours against each yardstick, paired."""
    chance = np.random.default_rng(0)
    draws = chance.integers(0, len(label), (DRAWS, len(label)))
    found: dict[str, Any] = {}
    for name, chosen in (("all", np.ones(len(label), bool)), ("small", (label == 0) | (share < SMALL))):

        def auroc(kind: str, rows: NDArray[np.int64], chosen: NDArray[np.bool_] = chosen) -> float:
            rows = rows[chosen[rows]]
            if len(set(label[rows])) < 2:
                return float("nan")
            return float(np.mean([roc_auc_score(label[rows], j.probability[rows]) for j in judged[kind]]))

        every = np.arange(len(label))
        found[name] = {"slides": int(chosen.sum()), "with_tumour": int(label[chosen].sum())}
        drawn = {kind: [auroc(kind, rows) for rows in draws] for kind in judged}
        for kind in judged:
            line: dict[str, Any] = {
                "auroc": round(auroc(kind, every), 4),
                "interval": interval(drawn[kind]),
                "seeds": [round(float(roc_auc_score(label[chosen], j.probability[chosen])), 4) for j in judged[kind]],
            }
            if kind != "slide_transformer":
                gap = np.array(drawn["slide_transformer"]) - np.array(drawn[kind])
                line |= {
                    "ours_minus_it": interval(list(gap)),
                    "share_of_draws_ours_ahead": round(float((gap[np.isfinite(gap)] > 0).mean()), 4),
                }
            found[name][kind] = line
    return found


def localisation(judged: dict[str, list[Judged]], truth: list[NDArray[np.bool_]]) -> dict[str, Any]:
    """Per-tile figures: over all tiles of all slides, and within slides with tumour."""
    every = np.concatenate(truth)
    chance = np.random.default_rng(0)
    maps = {
        f"{kind}, {name}": [getattr(j, name) for j in found] for kind, found in judged.items() for name in ("scores", "attention")
    }
    maps["random"] = [[chance.random(len(t)) for t in truth] for _ in range(3)]
    found = {}
    for name, seeds in maps.items():
        if not np.isfinite(seeds[0][0]).all():
            continue
        lines = []
        for values in seeds:
            within = [(t, v) for t, v in zip(truth, values, strict=True) if 0 < t.sum() < len(t)]
            small = [(t, v) for t, v in within if t.mean() < SMALL]
            lines.append(
                [
                    roc_auc_score(every, np.concatenate(values)),
                    average_precision_score(every, np.concatenate(values)),
                    np.mean([roc_auc_score(t, v) for t, v in within]),
                    np.mean([average_precision_score(t, v) for t, v in within]),
                    np.mean([roc_auc_score(t, v) for t, v in small]),
                ]
            )
        names = ("auroc", "ap", "auroc_within_slides", "ap_within_slides", "auroc_within_small")
        found[name] = {key: round(float(v), 4) for key, v in zip(names, np.mean(lines, 0), strict=True)}
    return found


def cold(judged: list[Judged], label: NDArray[np.int64], truth: list[NDArray[np.bool_]]) -> dict[str, Any]:
    """Benign slides with a tile at or above the operating threshold, and what is found at it."""
    lines = []
    for j in judged:
        hot = np.array([(s >= HOT).any() for s in j.scores])
        scores, tumour = np.concatenate(j.scores), np.concatenate(truth)
        lines.append(
            [hot[label == 0].mean(), hot[label == 1].mean(), (scores[tumour] >= HOT).mean(), (scores[~tumour] >= HOT).mean()]
        )
    names = ("benign_slides_hot", "tumour_slides_hot", "tumour_tiles_hot", "other_tiles_hot")
    return {name: [round(float(v), 4) for v in column] for name, column in zip(names, np.array(lines).T, strict=True)}


def calibration(
    model: SlideModel, probability: Scores, label: NDArray[np.int64], rates: tuple[float, ...] = (0.05, 0.1, 0.2)
) -> dict[str, Any]:
    """Calibration error with its interval, and conformal coverage at several error rates."""
    chance = np.random.default_rng(0)
    draws = chance.integers(0, len(label), (DRAWS, len(label)))
    found: dict[str, Any] = {
        "ece": round(calibration_error(label, probability), 4),
        "interval": interval([calibration_error(label[rows], probability[rows]) for rows in draws]),
        "ece_if_perfect": round(
            float(
                np.mean(
                    [calibration_error((chance.random(len(label)) < probability).astype(int), probability) for _ in range(300)]
                )
            ),
            4,
        ),
    }
    for rate in rates:
        sets = [model.target.kind.possible(model.calibration, np.array([1 - p, p]), rate)[0] for p in probability]
        right = [model.target.classes[y] in s for y, s in zip(label, sets, strict=True)]
        found[f"rate_{rate:g}"] = {
            "coverage": round(float(np.mean(right)), 4),
            "unsure": round(float(np.mean([len(s) != 1 for s in sets])), 4),
        }
    return found


def judge(folder: Path, seeds: int, kinds: list[str]) -> dict[str, Any]:
    """Every figure of a cohort's test part."""
    cohort = read_cohort(folder, "labels.csv")
    bags = split_patients(cohort, 0.2, 0.0, 0)["test"]
    label = np.array([int(bag.truth[0]) for bag in bags])
    truth = [truth_of(folder, bag) if y else np.zeros(len(bag.features), bool) for bag, y in zip(bags, label, strict=True)]
    share = np.array([t.mean() for t in truth])
    models = {kind: [best_model(folder, kind, seed) for seed in range(seeds)] for kind in kinds}
    judged = {kind: [judge_model(model, bags) for model in of_kind] for kind, of_kind in models.items()}
    ours, said = models["slide_transformer"], judged["slide_transformer"]
    return {
        "test_slides": len(bags),
        "chosen": {kind: [model.name for model in of_kind] for kind, of_kind in models.items()},
        "slides": slide_figures(judged, label, share),
        "localisation": localisation(judged, truth),
        "cold": cold(said, label, truth),
        "calibration": [calibration(m, j.probability, label) for m, j in zip(ours, said, strict=True)],
        "novelty": [novelty(model, folder, bags) for model in ours],
        "faithfulness": [faithfulness(m, bags, j) for m, j in zip(ours, said, strict=True)],
        "complete": complete(ours, folder),
        "retiled": retiled(ours, folder, bags),
        "invariance": invariance(ours[0], bags),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fit", "judge"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cohort", nargs="+", default=["lymph", "breast"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.cohort:
        folder = options.work / name
        if options.what == "fit":
            fit(folder, options.seeds, options.kinds)
            continue
        found = judge(folder, options.seeds, options.kinds)
        (folder / "study.json").write_bytes(to_json(found))
        json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
