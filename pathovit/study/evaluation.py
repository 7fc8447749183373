"""How good a slide model is: metrics over patients, each with its 95 % bootstrap interval; two models compared.

AUROC, AUPRC, balanced accuracy, sensitivity at 95 % specificity, Brier score and expected calibration error for classes;
C-index for survival; mean absolute error and R2 for measurements. The metrics themselves are in `model/metrics.py`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.files import open_text
from pathovit.model.judged import Difference, Metric, Metrics, Pooling
from pathovit.model.targets import Target
from pathovit.outputs.names import Names

Floats = NDArray[np.float64]
Tell = Callable[[str], str]  # what results may call a patient
BOOTSTRAPS = 1000
FEWEST_FOR_INTERVAL = 20  # patients; an interval over fewer says more than it knows
LOWER_IS_BETTER = ("brier", "ece", "mae")


@dataclass(frozen=True)
class Answers:
    """What a model said of n patients, and the truth."""

    target: Target
    patients: tuple[str, ...]
    truth: NDArray[np.float32]  # (n, ...) as the target defines it
    values: Floats  # (n, classes) probabilities; (n, 1) measurements or risks
    novelty: Floats = field(default_factory=lambda: np.empty(0))  # (n,) of the strangest slide; above 1: unlike the cohort
    tiles: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # (n,) that were looked at
    fold: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # (n,) whose model answered; empty if one did

    def rows(self, chosen: NDArray[np.int64]) -> Answers:
        """The answers of some patients, repeats allowed."""
        fold = self.fold[chosen] if len(self.fold) else self.fold
        return Answers(self.target, self.patients, self.truth[chosen], self.values[chosen], fold=fold)

    def one_vs_rest(self) -> list[tuple[str, NDArray[np.int64], Floats]]:
        """(name, truth (n,), probability (n,)) of each class that has an answer of its own."""
        return self.target.kind.one_vs_rest(self.truth, self.values)

    def metric(self, name: str) -> float:
        """A metric of these patients; not a number where it is not defined."""
        if len(self.fold):
            return self.target.kind.over_folds(name, self.truth, self.values, self.fold)
        return self.target.kind.metric(name)(self.truth, self.values)


def main_metric(target: Target, truth: NDArray[np.float32], logits: Floats, centre: float, scale: float) -> dict[str, float]:
    """The first metric of a target, by name, from uncalibrated logits (n, C)."""
    name = next(iter(target.kind.metrics))
    return {name: target.kind.metric(name)(truth, target.kind.values(logits, centre, scale))}


def draws(patients: int, seed: int) -> NDArray[np.int64]:
    """(BOOTSTRAPS, n) patients drawn with replacement; the same for every model and metric."""
    return np.random.default_rng(seed).integers(0, patients, (BOOTSTRAPS, patients))


def with_interval(name: str, answers: Answers, seed: int = 0) -> Metric:
    """A metric with its 95 % bootstrap interval over patients; without one (None) for fewer than 20."""
    value = answers.metric(name)
    if len(answers.truth) < FEWEST_FOR_INTERVAL:
        return Metric(number_or_none(value))
    low, high = percentiles(np.array([answers.rows(chosen).metric(name) for chosen in draws(len(answers.truth), seed)]))
    return Metric(number_or_none(value), low, high)


def percentiles(found: Floats) -> tuple[float | None, float | None]:
    known = found[np.isfinite(found)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return number_or_none(low), number_or_none(high)


def number_or_none(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def evaluate(answers: Answers, seed: int = 0) -> Metrics:
    """Every metric of a set of patients, and its size."""
    found = {name: with_interval(name, answers, seed) for name in answers.target.kind.metrics}
    return Metrics(len(answers.truth), found)


def glance(answers: Answers) -> Metrics:
    """The same without intervals: of patients that a model learned from they would say nothing."""
    found = {name: Metric(number_or_none(answers.metric(name)), learned_from=True) for name in answers.target.kind.metrics}
    return Metrics(len(answers.truth), found)


def compare(a: Answers, b: Answers, seed: int = 0) -> dict[str, Difference]:
    """Paired bootstrap: for every metric the value of both, b - a with its interval, and a two-sided p-value.

    Raises
    ------
    SettingsError : they answer other questions, have no patient in common, or disagree on the truth
    """
    if a.target != b.target:
        raise SettingsError(f"The two models answer different questions: {a.target}, and {b.target}.")
    common = sorted({*a.patients} & {*b.patients})
    if len(common) < FEWEST_FOR_INTERVAL:
        raise SettingsError(
            f"They have {len(common)} patients in common; at least {FEWEST_FOR_INTERVAL} are needed to compare them."
        )
    a, b = (x.rows(np.array([x.patients.index(name) for name in common])) for x in (a, b))
    if not np.array_equal(a.truth, b.truth):
        raise SettingsError("They were evaluated against different truths for the same patients. Use one table for both.")
    found = {}
    for name in a.target.kind.metrics:
        both = [(a.rows(chosen).metric(name), b.rows(chosen).metric(name)) for chosen in draws(len(common), seed)]
        gap = np.array([second - first for first, second in both])
        gap = gap[np.isfinite(gap)]
        low, high = percentiles(gap)
        tail = min((gap <= 0).sum(), (gap >= 0).sum()) if len(gap) else np.nan
        first, second = a.metric(name), b.metric(name)
        p_value = number_or_none(min(1.0, 2 * (tail + 1) / (len(gap) + 1))) if len(gap) else None
        found[name] = Difference(
            len(common), number_or_none(first), number_or_none(second), number_or_none(second - first), low, high, p_value
        )
    return found


def against_pooling(model: Answers, plain: Answers, seed: int = 0) -> Pooling:
    """The main metric of a model and of plain pooling on the same patients, in the same order."""
    name = next(iter(model.target.kind.metrics))
    sign = -1 if name in LOWER_IS_BETTER else 1
    ours, theirs = model.metric(name), plain.metric(name)
    low = high = None
    if len(model.truth) >= FEWEST_FOR_INTERVAL:
        gaps = [model.rows(rows).metric(name) - plain.rows(rows).metric(name) for rows in draws(len(model.truth), seed)]
        low, high = percentiles(sign * np.array(gaps))
    return Pooling(
        name, len(model.truth), number_or_none(ours), number_or_none(theirs), number_or_none(sign * (ours - theirs)), low, high
    )


def answers_csv(answers: Answers, tell: Tell, extra: Mapping[str, Sequence[object]] | None = None) -> bytes:
    """One row per patient, as they may be called: truth, answer, and columns of one's own."""
    extra = extra or {}
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["patient", *answers.target.kind.truth_columns, *answers.target.kind.answer_columns, *extra])
    for i, patient in enumerate(answers.patients):
        truth = [f"{v:.9g}" for v in answers.truth[i]]
        writer.writerow(
            [tell(patient), *truth, *(f"{v:.9g}" for v in answers.values[i]), *(column[i] for column in extra.values())]
        )
    return buffer.getvalue().encode("utf-8", "replace")


def read_answers(path: Path, target: Target) -> Answers:
    """The answers that `answers_csv` wrote, of patients by name, as far as their names are kept beside it.

    Raises
    ------
    SettingsError : missing, damaged, or of another target
    """
    try:
        with open_text(path) as file:
            rows = list(csv.DictReader(file))
        truth = np.array([[float(row[name]) for name in target.kind.truth_columns] for row in rows], np.float32)
        values = np.array([[float(row[name]) for name in target.kind.answer_columns] for row in rows])
        names = Names.read(path.parent)
        return Answers(target, tuple(names.patient_of(row["patient"]) for row in rows), truth, values)
    except (OSError, KeyError, ValueError) as error:
        raise SettingsError(f"{path}: not the predictions that `pathovit evaluate` writes ({error}).") from error
