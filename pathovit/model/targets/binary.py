"""One column of two names; the last is the positive one. Truth (1,): 1 for positive. One logit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.model.calibration import Floats, sigmoid
from pathovit.model.targets.classes import ONE_CLASS, NamedClasses
from pathovit.model.targets.kind import Chances, Interval, Options, Truth


class Binary(NamedClasses):
    """(negative, positive)"""

    task = "binary"

    @classmethod
    def refuse_names(cls, column: str, names: Sequence[str]) -> None:
        if len(names) > 2:
            raise SettingsError(f"A binary target has two classes, and column {column!r} has {len(names)}: {', '.join(names)}.")

    def read(self, line: int, values: Options) -> Truth:
        return np.array([self.index(line, values)], np.float32)

    @property
    def truth_columns(self) -> list[str]:
        return [f"true_{self.classes[-1]}"]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        return truth[:, 0].astype(np.int64)

    def counts(self, truth: Truth) -> list[tuple[str, int]]:
        positive = int(truth[:, 0].sum())
        return [(self.classes[0], len(truth) - positive), (self.classes[1], positive)]

    def lacking(self, truth: Truth) -> str:
        return ONE_CLASS if (truth.min(0) == truth.max(0)).any() else ""

    def probabilities(self, logits: Floats) -> Floats:
        positive = sigmoid(logits)
        return np.concatenate([1 - positive, positive], -1)

    def headline(self, answer: str, chances: Chances, value: float | None, interval: Interval | None) -> str:
        chance = f"{self.classes[1]}: {chances[1]:.3f}"
        return f"unsure ({chance})" if answer == "unsure" else chance

    def called(self, chances: Chances) -> int | None:
        return 0 if chances[1] >= 0.5 else None

    def chance_of(self, chances: Floats, column: int) -> float:
        return float(chances[1])

    def one_vs_rest(self, truth: Truth, values: Floats) -> list[tuple[str, NDArray[np.int64], Floats]]:
        return [(self.classes[1], self.strata(truth), values[:, 1])]
