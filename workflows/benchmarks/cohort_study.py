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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shapely import box, union_all
from shapely.geometry import shape
from sklearn.metrics import average_precision_score, roc_auc_score

from pathovit.files import to_json
from pathovit.manifest import read_manifest
from pathovit.model.faithfulness import check_bag, summarise
from pathovit.model.metrics import calibration_error
from pathovit.model.slide_model import SlideModel, load_model
from pathovit.model.targets import read_target
from pathovit.outputs.folder import SlideFolder
from pathovit.outputs.records import HeatmapCheck
from pathovit.outputs.store import FeatureStore
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Bag, Cohort, load_cohort, make_bag
from pathovit.study.parts import split_patients
from pathovit.study.study import train_model

KINDS = ("slide_transformer", "mean", "abmil", "clam_sb", "transmil", "transformer")
NOISES = (0.0, 1.0)  # of the yardsticks: as published, and with the feature noise that ours is trained with
ONE_NOISE = {"slide_transformer": (1.0,), "transformer": (0.0,)}  # the last is as published alone: it is slow to fit
SMALL = 0.02  # of the tissue
HOT = 0.5
DRAWS = 2000
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What one model says of the test slides."""

    probability: Scores  # (n,)
    scores: list[Scores]  # tile scores of each slide; NaN for kinds without
    attention: list[Scores]


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


def judge_model(model: SlideModel, bags: list[Bag]) -> Judged:
    seen = [model.look(bag.features, bag.xy_um, bag.pitch_um) for bag in bags]
    chances = np.array([model.target.kind.probabilities(s.logits)[1] for s in seen])
    return Judged(chances, [model.tile_scores(s.evidence + s.bias)[:, 0] for s in seen], [s.attention for s in seen])


def truth_of(folder: Path, bag: Bag, outlines: Path | None = None) -> NDArray[np.bool_]:
    """Tiles (n,) of a bag that lie at least half on tumour; outlines are beside the slides, unless they are elsewhere."""
    (store,) = (folder / "feat" / "slides").glob(f"{bag.patient}-????????????")
    slide = FeatureStore(SlideFolder(store), Path(bag.patient)).read()
    outline = json.loads(((outlines or folder / "slides") / f"{bag.patient}.geojson").read_text())
    tumour = union_all([shape(f["geometry"]) for f in outline["features"]])
    squares = box(*np.concatenate([slide.xy, slide.xy + np.asarray(slide.tile_l0)], axis=1).T)
    return np.array([tumour.intersection(square).area > 0.5 * square.area for square in squares])[slide.ok]


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


def novelty(model: SlideModel, folder: Path, usual: list[Bag]) -> dict[str, Any]:
    """AUROC of the novelty score: slides of each strange kind against the usual test slides."""
    known = [model.novelty.slide(bag.features.float().numpy()) for bag in usual] if model.novelty else []
    found: dict[str, Any] = {"usual_flagged": round(float(np.mean(np.array(known) > 1)), 4)}
    rows = [row for row in read_manifest(folder / "strange.csv") if row.label("split") == "test"]
    for kind in ("stain", "blur", "foreign"):
        strange, refused = [], 0
        for row in rows:
            if row.label("strange") == kind:
                store = next((folder / "feat" / "slides").glob(f"{row.slide.stem}-????????????"), None)
                if store is None:  # so strange that no tissue was found on it
                    refused += 1
                    continue
                slide = FeatureStore(SlideFolder(store), row.slide).read()
                assert model.novelty
                strange.append(model.novelty.slide(slide.features[slide.ok].astype(np.float32)))
        auroc = roc_auc_score([0] * len(known) + [1] * len(strange), known + strange)
        found[kind] = {
            "slides": len(strange),
            "refused": refused,
            "auroc": round(float(auroc), 4),
            "flagged": round(float(np.mean(np.array(strange) > 1)), 4),
        }
    return found


def faithfulness(model: SlideModel, bags: list[Bag], judged: Judged) -> dict[str, object]:
    """Deletion and insertion on every test slide that is called tumour."""
    checks: list[HeatmapCheck] = []
    for bag, probability, scores, attention in zip(bags, judged.probability, judged.scores, judged.attention, strict=True):
        if bag.truth[0] and probability >= 0.5:
            deletion, insertion = check_bag(model, bag.features, bag.xy_um, bag.pitch_um, scores, attention, 0)
            checks.append(HeatmapCheck(None, "tumour", deletion, insertion))
    return summarise(checks).to_json()


def complete(models: list[SlideModel], folder: Path) -> list[dict[str, float]]:
    """The complete breast slide, which is no mosaic: where its heatmap lies."""
    found = []
    for store in (folder / "feat" / "slides").glob("breast-complete-*"):
        name = store.name.rsplit("-", 1)[0]
        slide = FeatureStore(SlideFolder(store), Path(name)).read()
        truth = truth_of(folder, make_bag(name, [slide], np.ones(1, np.float32)))
        for model in models:
            answer = model.predict(slide)
            scores, attention = answer.tile_scores[slide.ok, 0], answer.attention[slide.ok]
            found.append(
                {
                    "tiles": len(truth),
                    "tumour_share": round(float(truth.mean()), 4),
                    "probability": round(float(answer.probabilities[1]), 4),
                    "novelty": round(answer.novelty, 4),
                    "auroc": round(float(roc_auc_score(truth, scores)), 4),
                    "ap": round(float(average_precision_score(truth, scores)), 4),
                    "attention_auroc": round(float(roc_auc_score(truth, attention)), 4),
                    "tumour_tiles_hot": round(float((scores[truth] >= HOT).mean()), 4),
                    "other_tiles_hot": round(float((scores[~truth] >= HOT).mean()), 4),
                }
            )
    return found


def invariance(model: SlideModel, bags: list[Bag]) -> dict[str, float]:
    """Largest change of a logit when tiles are permuted, and when the slide's origin is moved; and the changes of the
    probability when each tile becomes four like it at half the distance, as if the slide were tiled twice as finely."""
    change, finer = {"permuted": 0.0, "moved": 0.0}, []
    quarters = torch.tensor([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
    for bag in bags:
        base = model.look(bag.features, bag.xy_um, bag.pitch_um).logits[0]
        order = torch.randperm(len(bag.features), generator=torch.Generator().manual_seed(0))
        moved = bag.xy_um + torch.tensor([12_345.6, 7_654.3])
        for name, features, xy_um in (("permuted", bag.features[order], bag.xy_um[order]), ("moved", bag.features, moved)):
            change[name] = max(change[name], abs(float(model.look(features, xy_um, bag.pitch_um).logits[0] - base)))
        xy_um = (bag.xy_um[:, None] + quarters * bag.pitch_um).reshape(-1, 2)
        fine = model.look(bag.features.repeat_interleave(4, 0), xy_um, bag.pitch_um / 2).logits
        finer.append(abs(model.target.kind.probabilities(fine)[1] - model.target.kind.probabilities(np.array([base]))[1]))
    return change | {"finer_median": float(np.median(finer)), "finer_largest": float(max(finer))}


def retiled(models: list[SlideModel], folder: Path, bags: list[Bag]) -> list[dict[str, float]]:
    """Change of the probability when the same slides are tiled at half the stride."""
    found = []
    known = {bag.slides[0]: bag for bag in bags}
    stores = [store for store in (folder / "feat_half" / "slides").glob("*") if store.name in known]
    for model in models:
        change = []
        for store in stores:
            bag = known[store.name]
            slide = FeatureStore(SlideFolder(store), Path(store.name)).read()
            base = model.target.kind.probabilities(model.look(bag.features, bag.xy_um, bag.pitch_um).logits)[1]
            change.append(abs(float(model.predict(slide).probabilities[1]) - base))
        if change:
            found.append({"slides": len(change), "median": round(float(np.median(change)), 4), "largest": round(max(change), 4)})
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
