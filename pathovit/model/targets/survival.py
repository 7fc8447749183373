"""A time and an event column. Truth (2,): time, 1 if the event happened. One logit: the risk, which has no unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.model.calibration import Calibration, Floats
from pathovit.model.metrics import comparable, concordance
from pathovit.model.targets.kind import Cells, Chances, Interval, Kind, Options, Truth, numbers_of, require_flags

if TYPE_CHECKING:
    from torch import Tensor


class Survival(Kind):
    """The risk of an event."""

    task = "survival"
    is_classification = False
    least_bags = 16  # a Cox loss compares patients with each other
    metrics: ClassVar[Mapping[str, str]] = {"c_index": "c_index"}

    @classmethod
    def columns_wanted(cls, given: int) -> int:
        return 2

    @classmethod
    def class_names(cls, columns: Options, cells: Cells, positive: str | None) -> Options:
        numbers_of(columns, cells)
        return ("risk",)

    def read(self, line: int, values: Options) -> Truth:
        found = self.numbers(line, values)
        require_flags(line, found[1:], self.columns[1:], values[1:])
        if not found[0] > 0:
            raise SettingsError(f"Line {line}: {self.columns[0]} is {values[0]}; a time must be above 0.")
        return found

    def require_spread(self, truth: Truth) -> None:
        if not truth[:, 1].any():
            raise SettingsError(f"Column {self.columns[1]!r} is 0 in every row: without an event there is nothing to learn.")

    @property
    def answer_columns(self) -> list[str]:
        return ["risk"]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        return truth[:, 1].astype(np.int64)

    def counts(self, truth: Truth) -> list[tuple[str, int]]:
        return [("events", int(truth[:, 1].sum()))]

    def lacking(self, truth: Truth) -> str:
        return "" if truth[:, 1].any() else "no event"

    def said(self, possible: Sequence[Options], value: float | None) -> str:
        return f"{value:.4g}"

    def headline(self, answer: str, chances: Chances, value: float | None, interval: Interval | None) -> str:
        return f"risk: {value:.4g}"

    def scaling(self, logits: Floats, truth: Truth, centre: float, scale: float) -> Calibration:
        """A risk has no unit of its own: spreads from the mean of these patients."""
        mean, spread = float(logits.mean()), max(float(logits.std()), 1e-6)
        return Calibration(centre=-mean / spread, scale=1 / spread, hot=(mean,), patients=len(logits))

    def say_calibration(self, found: Calibration) -> str:
        return "none; the risk has no unit."

    def step_loss(self, logits: Tensor, truth: Tensor) -> Tensor | None:
        return cox_loss(logits[:, 0], truth) if bool(truth[:, 1].any()) else None

    def part_loss(self, logits: Tensor, truth: Truth, centre: float, scale: float) -> float:
        import torch

        return cox_loss(logits[:, 0], torch.from_numpy(truth)).item()

    def over_folds(self, name: str, truth: Truth, values: Floats, fold: NDArray[np.int64]) -> float:
        """Risks have no unit, and each model its own scale: only patients of one fold are compared, and folds count by their pairs."""
        parts = [fold == one for one in np.unique(fold)]
        pairs = np.array([comparable(truth[part]) for part in parts])
        found = [self.metric(name)(truth[part], values[part]) for part, count in zip(parts, pairs, strict=True) if count]
        return float(np.average(found, weights=pairs[pairs > 0])) if found else float("nan")

    def c_index(self, truth: Truth, values: Floats) -> float:
        return concordance(truth, values[:, 0])


def cox_loss(risks: Tensor, truth: Tensor) -> Tensor:
    """Negative partial log-likelihood of risks (n,) given (n, 2) time and event; ties as Breslow does.

    Source: Cox, "Regression models and life-tables", 1972.
    """
    import torch

    at_risk = truth[None, :, 0] >= truth[:, None, 0]  # (n, n): who is still observed when i's time comes
    total = torch.logsumexp(risks[None].expand(len(risks), -1).masked_fill(~at_risk, -torch.inf), 1)
    return ((total - risks) * truth[:, 1]).sum() / truth[:, 1].sum().clamp_min(1)
