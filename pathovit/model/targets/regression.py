"""One column of numbers. Truth (1,). One logit: the measurement less its mean, in its spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pathovit.model.calibration import Calibration, Floats, thin
from pathovit.model.targets.kind import Cells, Chances, Interval, Kind, Options, Truth, numbers_of

if TYPE_CHECKING:
    from torch import Tensor


class Regression(Kind):
    """A measurement."""

    task = "regression"
    is_classification = False
    metrics: ClassVar[Mapping[str, str]] = {"mae": "mae", "r2": "r2"}

    @classmethod
    def class_names(cls, columns: Options, cells: Cells, positive: str | None) -> Options:
        numbers_of(columns, cells)
        return columns

    def read(self, line: int, values: Options) -> Truth:
        return self.numbers(line, values)

    @property
    def answer_columns(self) -> list[str]:
        return [f"predicted_{self.columns[0]}"]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """Quarters of the measurement."""
        return np.asarray(np.searchsorted(np.quantile(truth[:, 0], [0.25, 0.5, 0.75]), truth[:, 0]), np.int64)

    def counts(self, truth: Truth) -> list[tuple[str, int]]:
        return [("patients", len(truth))]

    def lacking(self, truth: Truth) -> str:
        return ""

    def measure(self, truth: Truth) -> tuple[float, float]:
        return float(truth[:, 0].mean()), float(max(truth[:, 0].std(), 1e-12))

    def measured(self, calibration: Calibration, logits: Floats, error_rate: float) -> tuple[float, Interval]:
        """The interval holds the truth but for `error_rate` of patients; it is infinite if they were too few."""
        known = calibration.conformity[0][0]
        rank = math.ceil((len(known) + 1) * (1 - error_rate))
        reach = known[rank - 1] if rank <= len(known) else math.inf
        logit, centre, scale = float(logits[0]), calibration.centre, calibration.scale
        return logit * scale + centre, ((logit - reach) * scale + centre, (logit + reach) * scale + centre)

    def conforming(self) -> list[int]:
        return [1]  # how far values are off

    def said(self, possible: Sequence[Options], value: float | None) -> str:
        return f"{value:.4g}"

    def headline(self, answer: str, chances: Chances, value: float | None, interval: Interval | None) -> str:
        between = f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval and np.isfinite(interval).all() else ""
        return f"{self.columns[0]}: {value:.4g}{between}"

    def scaling(self, logits: Floats, truth: Truth, centre: float, scale: float) -> Calibration:
        return Calibration(centre=centre, scale=scale, patients=len(logits))

    def say_calibration(self, found: Calibration) -> str:
        return "residuals, for intervals."

    def calibrate(self, scaled: Calibration, logits: Floats, truth: Truth, hottest: Floats) -> Calibration:
        far = np.abs(logits[:, 0] - (truth[:, 0] - scaled.centre) / scaled.scale)
        return replace(scaled, conformity=((thin(far),),))

    def bag_loss(self, logits: Tensor, truth: Tensor, smoothing: float, weight: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.mse_loss(logits, truth)

    def part_loss(self, logits: Tensor, truth: Truth, centre: float, scale: float) -> float:
        import torch
        from torch.nn import functional

        return functional.mse_loss(logits, (torch.from_numpy(truth) - centre) / scale).item()

    def mae(self, truth: Truth, values: Floats) -> float:
        return float(np.abs(values[:, 0] - truth[:, 0]).mean())

    def r2(self, truth: Truth, values: Floats) -> float:
        from sklearn.metrics import r2_score

        return float(r2_score(truth[:, 0], values[:, 0])) if len(truth) > 1 else float("nan")
