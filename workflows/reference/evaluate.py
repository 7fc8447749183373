"""What the reference model can and cannot do, on tissue it has not seen: figures for its card.

python workflows/reference/evaluate.py --data DATA --work WORK --model MODEL

Needs what training_slides.py and `pathovit embed` left in WORK. Writes evaluation.json into the model's folder: tiles of
the PCam test part, each as a slide of one tile; lymph node mosaics and made slides of the test part against their outlines;
and the scores of every atlas slide.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cohort_study import HOT, cold, judge_model, localisation, truth_of
from cohorts import read_labels
from training_slides import TRAINING_ATLAS

from pathovit.encoders import load_encoder
from pathovit.manifest import read_manifest
from pathovit.model.slide_model import SlideModel, load_model
from pathovit.run.plan import SlideJob, with_mpp
from pathovit.run.single import analyse_slide
from pathovit.settings import Settings
from pathovit.study.cohort import load_cohort
from pathovit.study.evaluation import Answers, evaluate

PITCH_UM = 96.0


def pcam_tiles(data: Path, model: SlideModel) -> dict[str, Any]:
    """Metrics of single tiles of the PCam test part, each as a slide of its own."""
    images, labels = zip(*read_labels(data / "pcam" / "test_labels.csv"), strict=True)
    encoder = load_encoder("reference")
    features = torch.from_numpy(np.concatenate([encoder.embed(np.stack(images[i : i + 50])) for i in range(0, len(images), 50)]))
    logits = np.array([model.look(tile[None], torch.zeros(1, 2), PITCH_UM).logits[0] for tile in features])
    positive = 1 / (1 + np.exp(-logits))
    names = tuple(map(str, range(len(labels))))
    answers = Answers(model.target, names, np.array(labels, np.float32)[:, None], np.stack([1 - positive, positive], -1))
    return {"tiles": len(labels), "auroc": evaluate(answers)["auroc"].to_json()}


def slides_of(work: Path, model: SlideModel, prefix: str, folder: Path) -> dict[str, Any]:
    """Slide answers and where the heatmap lies, on test slides whose name begins with `prefix`."""
    rows = [
        row for row in read_manifest(work / "reference.csv") if row.label("split") == "test" and row.slide.name.startswith(prefix)
    ]
    bags = list(load_cohort(rows, model.target, work / "pcam" / "feat").bags)
    judged = judge_model(model, bags)
    label = np.array([int(bag.truth[0]) for bag in bags])
    truth = [
        truth_of(work / "pcam", bag, folder) if y else np.zeros(len(bag.features), bool)
        for bag, y in zip(bags, label, strict=True)
    ]
    answers = Answers(
        model.target, tuple(bag.patient for bag in bags), label[:, None].astype(np.float32),
        np.stack([1 - judged.probability, judged.probability], -1),
    )  # fmt: skip
    return {
        "slides": len(bags),
        "metrics": evaluate(answers).to_json(),
        "localisation": localisation({"slide_transformer": [judged]}, truth),
        "cold": cold([judged], label, truth),
    }


def mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def atlas(data: Path, work: Path, model: SlideModel) -> list[dict[str, Any]]:
    """Scores of every atlas slide at about 1 um/px, through the pipeline that users run."""
    encoder, lines = load_encoder("reference"), []
    with (data / "atlas" / "slides.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith("1mpp/")]
    for row in rows:
        mpp = None if row["mpp_known"] == "1" else float(row["mpp_assumed"])
        job = with_mpp(SlideJob(data / "atlas" / row["file"]), mpp)
        found, _ = analyse_slide(job.path, encoder, model, work / "atlas_out", Settings(), mpp)
        scores = found.tile_scores[np.isfinite(found.tile_scores[:, 0]), 0]
        lines.append(
            {
                "slide": row["file"],
                "diagnosis": row["diagnosis"],
                "malignant": row["malignant"] == "1",
                "used_in_training": row["patient"] in TRAINING_ATLAS,
                "probability": round(float(found.probabilities[1]), 4),
                "answer": found.answer,
                "novelty": round(found.novelty, 3),
                "mean_tile_score": mean(list(scores)),
                "share_of_hot_tiles": mean(list(scores > HOT)),
            }
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    model = load_model(options.model)
    found = {
        "pcam_test_tiles": pcam_tiles(options.data, model),
        "test_mosaics": slides_of(options.work, model, "pcam-", options.work / "pcam" / "slides"),
        "made_test_slides": slides_of(options.work, model, "made-", options.work / "made"),
    }
    print(json.dumps(found, indent=1), flush=True)
    found["atlas"] = atlas(options.data, options.work, model)
    (options.model / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
