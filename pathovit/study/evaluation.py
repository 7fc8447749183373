"""How good a slide model is: metrics over patients, each with its 95 % bootstrap interval; two models compared.

AUROC, AUPRC, balanced accuracy, sensitivity at 95 % specificity, Brier score and expected calibration error for classes;
C-index for survival; mean absolute error and R2 for measurements. Metrics themselves come from scikit-learn and lifelines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.model.calibration import probabilities
from pathovit.model.targets import Target, answer_columns, truth_columns

Floats = NDArray[np.float64]
Metric = Callable[["Answers"], float]
BOOTSTRAPS = 1000
FEWEST_FOR_INTERVAL = 20  # patients; an interval over fewer says more than it knows
CALIBRATION_BINS = 10
SPECIFICITY = 0.95
LOWER_IS_BETTER = ("brier", "ece", "mae")


@dataclass(frozen=True)
class Answers:
    """What a model said of n patients, and the truth."""

    target: Target
    patients: tuple[str, ...]
    truth: NDArray[np.float32]  # (n, ...) as the target defines it
    values: Floats  # (n, classes) probabilities; (n, 1) measurements or risks
    novelty: Floats = field(default_factory=lambda: np.empty(0))  # (n,) of the strangest slide; above 1: unlike the cohort

    def rows(self, chosen: NDArray[np.int64]) -> Answers:
        """The answers of some patients, repeats allowed."""
        return Answers(self.target, self.patients, self.truth[chosen], self.values[chosen])

    def one_vs_rest(self) -> list[tuple[str, NDArray[np.int64], Floats]]:
        """(name, truth (n,), probability (n,)) of each class that has an answer of its own."""
        truth = self.truth.astype(np.int64)
        values = self.values[:, 1:] if self.target.task == "binary" else self.values
        return [(name, truth[:, i], values[:, i]) for i, name in enumerate(self.target.score_names)]


def _mean_over_classes(metric: Callable[[NDArray[np.int64], Floats], float]) -> Metric:
    """Not a number where a class has no patient, or all."""

    def mean(answers: Answers) -> float:
        found = [metric(t, p) if 0 < t.sum() < len(t) else np.nan for _, t, p in answers.one_vs_rest()]
        return float(np.mean(found))

    return mean


def _auroc(truth: NDArray[np.int64], chance: Floats) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, chance))


def _auprc(truth: NDArray[np.int64], chance: Floats) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, chance))


def _sensitivity(truth: NDArray[np.int64], chance: Floats) -> float:
    """Sensitivity at the lowest threshold that at least 95 % of those without the class stay below."""
    without = np.sort(chance[truth == 0])
    threshold = without[int(np.ceil(SPECIFICITY * len(without))) - 1]
    return float((chance[truth == 1] > threshold).mean())


def _balanced_accuracy(answers: Answers) -> float:
    from sklearn.metrics import balanced_accuracy_score

    if answers.target.task == "multilabel":
        return _mean_over_classes(lambda t, p: float(balanced_accuracy_score(t, p >= 0.5)))(answers)
    truth = answers.truth[:, 0] if answers.target.task == "binary" else answers.truth.argmax(1)
    if len(np.unique(truth)) < answers.values.shape[1]:
        return float("nan")
    return float(balanced_accuracy_score(truth, answers.values.argmax(1)))


def _brier(answers: Answers) -> float:
    """Mean squared distance of probability and truth, over patients and classes."""
    return float(np.mean([((p - t) ** 2).mean() for _, t, p in answers.one_vs_rest()]))


def _ece(answers: Answers) -> float:
    """Expected calibration error: ten equal bins of the probability; multiclass by the probability of the class chosen."""
    if answers.target.task == "multiclass":
        chosen = answers.values.argmax(1)
        right = (answers.truth.argmax(1) == chosen).astype(np.int64)
        return calibration_error(right, answers.values.max(1))
    return float(np.mean([calibration_error(t, p) for _, t, p in answers.one_vs_rest()]))


def calibration_error(truth: NDArray[np.int64], chance: Floats) -> float:
    """Distance of frequency and probability, averaged over patients.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    bins = np.minimum((chance * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, truth - chance, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(chance))


def _c_index(answers: Answers) -> float:
    """Share of comparable pairs in which the patient at higher risk has the earlier event (Harrell)."""
    concordance_index = lifelines("utils").concordance_index
    if not answers.truth[:, 1].any():
        return float("nan")
    try:
        return float(concordance_index(answers.truth[:, 0], -answers.values[:, 0], answers.truth[:, 1]))
    except ZeroDivisionError:  # no two patients can be compared
        return float("nan")


def lifelines(module: str) -> Any:
    """The survival library, or how to get it."""
    import importlib

    try:
        return importlib.import_module(f"lifelines.{module}")
    except ImportError as error:
        raise SettingsError("Survival needs lifelines. Install it with: pip install 'pathovit[survival]'") from error


def _mae(answers: Answers) -> float:
    return float(np.abs(answers.values[:, 0] - answers.truth[:, 0]).mean())


def _r2(answers: Answers) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(answers.truth[:, 0], answers.values[:, 0])) if len(answers.truth) > 1 else float("nan")


FOR_CLASSES: dict[str, Metric] = {
    "auroc": _mean_over_classes(_auroc),
    "auprc": _mean_over_classes(_auprc),
    "balanced_accuracy": _balanced_accuracy,
    "sensitivity_at_95_specificity": _mean_over_classes(_sensitivity),
    "brier": _brier,
    "ece": _ece,
}
FOR_SURVIVAL: dict[str, Metric] = {"c_index": _c_index}
FOR_NUMBERS: dict[str, Metric] = {"mae": _mae, "r2": _r2}


def metrics_of(target: Target) -> dict[str, Metric]:
    """Metrics by name, the main one first."""
    if target.is_classification:
        return FOR_CLASSES
    return FOR_SURVIVAL if target.task == "survival" else FOR_NUMBERS


def main_metric(target: Target, truth: NDArray[np.float32], logits: Floats, centre: float, scale: float) -> dict[str, float]:
    """The first metric of a target, by name, from uncalibrated logits (n, C)."""
    values = probabilities(target, logits) if target.is_classification else logits * scale + centre
    name, metric = next(iter(metrics_of(target).items()))
    return {name: metric(Answers(target, (), truth, values))}


def draws(patients: int, seed: int) -> NDArray[np.int64]:
    """(BOOTSTRAPS, n) patients drawn with replacement; the same for every model and metric."""
    return np.random.default_rng(seed).integers(0, patients, (BOOTSTRAPS, patients))


def with_interval(metric: Metric, answers: Answers, seed: int = 0) -> dict[str, float | None]:
    """A metric with its 95 % bootstrap interval over patients; without one (None) for fewer than 20."""
    value = metric(answers)
    if len(answers.truth) < FEWEST_FOR_INTERVAL:
        return {"value": _number(value), "low": None, "high": None}
    low, high = _percentiles(np.array([metric(answers.rows(chosen)) for chosen in draws(len(answers.truth), seed)]))
    return {"value": _number(value), "low": low, "high": high}


def _percentiles(found: Floats) -> tuple[float | None, float | None]:
    known = found[np.isfinite(found)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return _number(low), _number(high)


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def evaluate(answers: Answers, seed: int = 0) -> dict[str, Any]:
    """Every metric of a set of patients, and its size."""
    found = {name: with_interval(metric, answers, seed) for name, metric in metrics_of(answers.target).items()}
    return {"patients": len(answers.truth), **found}


def glance(answers: Answers) -> dict[str, Any]:
    """The same without intervals: of patients that a model learned from they would say nothing."""
    found = {
        name: {"value": _number(metric(answers)), "low": None, "high": None, "learned_from": True}
        for name, metric in metrics_of(answers.target).items()
    }
    return {"patients": len(answers.truth), **found}


def compare(a: Answers, b: Answers, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Paired bootstrap: for every metric the value of both, b - a with its interval, and a two-sided p-value.

    Raises
    ------
    SettingsError : they answer other questions, have no patient in common, or disagree on the truth
    """
    if a.target != b.target:
        raise SettingsError(f"The two models answer different questions: {describe(a.target)}, and {describe(b.target)}.")
    common = sorted({*a.patients} & {*b.patients})
    if len(common) < FEWEST_FOR_INTERVAL:
        raise SettingsError(
            f"They have {len(common)} patients in common; at least {FEWEST_FOR_INTERVAL} are needed to compare them."
        )
    a, b = (x.rows(np.array([x.patients.index(name) for name in common])) for x in (a, b))
    if not np.array_equal(a.truth, b.truth):
        raise SettingsError("They were evaluated against different truths for the same patients. Use one table for both.")
    found: dict[str, dict[str, float | None]] = {}
    for name, metric in metrics_of(a.target).items():
        both = [(metric(a.rows(chosen)), metric(b.rows(chosen))) for chosen in draws(len(common), seed)]
        gap = np.array([second - first for first, second in both])
        gap = gap[np.isfinite(gap)]
        low, high = _percentiles(gap)
        tail = min((gap <= 0).sum(), (gap >= 0).sum()) if len(gap) else np.nan
        first, second = metric(a), metric(b)
        found[name] = {
            "patients": len(common),
            "a": _number(first),
            "b": _number(second),
            "difference": _number(second - first),
            "low": low,
            "high": high,
            "p_value": _number(min(1.0, 2 * (tail + 1) / (len(gap) + 1))) if len(gap) else None,
        }
    return found


def describe(target: Target) -> str:
    return f"{target.task} of {', '.join(target.columns)} ({', '.join(target.classes)})"


def answers_csv(answers: Answers, extra: dict[str, Sequence[Any]] | None = None) -> bytes:
    """One row per patient: truth, answer, and columns of one's own."""
    extra = extra or {}
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["patient", *truth_columns(answers.target), *answer_columns(answers.target), *extra])
    for i, patient in enumerate(answers.patients):
        truth = [f"{v:.9g}" for v in answers.truth[i]]
        writer.writerow([patient, *truth, *(f"{v:.9g}" for v in answers.values[i]), *(column[i] for column in extra.values())])
    return buffer.getvalue().encode("utf-8", "replace")


def read_answers(path: Path, target: Target) -> Answers:
    """The answers that `answers_csv` wrote.

    Raises
    ------
    SettingsError : missing, damaged, or of another target
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        truth = np.array([[float(row[name]) for name in truth_columns(target)] for row in rows], np.float32)
        values = np.array([[float(row[name]) for name in answer_columns(target)] for row in rows])
        return Answers(target, tuple(row["patient"] for row in rows), truth, values)
    except (OSError, KeyError, ValueError) as error:
        raise SettingsError(f"{path}: not the predictions that `pathovit evaluate` writes ({error}).") from error
