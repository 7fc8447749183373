"""Whether probabilities can be believed whatever the amount of tissue: calibration of patients with few, some and many tiles."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pathovit.model.judged import OfSize
from pathovit.model.metrics import calibration_error
from pathovit.study.evaluation import Answers

SIZES, LEAST_PATIENTS = 3, 10
TRIES, ABOVE = 500, 0.95  # perfectly calibrated models that are tried, and the share that stays below the limit
Floats = NDArray[np.float64]


def by_size(answers: Answers, seed: int = 0) -> tuple[OfSize, ...]:
    """Patients in thirds by their tiles; fewer parts where patients are few, none for what has no probabilities."""
    parts = min(SIZES, len(answers.truth) // LEAST_PATIENTS)
    if not answers.target.is_classification or parts < 2 or not len(answers.tiles):
        return ()
    chance = np.random.default_rng(seed)
    order = np.argsort(answers.tiles, kind="stable")
    return tuple(_of_size(answers, rows, chance) for rows in np.array_split(order, parts))


def _of_size(answers: Answers, rows: NDArray[np.int64], chance: np.random.Generator) -> OfSize:
    tiles = answers.tiles[rows]
    classes = [(truth, probability) for _, truth, probability in answers.rows(rows).one_vs_rest()]
    drawn = [_error((chance.random(len(p)) < p, p) for _, p in classes) for _ in range(TRIES)]
    limit = float(np.quantile(drawn, ABOVE))
    return OfSize(int(tiles.min()), int(tiles.max()), len(rows), round(_error(classes), 4), round(limit, 4))


def _error(classes: Iterable[tuple[NDArray[np.generic], Floats]]) -> float:
    """Mean over classes, each against all others."""
    return float(np.mean([calibration_error(truth.astype(np.int64), probability) for truth, probability in classes]))
