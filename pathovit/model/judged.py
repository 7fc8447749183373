"""What is known of how good a model is: records that its card keeps, and their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SAID = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "c_index": "C-index",
    "mae": "mean absolute error",
    "r2": "R2",
    "tile_auroc": "map, AUROC per tile",
    "tile_ap": "map, average precision per tile",
    "hot_inside": "map, share found inside",
    "hot_outside": "map, share shown outside",
}


@dataclass(frozen=True)
class Metric:
    """A metric, and its 95 % interval where there are patients enough for one; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    learned_from: bool = False  # of patients that the model learned from, of whom an interval would say nothing

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {"value": self.value, "low": self.low, "high": self.high}
        return found | {"learned_from": True} if self.learned_from else found

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        if self.learned_from:
            return str(self.value)
        if self.low is None:
            return f"{self.value} (too few patients for an interval)"
        return f"{self.value} ({self.low} to {self.high})"


@dataclass(frozen=True)
class Metrics:
    """Metrics of a set of patients, by name, the main one first."""

    patients: int
    found: Mapping[str, Metric]

    def __getitem__(self, name: str) -> Metric:
        return self.found[name]

    def to_json(self) -> dict[str, object]:
        return {"patients": self.patients, **{name: metric.to_json() for name, metric in self.found.items()}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Metrics:
        """Of what a card holds; what else stands beside the metrics is left out."""
        return cls(found["patients"], {name: Metric(**found[name]) for name in found if name in SAID})


@dataclass(frozen=True)
class Difference:
    """A metric of two models on the same patients."""

    patients: int
    a: float | None
    b: float | None
    difference: float | None  # b - a
    low: float | None
    high: float | None
    p_value: float | None  # two-sided


@dataclass(frozen=True)
class Counts:
    """Questions that were asked of patients, and how they were answered."""

    asked: int = 0
    unsure: int = 0
    by_probability: int = 0  # unsure, if nobody were unlike the cohort
    usual: int = 0  # asked of patients like the cohort
    covered: int = 0  # of these, with the truth among the possible answers

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Abstention:
    """How often the answer is unsure, by the rule that `run` and `predict` follow, and whether the promise is kept."""

    error_rate: float
    answers: int  # questions that were asked
    unsure: float  # share with more or less than one possible answer, of all; every answer for a patient unlike the cohort is
    unsure_by_probability: float
    strange: float  # share of patients unlike the cohort
    coverage: float | None  # share of the others whose truth is among the possible answers; `error_rate` may be wrong
    remark: str  # what must be said of that coverage; empty if it is as promised
    counts: Counts
    strange_patients: int
    patients: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Abstention:
        """Of what a card holds; what else stands beside it is left out."""
        return cls(**{name: found[name] for name in cls.__annotations__ if name != "counts"}, counts=Counts(**found["counts"]))

    def __str__(self) -> str:
        coverage = "none to judge by" if self.coverage is None else f"{self.coverage:.1%}"
        text = (
            f"at an error rate of {self.error_rate:g}, {self.unsure:.1%} of {self.answers} answers are unsure "
            f"({self.unsure_by_probability:.1%} by their probabilities alone; {self.strange:.1%} of patients are unlike the cohort); "
            f"of the other patients the truth is among the possible answers in {coverage}"
        )
        return text + (f". {self.remark}" if self.remark else "")


@dataclass(frozen=True)
class Pooling:
    """A model beside the mean of all tiles and a linear layer, fitted and judged on the same patients."""

    metric: str
    patients: int
    model: float | None
    mean: float | None
    difference: float | None  # how much better the model is; below 0 it is worse
    low: float | None
    high: float | None

    def __str__(self) -> str:
        name = SAID[self.metric]
        text = f"plain pooling (the mean of all tiles) on the same {self.patients} patients: {name} {self.mean}; this model: {self.model}"
        if self.difference is None:
            return text
        spread = "" if self.low is None else f" ({self.low} to {self.high})"
        better = "better" if self.difference > 0 else "worse" if self.difference < 0 else "no better"
        text += f", {better} by {abs(self.difference)}{spread}"
        return text if self.difference > 0 else text + ". It has learned nothing that the mean of all tiles does not say"


@dataclass(frozen=True)
class OfSize:
    """How well the probabilities of patients with so much tissue are calibrated."""

    part: str  # that they are of
    fewest: int  # tiles
    most: int
    patients: int
    error: float  # of calibration
    by_chance: float  # of models without any fault 95 % stay below it, at all sizes

    def __str__(self) -> str:
        text = f"calibration error {self.error:.3f} on {self.patients} patients of {self.fewest:,} to {self.most:,} tiles ({self.part}; up to {self.by_chance:.3f} by chance)"
        return text + (": more than chance explains" if self.error > self.by_chance else "")


@dataclass(frozen=True)
class Crossed:
    """Figures over all patients of a cross-validation, each answered by the model that has not seen its fold."""

    folds: int
    metrics: Metrics
    abstention: Abstention | None
    pooling: Pooling | None = None
    sizes: tuple[OfSize, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {"folds": self.folds, **self.metrics.to_json(), "abstention": self.abstention and self.abstention.to_json()}


@dataclass(frozen=True)
class LeftOutFigures:
    """How good a taught model is, from painted tiles that it had not seen; `by` is what was left out at a time."""

    by: str  # blocks of a slide, slides, patients
    folds: int
    tiles: int
    auroc: float  # per tile, mean over classes, each against all others
    auroc_of: Mapping[str, float]
    right: Mapping[str, float]  # share of a class's tiles that are taken for it

    def __str__(self) -> str:
        right = ", ".join(f"{share:.0%} of {name}" for name, share in self.right.items())
        where = {
            "blocks": "elsewhere on slides that were painted",
            "slides": "on slides left out",
            "patients": "on patients left out",
        }
        return f"{where[self.by]}: right for {right}; AUROC {self.auroc:.3f} ({self.tiles} tiles, {self.folds} folds)"


def say_left_out(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of what the card of a taught model holds, a sentence each."""
    if not found:
        return [
            "How good it is cannot be told: that takes two strokes of every class at least, so far apart that one can be left out. "
            "Paint more, elsewhere."
        ]
    return [f"Of painted tiles that it had not seen, {LeftOutFigures(**figures)}" for figures in found]
