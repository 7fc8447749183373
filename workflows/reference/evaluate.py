"""What the reference model can and cannot do, on slides it has not learned from: figures for its card.

python workflows/reference/evaluate.py --work WORK --model MODEL [--features FOLDER] [--organs FOLDER...]

Looks at the test part of WORK/reference.csv (as they are, "lymph", and as other laboratories show them, "other"), at quarters of
its larger slides, and at WORK/tissue/strange.csv, whose features lie in WORK/feat, and at other
organs: folders that `pathovit embed` made of them. Writes evaluation.json into the model's folder.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mosaics import tumour_tiles
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from stored import by_stem

from pathovit.model.metrics import calibration_error
from pathovit.model.prediction import SlidePrediction
from pathovit.model.slide_model import SlideModel, load_model
from pathovit.model.targets.classes import Classes
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import OUTSIDE, UNSURE
from pathovit.outputs.store import FeatureStore
from pathovit.study.sizes import faultless_errors

SIZES = (0, 300, 700, 100_000)  # tiles
HOT = 0.5
ASKED = (200, 2000)  # tiles of the slides that figures are asked for
CROPPED = 500  # tiles, from which on a slide is cut in quarters
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """One slide: what is true of it, and what the model said."""

    name: str
    kind: str  # lymph, other, made, or what is strange about it
    tumour: bool
    truth: Flags  # (N,) tiles on tumour
    said: SlidePrediction
    stored: SlideFeatures

    @property
    def scores(self) -> NDArray[np.float32]:
        return self.said.tile_scores[:, 0]


def stored_slides(folder: Path) -> dict[str, SlideFeatures]:
    """Features by the stem of the file's name."""
    return {stem: FeatureStore(slide, Path(stem)).read() for stem, slide in by_stem(folder).items()}


def judge(model: SlideModel, rows: list[dict[str, str]], base: Path, features: dict[str, SlideFeatures]) -> list[Judged]:
    found = []
    for row in rows:
        path = base / row["slide"]
        stored = features.get(path.stem)
        if stored is None:
            print(f"{path.name}: no features", flush=True)
            continue
        kind = row.get("strange") or path.name.split("-")[0]
        truth = tumour_tiles(stored, path.with_suffix(".geojson"))
        found.append(Judged(path.name, kind, row["label"] == "tumour", truth, model.predict(stored), stored))
    return found


def quarters(model: SlideModel, one: Judged) -> list[Judged]:
    """The slide cut in four at its middle; a quarter without tumour is benign."""
    place = one.stored.xy > np.median(one.stored.xy, axis=0)
    found = []
    for number in range(4):
        rows = np.flatnonzero(place @ (1, 2) == number)
        stored = replace(
            one.stored, grid=one.stored.grid.kept(rows), features=one.stored.features[rows], verdict=one.stored.verdict[rows]
        )
        truth = one.truth[rows]
        found.append(Judged(one.name, one.kind, bool(truth.any()), truth, model.predict(stored), stored))
    return found


def figures(slides: list[Judged]) -> dict[str, Any]:
    """Answers, map, calibration."""
    tumour = np.array([one.tumour for one in slides])
    chance = np.array([float(one.said.probabilities[1]) for one in slides])
    answers = [one.said.answer for one in slides]
    answered = np.array([answer not in (UNSURE, OUTSIDE) for answer in answers])
    right = np.array([answer == ("tumour" if one.tumour else "normal") for answer, one in zip(answers, slides, strict=True)])
    hot = np.array([bool((one.scores >= HOT).any()) for one in slides])
    within = [roc_auc_score(one.truth, one.scores) for one in slides if 0 < one.truth.sum() < len(one.truth)]
    truth, scores = np.concatenate([one.truth for one in slides]), np.concatenate([one.scores for one in slides])
    kind, values = slides[0].said.target.kind, np.stack([one.said.probabilities for one in slides])
    assert isinstance(kind, Classes)
    faultless = faultless_errors(kind, values.astype(np.float64), np.random.default_rng(0))
    return {
        "slides": len(slides),
        "auroc": both(tumour, chance),
        "answered": round(float(answered.mean()), 4),
        "right_of_those": round(float(right[answered].mean()), 4) if answered.any() else None,
        "outside": round(float(np.mean([answer == OUTSIDE for answer in answers])), 4),
        "calibration_error": round(calibration_error(tumour.astype(np.int64), chance), 4),
        "calibration_error_by_chance": [round(float(error), 4) for error in np.quantile(faultless, (0.5, 0.95))],
        "benign_with_a_hot_tile": round(float(hot[~tumour].mean()), 4) if (~tumour).any() else None,
        "tumour_with_a_hot_tile": round(float(hot[tumour].mean()), 4) if tumour.any() else None,
        "tile_auroc_within": [round(float(np.mean(within)), 4), round(float(np.min(within)), 4)] if within else None,
        "tile_auroc": both(truth, scores),
        "tile_ap": round(float(average_precision_score(truth, scores)), 4) if truth.any() else None,
    }


def both(truth: Flags, value: NDArray[Any]) -> float | None:
    return round(float(roc_auc_score(truth, value)), 4) if 0 < truth.sum() < len(truth) else None


def strangeness(usual: list[Judged], strange: list[Judged]) -> dict[str, Any]:
    """How strange slides are told from usual ones, kind by kind and all together."""
    known = [one.said.novelty for one in usual]
    found: dict[str, Any] = {"usual_called_outside": round(float(np.mean(np.array(known) > 1)), 4)}
    for kind in [*sorted({one.kind for one in strange}), "all"]:
        values = [one.said.novelty for one in strange if kind in (one.kind, "all")]
        truth = np.array([False] * len(known) + [True] * len(values))
        found[kind] = {
            "slides": len(values),
            "auroc": both(truth, np.array(known + values)),
            "called_outside": round(float(np.mean(np.array(values) > 1)), 4),
        }
    return found


def organs(model: SlideModel, folders: list[Path]) -> dict[str, Any]:
    """Real slides of other organs: what is said of each."""
    lines = []
    for folder in folders:
        for file, stored in stored_slides(folder).items():
            said = model.predict(stored)
            lines.append({"slide": file, "answer": said.answer, "novelty": round(said.novelty, 3), "tiles": len(stored.xy)})
    outside = sum(line["answer"] == OUTSIDE for line in lines)
    answered = sum(line["answer"] not in (OUTSIDE, UNSURE) for line in lines)
    return {"slides": len(lines), "outside": outside, "answered": answered, "each": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--features", type=Path, default=None)
    parser.add_argument("--organs", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    work, model = options.work, load_model(options.model)
    features = stored_slides(options.features or work / "feat")
    with (work / "reference.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    usual = judge(model, rows, work, features)
    with (work / "tissue" / "strange.csv").open(newline="") as file:
        strange = judge(model, list(csv.DictReader(file)), work / "tissue", features)
    lymph, other = ([one for one in usual if one.kind == kind] for kind in ("lymph", "other"))
    large = [one for one in lymph if len(one.truth) >= CROPPED]
    found = {
        "lymph_test": figures(lymph),
        "lymph_test_of_200_to_2000_tiles": figures([one for one in lymph if ASKED[0] <= len(one.truth) <= ASKED[1]]),
        "other_test": figures(other),
        "quarters_of_large_slides": figures([part for one in large for part in quarters(model, one)]),
        "by_tiles": {
            f"{low} to {high}": figures(some)
            for low, high in pairwise(SIZES)
            if (some := [one for one in lymph if low <= len(one.truth) < high])
        },
        "made_test": figures([one for one in usual if one.kind == "made"]),
        "strange": strangeness(usual, strange),
        "organs": organs(model, options.organs),
    }
    print(json.dumps(found, indent=1), flush=True)
    (options.model / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
