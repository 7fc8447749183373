"""How far readers agree: Cohen's kappa of each two, over the slides that both decided on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import cohen_kappa_score

from pathovit.review.desk import Desk
from pathovit.tables import spelling

DRAWS, LEAST_SLIDES = 1000, 10
Pair = tuple[str, str]


@dataclass(frozen=True)
class Agreement:
    """Two readers."""

    readers: Pair
    slides: int
    agreed: int
    kappa: float | None  # None where both always say the same one thing
    interval: tuple[float, float] | None  # 95 %, bootstrap over slides; None for few slides


def agreements(desk: Desk) -> list[Agreement]:
    """Of all pairs of readers with a slide in common."""
    read: dict[str, dict[str, str]] = {}
    for case in desk.cases():
        for name, one in desk.opinions(case).items():
            if one.label is not None:
                read.setdefault(name, {})[case.slide_id] = spelling(one.label) or "unsure"
    found = []
    for a, b in combinations(sorted(read), 2):
        both = [(read[a][slide], read[b][slide]) for slide in sorted(read[a].keys() & read[b].keys())]
        if both:
            found.append(Agreement((a, b), len(both), sum(x == y for x, y in both), kappa(both), kappa_interval(both)))
    return found


def kappa(pairs: Sequence[Pair]) -> float | None:
    """Cohen's kappa; None where it is not defined. Source: Cohen, Educ Psychol Meas 20, 1960."""
    if len({label for pair in pairs for label in pair}) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        value = float(cohen_kappa_score(*zip(*pairs, strict=True)))
    return None if np.isnan(value) else value


def kappa_interval(pairs: Sequence[Pair], seed: int = 0) -> tuple[float, float] | None:
    if len(pairs) < LEAST_SLIDES:
        return None
    chance = np.random.default_rng(seed)
    drawn = [kappa([pairs[place] for place in chance.integers(0, len(pairs), len(pairs))]) for _ in range(DRAWS)]
    known = [value for value in drawn if value is not None]
    if not known:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
