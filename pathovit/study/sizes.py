"""Whether probabilities can be believed whatever the amount of tissue: calibration of patients with few, some and many tiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathovit.model.judged import OfSize
from pathovit.model.targets.classes import Classes
from pathovit.study.evaluation import Answers

SIZES, LEAST_PATIENTS = 3, 10
Floats = NDArray[np.float64]
TRIES, FALSE_ALARMS = 500, 0.05  # models without any fault that are tried, and how many of them may be above a limit at any size


def by_size(answers: Answers, part: str, seed: int = 0) -> tuple[OfSize, ...]:
    """Patients of a part in thirds by their tiles; fewer where patients are few, none where all have as many or nothing is a probability."""
    parts = min(SIZES, len(answers.truth) // LEAST_PATIENTS)
    if not isinstance(answers.target.kind, Classes) or parts < 2 or np.ptp(answers.tiles) == 0:
        return ()
    chance = np.random.default_rng(seed)
    order = np.lexsort((chance.permutation(len(answers.tiles)), answers.tiles))  # a table may be sorted by its labels
    return tuple(_of_size(answers, rows, part, FALSE_ALARMS / parts, chance) for rows in np.array_split(order, parts))


def faultless_errors(kind: Classes, values: Floats, chance: np.random.Generator) -> Floats:
    """(TRIES,) calibration errors of models without any fault that say these probabilities."""
    return np.array([kind.ece(kind.drawn_truth(values, chance), values) for _ in range(TRIES)])


def _of_size(answers: Answers, rows: NDArray[np.int64], part: str, false_alarms: float, chance: np.random.Generator) -> OfSize:
    kind, values, tiles = answers.target.kind, answers.values[rows], answers.tiles[rows]
    assert isinstance(kind, Classes)
    limit = float(np.quantile(faultless_errors(kind, values, chance), 1 - false_alarms))
    error = kind.ece(answers.truth[rows], values)
    return OfSize(part, int(tiles.min()), int(tiles.max()), len(rows), round(error, 4), round(limit, 4))
