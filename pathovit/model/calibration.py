"""Calibration: what the numbers of a slide model are worth, learned on validation patients.

temperature     one divisor of all logits, so that probabilities are frequencies        Source: Guo et al., ICML 2017
hot             the tile evidence that benign patients hardly ever reach: tile score 0.5
conformity      how far true answers lie from certainty: a set of answers at any error rate
                Source: Vovk et al., "Algorithmic learning in a random world", 2005 (conformal, class by class)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.model.targets import Target

Floats = NDArray[np.float64]
HOT_RATE = 0.05  # of patients without the class, that may have one tile or more at or above score 0.5
KEPT = 1000  # conformity scores kept of each answer; of more, their quantiles


@dataclass(frozen=True)
class Calibration:
    """Numbers of one model. `conformity[q][o]` belongs to option o of question q (see `questions`)."""

    temperature: float = 1.0
    shift: tuple[float, ...] = (0.0,)  # (C,)
    hot: tuple[float, ...] = (0.0,)  # (C,) margins, calibrated
    hot_patients: tuple[int, ...] = (0,)  # patients without the class, that they were found on
    conformity: tuple[tuple[tuple[float, ...], ...], ...] = ()
    centre: float = 0.0  # value = logit * scale + centre, of a measurement or a risk
    scale: float = 1.0
    patients: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Calibration:
        lists = tuple(tuple(tuple(option) for option in question) for question in found["conformity"])
        flat = {name: tuple(found[name]) for name in ("shift", "hot", "hot_patients")}
        return cls(**{**found, **flat, "conformity": lists})


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


def scaling(target: Target, logits: Floats, truth: NDArray[np.float32], centre: float, scale: float) -> Calibration:
    """The first half of a calibration: temperature and shift, from the raw logits (n, C) of validation patients.

    centre, scale : of a measurement, in the training part
    """
    if target.task == "regression":
        return Calibration(centre=centre, scale=scale, patients=len(logits))
    if target.task == "survival":  # a risk has no unit of its own: spreads from the mean of these patients
        spread = max(float(logits.std()), 1e-6)
        return Calibration(
            centre=-float(logits.mean()) / spread, scale=1 / spread, hot=(float(logits.mean()),), patients=len(logits)
        )
    temperature, shift = fit_scaling(target, logits, truth)
    return Calibration(temperature, tuple(float(s) for s in shift), patients=len(logits))


def calibrate(target: Target, scaled: Calibration, logits: Floats, truth: NDArray[np.float32], hottest: Floats) -> Calibration:
    """The second half: what scores and answers are worth once they are scaled.

    Parameters
    ----------
    logits : (n, C) of validation patients, scaled
    truth : (n, ...) as the target defines it
    hottest : (n, C) highest margin of a patient's tiles, scaled; NaN where there is no evidence
    """
    if not target.is_classification:
        far = np.abs(logits[:, 0] - (truth[:, 0] - scaled.centre) / scaled.scale)
        return replace(scaled, conformity=((_thin(far),),)) if target.task == "regression" else scaled
    hot, counted = [], []
    for column in range(target.outputs):
        without = hottest[truth[:, column] == 0, column]
        hot.append(upper_quantile(without, HOT_RATE) if np.isfinite(without).any() else 0.0)
        counted.append(len(without))
    chances, found = probabilities(target, logits), []
    for question, options in enumerate(questions(target)):
        chance, right = _question(target, question, chances, truth)
        found.append(tuple(_thin(1 - chance[right == option, option]) for option in range(len(options))))
    return replace(scaled, hot=tuple(hot), hot_patients=tuple(counted), conformity=tuple(found))


def _question(target: Target, question: int, chances: Floats, truth: NDArray[np.float32]) -> tuple[Floats, NDArray[np.int64]]:
    """Probability of each option (n, options), and which one is true (n,)."""
    if target.task == "multilabel":
        yes = chances[:, question]
        return np.stack([1 - yes, yes], -1), truth[:, question].astype(np.int64)
    return chances, truth[:, 0].astype(np.int64) if target.task == "binary" else truth.argmax(1)


def fit_scaling(target: Target, logits: Floats, truth: NDArray[np.float32]) -> tuple[float, Floats]:
    """Temperature and shift (C,) with the least log loss of `logits / temperature + shift`."""
    from scipy.optimize import minimize

    soft = _softened(target, truth)

    def loss(x: Floats) -> float:
        return _log_loss(target, logits * math.exp(x[0]) + x[1:], soft)

    start = np.zeros(1 + logits.shape[1])
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(-3, 3)] + [(-20, 20)] * logits.shape[1])
    return float(math.exp(-found.x[0])), np.asarray(found.x[1:])


def calibrated_loss(target: Target, logits: Floats, truth: NDArray[np.float32]) -> float:
    """Log loss at the best temperature and shift: how good an answer is once it is calibrated."""
    temperature, shift = fit_scaling(target, logits, truth)
    return _log_loss(target, logits / temperature + shift, _softened(target, truth))


def _softened(target: Target, truth: NDArray[np.float32]) -> Floats:
    """Truth a little less than certain, or patients that can be told apart without fault would ask for infinite logits.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    positives = truth.sum(0, dtype=np.float64)
    soft = truth * (positives + 1) / (positives + 2) + (1 - truth) / (len(truth) - positives + 2)
    return np.asarray(soft / soft.sum(1, keepdims=True) if target.task == "multiclass" else soft, np.float64)


def _log_loss(target: Target, logits: Floats, soft: Floats) -> float:
    if target.task == "multiclass":
        top = logits.max(1, keepdims=True)
        return float(np.mean(top[:, 0] + np.log(np.exp(logits - top).sum(1)) - (soft * logits).sum(1)))
    return float(np.mean(np.logaddexp(0, logits) - soft * logits))


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
