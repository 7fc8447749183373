"""Several columns of 0 and 1. Truth (C,). One logit a label, and one question: has the patient this label?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pathovit.model.calibration import Floats, sigmoid
from pathovit.model.targets.classes import ONE_CLASS, Classes
from pathovit.model.targets.kind import Cells, Chances, Options, Truth, numbers_of, require_flags


class Multilabel(Classes):
    """Labels that do not exclude each other."""

    task = "multilabel"

    @classmethod
    def columns_wanted(cls, given: int) -> int:
        return max(2, given)

    @classmethod
    def class_names(cls, columns: Options, cells: Cells, positive: str | None) -> Options:
        numbers_of(columns, cells)
        return columns

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def read(self, line: int, values: Options) -> Truth:
        found = self.numbers(line, values)
        require_flags(line, found, self.columns, values)
        return found

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """Combinations of labels."""
        code = (truth @ (2 ** np.arange(truth.shape[1]))).astype(np.int64)
        return np.asarray(code, np.int64)

    def counts(self, truth: Truth) -> list[tuple[str, int]]:
        found = []
        for i, name in enumerate(self.classes):
            found += [(f"without {name}", int((truth[:, i] == 0).sum())), (name, int(truth[:, i].sum()))]
        return found

    def lacking(self, truth: Truth) -> str:
        return ONE_CLASS if (truth.min(0) == truth.max(0)).any() else ""

    def questions(self) -> list[Options]:
        return [(f"no {name}", name) for name in self.classes]

    def question(self, question: int, chances: Floats, truth: Truth) -> tuple[Floats, NDArray[np.int64]]:
        yes = chances[:, question]
        return np.stack([1 - yes, yes], -1), truth[:, question].astype(np.int64)

    def chances_of(self, question: int, chances: Floats) -> Floats:
        return np.array([1 - chances[question], chances[question]])

    def probabilities(self, logits: Floats) -> Floats:
        return sigmoid(logits)

    def said(self, possible: Sequence[Options], value: float | None) -> str:
        return ", ".join(o[0] for o, q in zip(possible, self.questions(), strict=True) if o[0] == q[1]) or "none"

    def called(self, chances: Chances) -> int | None:
        return None if chances.max() < 0.5 else int(chances.argmax())

    def option(self, question: int, truth: Truth) -> str:
        return self.classes[question] if truth[question] else f"no {self.classes[question]}"

    def balanced_accuracy(self, truth: Truth, values: Floats) -> float:
        from sklearn.metrics import balanced_accuracy_score

        return self.mean_over_classes(lambda t, p: float(balanced_accuracy_score(t, p >= 0.5)), truth, values)
