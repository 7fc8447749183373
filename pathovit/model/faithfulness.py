"""Does the heatmap show what the answer rests on?

    sum         the tiles' contributions and the bias add up to the logit
    deletion    tiles are taken away, those with the highest score first: the sooner the probability falls, the better
    insertion   tiles are put back in the same order: the sooner it rises, the better

Scores are compared with attention and with chance as the order. Figures are mean probabilities over the share of tiles.
Source: Petsiuk et al., "RISE", BMVC 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathovit.model.prediction import SlidePrediction
from pathovit.model.slide_model import SlideModel
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import HeatmapCheck, OrderFigures

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of tiles taken away
ORDERS = ("evidence", "attention", "random")
Order = NDArray[np.int64]


def sum_error(prediction: SlidePrediction) -> float:
    """Distance of the logit and what its tiles add up to; not a number for models without evidence."""
    total = prediction.contributions.astype(np.float64)
    known = total[np.isfinite(total).all(1)]
    return float(np.abs(known.sum(0) + prediction.bias - prediction.logits).max()) if len(known) else float("nan")


def check_bag(
    model: SlideModel, features: Tensor, xy_um: Tensor, pitch_um: float, scores: NDArray[Any], attention: NDArray[Any],
    column: int, seed: int = 0,
) -> tuple[OrderFigures, OrderFigures]:  # fmt: skip
    """Deletion and insertion figures of one bag for each order, of the class in `column`; tiles (N,) must all be read."""
    orders = {
        "evidence": np.argsort(-scores, kind="stable"),
        "attention": np.argsort(-attention, kind="stable"),
        "random": np.random.default_rng(seed).permutation(len(scores)),
    }

    def chance(kept: Order) -> float:
        chosen = torch.from_numpy(np.sort(kept))
        found = model.target.kind.probabilities(model.look(features[chosen], xy_um[chosen], pitch_um).logits)
        return model.target.kind.chance_of(found, column)

    whole = chance(np.arange(len(scores)))
    deletion: dict[str, float] = {}
    insertion: dict[str, float] = {}
    for name, order in orders.items():
        cuts = [min(round(share * len(order)), len(order) - 1) for share in SHARES]
        deleted = [whole, *(chance(order[cut:]) for cut in cuts[1:])]
        inserted = [*(chance(order[: max(1, round(share * len(order)))]) for share in SHARES[:-1]), whole]
        deletion[name] = round(float(np.trapezoid(deleted, SHARES)), 4)
        insertion[name] = round(float(np.trapezoid(inserted, SHARES)), 4)
    return OrderFigures(**deletion), OrderFigures(**insertion)


def check_heatmap(model: SlideModel, stored: SlideFeatures, prediction: SlidePrediction) -> HeatmapCheck:
    """The check of one slide's heatmap, for slide.json. Deletion and insertion need a class that was called."""
    error = sum_error(prediction)
    column = prediction.target.kind.called(prediction.probabilities)
    if column is None or not np.isfinite(error):
        return HeatmapCheck(round(error, 8) if np.isfinite(error) else None)
    ok = stored.ok
    features, xy_um = torch.from_numpy(stored.features[ok]), torch.from_numpy(stored.centres_um()[ok])
    scores, attention = prediction.tile_scores[ok, column], prediction.attention[ok]
    deletion, insertion = check_bag(model, features, xy_um, stored.pitch_um, scores, attention, column)
    return HeatmapCheck(round(error, 8), prediction.score_names[column], deletion, insertion)


@dataclass(frozen=True)
class OrderTest:
    """Mean figures of many slides, and how sure evidence is ahead (one-sided Wilcoxon signed-rank test; None where too few)."""

    evidence: float
    attention: float
    random: float
    p_value_against_attention: float | None
    p_value_against_random: float | None


@dataclass(frozen=True)
class CheckSummary:
    """Heatmap checks of many slides. As JSON it is in the cards of models."""

    slides: int
    largest_sum_error: float | None = None
    slides_with_a_class_called: int = 0
    deletion: OrderTest | None = None
    insertion: OrderTest | None = None
    remark: str = ""  # why there is no check

    def to_json(self) -> dict[str, object]:
        if self.remark:
            return {"slides": self.slides, "remark": self.remark}
        return {
            key: value
            for key, value in asdict(self).items()
            if value is not None or key == "largest_sum_error"
            if key != "remark"
        }


def summarise(checks: Sequence[HeatmapCheck]) -> CheckSummary:
    """Checks of many slides, or patients."""
    errors = [check.sum_error for check in checks if check.sum_error is not None]
    deletions = [check.deletion for check in checks if check.deletion]
    insertions = [check.insertion for check in checks if check.insertion]
    return CheckSummary(
        len(checks), max(errors, default=None), len(deletions), _tested(deletions, 1), _tested(insertions, -1)
    )  # fmt: skip


def _tested(figures: Sequence[OrderFigures], sign: int) -> OrderTest | None:
    from scipy.stats import wilcoxon

    if not figures:
        return None
    values = {name: np.array([getattr(found, name) for found in figures]) for name in ORDERS}
    p_values: dict[str, float | None] = {}
    for other in ORDERS[1:]:
        ahead = sign * (values[other] - values["evidence"])
        p = (float(wilcoxon(ahead, alternative="greater").pvalue) if ahead.any() else 1.0) if len(ahead) >= 6 else None
        p_values[other] = None if p is None else float(f"{p:.2g}")
    means = {name: round(float(v.mean()), 4) for name, v in values.items()}
    return OrderTest(means["evidence"], means["attention"], means["random"], *(p_values[other] for other in ORDERS[1:]))
