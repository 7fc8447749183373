"""Calibration: what the numbers of a slide model are worth, learned on validation patients.

temperature     one divisor of all logits, so that probabilities are frequencies        Source: Guo et al., ICML 2017
hot             the tile evidence that benign patients hardly ever reach: tile score 0.5
conformity      how far true answers lie from certainty: a set of answers at any error rate
                Source: Vovk et al., "Algorithmic learning in a random world", 2005 (conformal, class by class)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.targets import Target

Floats = NDArray[np.float64]
HOT_RATE = 0.05  # of patients without the class, that may have one tile or more at or above score 0.5
KEPT = 1000  # conformity scores kept of each answer; of more, their quantiles


@dataclass(frozen=True)
class Calibration:
    """Numbers of one model. `conformity[q][o]` belongs to option o of question q (see `questions`)."""

    temperature: float = 1.0
    hot: tuple[float, ...] = (0.0,)  # (C,) margins, after the temperature
    hot_patients: tuple[int, ...] = (0,)  # patients without the class, that they were found on
    conformity: tuple[tuple[tuple[float, ...], ...], ...] = ()
    centre: float = 0.0  # of a measurement, in the training part
    scale: float = 1.0
    patients: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Calibration:
        lists = tuple(tuple(tuple(option) for option in question) for question in found["conformity"])
        return cls(**{**found, "hot": tuple(found["hot"]), "hot_patients": tuple(found["hot_patients"]), "conformity": lists})


def questions(target: Target) -> list[tuple[str, ...]]:
    """What is decided: one question with the classes as options, or one of each label of a multilabel target."""
    if target.task == "multilabel":
        return [(f"no {name}", name) for name in target.classes]
    return [target.classes] if target.is_classification else []


def probabilities(target: Target, logits: Floats) -> Floats:
    """(..., C) calibrated logits to (..., classes); nothing for targets without classes."""
    if target.task == "binary":
        positive = _sigmoid(logits)
        return np.concatenate([1 - positive, positive], -1)
    if target.task == "multilabel":
        return _sigmoid(logits)
    if target.task == "multiclass":
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(raised / raised.sum(-1, keepdims=True))
    return logits[..., :0]


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))  # never overflows


def margins(target: Target, logits: Floats) -> Floats:
    """(..., C) log-odds of each class against all others."""
    if target.task != "multiclass":
        return logits
    chances = np.clip(probabilities(target, logits), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(chances) - np.log1p(-chances))


def calibrate(
    target: Target, logits: Floats, truth: NDArray[np.float32], hottest: Floats, centre: float, scale: float
) -> Calibration:
    """Fit on validation patients.

    Parameters
    ----------
    logits : (n, C) of each patient
    truth : (n, ...) as the target defines it
    hottest : (n, C) highest evidence plus bias of a patient's tiles, as margin; NaN where there is no evidence
    centre, scale : of a measurement, in the training part
    """
    if not target.is_classification:
        far = np.abs(logits[:, 0] - (truth[:, 0] - centre) / scale) if target.task == "regression" else np.empty(0)
        conformity = ((_thin(far),),) if len(far) else ()
        return Calibration(1.0, (0.0,), (0,), conformity, centre, scale, len(logits))
    temperature = fit_temperature(target, logits, truth)
    chances = probabilities(target, logits / temperature)
    hot, counted = [], []
    for column in range(target.outputs):
        without = hottest[truth[:, column] == 0, column] / temperature
        hot.append(upper_quantile(without, HOT_RATE) if np.isfinite(without).any() else 0.0)
        counted.append(len(without))
    found = []
    for question, options in enumerate(questions(target)):
        chance, right = _question(target, question, chances, truth)
        found.append(tuple(_thin(1 - chance[right == option, option]) for option in range(len(options))))
    return Calibration(temperature, tuple(hot), tuple(counted), tuple(found), patients=len(logits))


def _question(target: Target, question: int, chances: Floats, truth: NDArray[np.float32]) -> tuple[Floats, NDArray[np.int64]]:
    """Probability of each option (n, options), and which one is true (n,)."""
    if target.task == "multilabel":
        yes = chances[:, question]
        return np.stack([1 - yes, yes], -1), truth[:, question].astype(np.int64)
    return chances, truth[:, 0].astype(np.int64) if target.task == "binary" else truth.argmax(1)


def fit_temperature(target: Target, logits: Floats, truth: NDArray[np.float32]) -> float:
    """The divisor with the least log loss. Truth is softened as Platt does, or separable patients would ask for infinity.

    Source of the softening: Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    from scipy.optimize import minimize_scalar

    positives = truth.sum(0)
    high, low = (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2)
    soft = truth * high + (1 - truth) * low
    if target.task == "multiclass":
        soft = soft / soft.sum(1, keepdims=True)

    def loss(log_t: float) -> float:
        scaled = logits / math.exp(log_t)
        if target.task == "multiclass":
            top = scaled.max(1, keepdims=True)
            return float(np.mean(top[:, 0] + np.log(np.exp(scaled - top).sum(1)) - (soft * scaled).sum(1)))
        return float(np.mean(np.logaddexp(0, scaled) - soft * scaled))

    return float(math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x))


def upper_quantile(values: Floats, rate: float) -> float:
    """The value that a new one exceeds with a chance of at most `rate`; the highest, if they are too few to say."""
    ordered = np.sort(values[np.isfinite(values)])
    rank = math.ceil((len(ordered) + 1) * (1 - rate))
    return float(np.nextafter(ordered[min(rank, len(ordered)) - 1], np.inf))


def _thin(values: Floats) -> tuple[float, ...]:
    ordered = np.sort(values)
    if len(ordered) > KEPT:
        ordered = np.quantile(ordered, np.linspace(0, 1, KEPT), method="higher")
    return tuple(round(float(v), 6) for v in ordered)


def possible_answers(target: Target, calibration: Calibration, chances: Floats, error_rate: float) -> list[tuple[str, ...]]:
    """For each question the options that cannot be ruled out: the truth is among them but for `error_rate` of patients.

    With too few validation patients of a class it cannot be ruled out, and the answer stays open.
    """
    found = []
    for question, options in enumerate(questions(target)):
        chance = np.array([1 - chances[question], chances[question]]) if target.task == "multilabel" else chances
        kept = []
        for option, name in enumerate(options):
            known = np.asarray(calibration.conformity[question][option])
            as_strange = (known >= round(1 - float(chance[option]), 6)).sum()
            if (1 + as_strange) / (1 + len(known)) > error_rate:
                kept.append(name)
        found.append(tuple(kept))
    return found


def measured_interval(calibration: Calibration, logit: float, error_rate: float) -> tuple[float, float]:
    """Interval of a measurement that holds the truth but for `error_rate` of patients; infinite if they were too few."""
    known: Sequence[float] = calibration.conformity[0][0]
    rank = math.ceil((len(known) + 1) * (1 - error_rate))
    reach = known[rank - 1] if rank <= len(known) else math.inf
    return (logit - reach) * calibration.scale + calibration.centre, (logit + reach) * calibration.scale + calibration.centre
