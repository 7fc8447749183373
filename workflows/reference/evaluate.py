"""What the reference model can and cannot do, on tissue it has not seen: figures for its card.

python workflows/reference/evaluate.py --data DATA --work WORK --model MODEL

Needs what make_mosaics.py and `pathovit embed` left in WORK. Writes evaluation.json into the model's folder: tiles of
the PCam test part, each as a slide of one tile; tiles of test mosaics and of made slides against their outlines; and
the scores of every atlas slide.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_mosaics import TRAINING_ATLAS, read_labels
from numpy.typing import NDArray
from shapely import box, union_all
from shapely.geometry import shape

from pathovit.aggregator import SlideModel, load_model
from pathovit.encoders import load_encoder
from pathovit.features import SlideFeatures
from pathovit.pipeline import SlideJob, analyse_slide
from pathovit.settings import Settings
from pathovit.store import FeatureStore
from pathovit.training import auroc, with_interval

PITCH_UM = 96.0
HOT = 0.5


def pcam_tiles(data: Path, model: SlideModel) -> dict[str, Any]:
    """AUROC of the evidence of single tiles on the PCam test part."""
    images, labels = zip(*read_labels(data / "pcam" / "test_labels.csv"), strict=True)
    encoder = load_encoder("reference")
    features = torch.from_numpy(np.concatenate([encoder.embed(np.stack(images[i : i + 50])) for i in range(0, len(images), 50)]))
    with torch.inference_mode():
        logits = [float(model.network(tile[None], torch.zeros(1, 2), PITCH_UM).logits) for tile in features]
    return {"tiles": len(labels), "auroc": auroc_with_interval(np.array(labels), np.array(logits))}


def auroc_with_interval(truth: NDArray[Any], scores: NDArray[Any]) -> dict[str, float | None]:
    return with_interval(lambda t, s: auroc(t, np.stack([-s, s], -1)), truth, scores, seed=0)


def read_slide(work: Path, stem: str) -> SlideFeatures:
    (folder,) = (work / "feat" / "slides").glob(f"{stem}-????????????")
    return FeatureStore(folder, Path(stem)).read(folder.name)


def truth_of(slide: SlideFeatures, outline: Path) -> NDArray[np.bool_]:
    """Tiles (N,) that lie at least half on tumour."""
    tumour = union_all([shape(f["geometry"]) for f in json.loads(outline.read_text())["features"]])
    side = np.asarray(slide.tile_l0)
    squares = box(*np.concatenate([slide.xy, slide.xy + side], axis=1).T)
    return np.array([tumour.intersection(square).area > 0.5 * square.area for square in squares])


def localisation(work: Path, rows: list[dict[str, str]], model: SlideModel) -> dict[str, Any]:
    """Slide AUROC, per-tile AUROC within tumour slides, and how cold benign slides stay."""
    answers, labels, within, hottest, hot_share = [], [], [], [], []
    for row in rows:
        path = Path(row["slide"])
        slide = read_slide(work, path.stem)
        found = model.predict(slide)
        answers.append(float(found.probabilities[1]))
        labels.append(int(row["label"] == "tumour"))
        scores = found.tile_scores[slide.ok, 0]
        if labels[-1]:
            truth = truth_of(slide, path.with_suffix(".geojson"))[slide.ok]
            if 0 < truth.sum() < len(truth):
                within.append(auroc(truth.astype(int), np.stack([-scores, scores], -1)))
        else:
            hottest.append(float(scores.max()))
            hot_share.append(float((scores > HOT).mean()))
    return {
        "slides": len(rows),
        "slide_auroc": auroc_with_interval(np.array(labels), np.array(answers)),
        "tile_auroc_within_tumour_slides": {"mean": mean(within), "lowest": round(min(within), 4), "slides": len(within)},
        "benign_slides": {
            "slides": len(hottest),
            "with_a_hot_tile": sum(h > HOT for h in hottest),
            "share_of_hot_tiles": mean(hot_share),
        },
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
        job = SlideJob(data / "atlas" / row["file"], mpp)
        found, _ = analyse_slide(job.path, encoder, model, work / "atlas_out", Settings(), mpp)
        scores = found.tile_scores[np.isfinite(found.tile_scores[:, 0]), 0]
        lines.append(
            {
                "slide": row["file"],
                "diagnosis": row["diagnosis"],
                "malignant": row["malignant"] == "1",
                "used_in_training": row["patient"] in TRAINING_ATLAS,
                "probability": round(float(found.probabilities[1]), 4),
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
    with (options.work / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    found = {
        "pcam_test_tiles": pcam_tiles(options.data, model),
        "test_mosaics": localisation(options.work, [r for r in rows if "mosaic" in r["slide"]], model),
        "made_test_slides": localisation(options.work, [r for r in rows if "made" in r["slide"]], model),
    }
    print(json.dumps(found, indent=1), flush=True)
    found["atlas"] = atlas(options.data, options.work, model)
    (options.model / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
