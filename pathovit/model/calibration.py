"""Calibration: what the numbers of a slide model are worth, learned on validation patients.

temperature     one divisor of all logits, so that probabilities are frequencies        Source: Guo et al., ICML 2017
hot             the tile evidence that benign patients hardly ever reach: tile score 0.5
conformity      how far true answers lie from certainty: a set of answers at any error rate
                Source: Vovk et al., "Algorithmic learning in a random world", 2005 (conformal, class by class)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HOT_RATE = 0.05  # of patients without the class, that may have one tile or more at or above score 0.5
KEPT = 1000  # conformity scores kept of each answer; of more, their quantiles


@dataclass(frozen=True)
class Calibration:
    """Numbers of one model. `conformity[q][o]` belongs to option o of question q (see `Kind.questions`)."""

    temperature: float = 1.0
    shift: tuple[float, ...] = (0.0,)  # (C,)
    hot: tuple[float, ...] = (0.0,)  # (C,) margins, calibrated
    hot_patients: tuple[int, ...] = (0,)  # patients without the class, that they were found on
    conformity: tuple[tuple[tuple[float, ...], ...], ...] = ()
    centre: float = 0.0  # value = logit * scale + centre, of a measurement or a risk
    scale: float = 1.0
    patients: int = 0

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Calibration:
        lists = tuple(tuple(tuple(option) for option in question) for question in found["conformity"])
        flat = {name: tuple(found[name]) for name in ("shift", "hot", "hot_patients")}
        return cls(**{**found, **flat, "conformity": lists})


def sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))  # never overflows


def fit_scaling(logits: Floats, loss: Callable[[Floats], float]) -> tuple[float, Floats]:
    """Temperature and shift (C,) with the least `loss` of `logits / temperature + shift`."""
    from scipy.optimize import minimize

    # In single precision a small step changes nothing, and the search would end where it began.
    logits = np.asarray(logits, np.float64)
    start = np.zeros(1 + logits.shape[1])
    bounds = [(-3, 3)] + [(-20, 20)] * logits.shape[1]
    found = minimize(lambda x: loss(logits * math.exp(x[0]) + x[1:]), start, method="L-BFGS-B", bounds=bounds)
    return float(math.exp(-found.x[0])), np.asarray(found.x[1:])


def upper_quantile(values: Floats, rate: float) -> float:
    """The value that a new one exceeds with a chance of at most `rate`; the highest, if they are too few to say."""
    ordered = np.sort(values[np.isfinite(values)])
    rank = math.ceil((len(ordered) + 1) * (1 - rate))
    return float(np.nextafter(ordered[min(rank, len(ordered)) - 1], np.inf))


def thin(values: Floats) -> tuple[float, ...]:
    """Sorted conformity scores, of many only the quantiles."""
    ordered = np.sort(values)
    if len(ordered) > KEPT:
        ordered = np.quantile(ordered, np.linspace(0, 1, KEPT), method="higher")
    return tuple(round(float(v), 6) for v in ordered)
