"""What is asked of a fitted model beside its answers: strangeness, faithfulness, slides of their own, invariance, other tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mosaics import tumour_tiles
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from stored import by_stem

from pathovit.manifest import read_manifest
from pathovit.model.faithfulness import check_bag, summarise
from pathovit.model.slide_model import SlideModel
from pathovit.outputs.folder import SlideFolder
from pathovit.outputs.records import HeatmapCheck
from pathovit.outputs.store import FeatureStore
from pathovit.study.cohort import Bag, make_bag

HOT = 0.5
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What one model says of the test slides."""

    probability: Scores  # (n,)
    scores: list[Scores]  # tile scores of each slide; NaN for kinds without
    attention: list[Scores]


def judge_model(model: SlideModel, bags: list[Bag]) -> Judged:
    seen = [model.look(bag.features, bag.xy_um, bag.pitch_um) for bag in bags]
    chances = np.array([model.target.kind.probabilities(s.logits)[1] for s in seen])
    return Judged(chances, [model.tile_scores(s.evidence + s.bias)[:, 0] for s in seen], [s.attention for s in seen])


def truth_of(folder: Path, bag: Bag, outlines: Path | None = None) -> NDArray[np.bool_]:
    """Tiles (n,) of a bag that lie at least half on tumour; outlines are beside the slides, unless they are elsewhere."""
    slide = FeatureStore(by_stem(folder / "feat")[bag.patient], Path(bag.patient)).read()
    return tumour_tiles(slide, (outlines or folder / "slides") / f"{bag.patient}.geojson")[slide.ok]


def novelty(model: SlideModel, folder: Path, usual: list[Bag]) -> dict[str, Any]:
    """AUROC of the novelty score: slides of each strange kind against the usual test slides."""
    known = [model.novelty.slide(bag.features.float().numpy()) for bag in usual] if model.novelty else []
    found: dict[str, Any] = {"usual_flagged": round(float(np.mean(np.array(known) > 1)), 4)}
    rows = [row for row in read_manifest(folder / "strange.csv") if row.label("split") == "test"]
    stored = by_stem(folder / "feat")
    for kind in ("stain", "blur", "foreign"):
        strange, refused = [], 0
        for row in rows:
            if row.label("strange") == kind:
                store = stored.get(row.slide.stem)
                if store is None:  # so strange that no tissue was found on it
                    refused += 1
                    continue
                slide = FeatureStore(store, row.slide).read()
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
    for name, store in by_stem(folder / "feat").items():
        if not name.startswith("breast-complete"):
            continue
        slide = FeatureStore(store, Path(name)).read()
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
