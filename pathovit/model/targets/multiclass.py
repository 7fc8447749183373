"""One column of three names or more. Truth (C,): one-hot. One logit a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathovit.model.calibration import Floats
from pathovit.model.metrics import calibration_error
from pathovit.model.targets.classes import NamedClasses
from pathovit.model.targets.kind import Chances, Options, Truth

if TYPE_CHECKING:
    from torch import Tensor


class Multiclass(NamedClasses):
    """One class of several."""

    task = "multiclass"

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def read(self, line: int, values: Options) -> Truth:
        return np.asarray(np.eye(len(self.classes), dtype=np.float32)[self.index(line, values)])

    @property
    def truth_columns(self) -> list[str]:
        return [f"true_{name}" for name in self.classes]

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        return np.asarray(truth.argmax(1), np.int64)

    def counts(self, truth: Truth) -> list[tuple[str, int]]:
        return [(name, int(truth[:, i].sum())) for i, name in enumerate(self.classes)]

    def lacking(self, truth: Truth) -> str:
        absent = [name for name, count in self.counts(truth) if not count]
        return f"no patient of class {absent[0]!r}" if absent else ""

    def probabilities(self, logits: Floats) -> Floats:
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(raised / raised.sum(-1, keepdims=True))

    def margins(self, logits: Floats) -> Floats:
        chances = np.clip(self.probabilities(logits), 1e-12, 1 - 1e-12)
        return np.asarray(np.log(chances) - np.log1p(-chances))

    def called(self, chances: Chances) -> int | None:
        return int(chances.argmax())

    def soften(self, truth: Truth) -> Floats:
        soft = super().soften(truth)
        return np.asarray(soft / soft.sum(1, keepdims=True))

    def log_loss(self, logits: Floats, soft: Floats) -> float:
        top = logits.max(1, keepdims=True)
        return float(np.mean(top[:, 0] + np.log(np.exp(logits - top).sum(1)) - (soft * logits).sum(1)))

    def class_weights(self, truth: Truth) -> Floats:
        """One class per patient: its weight alone counts."""
        return np.tile(len(truth) / (self.outputs * truth.sum(0).clip(1)), (2, 1))

    def weight_of(self, truth: Tensor, weights: Tensor) -> Tensor:
        """A patient has one class, and its weight."""
        return super().weight_of(truth, weights)[truth.argmax()]

    def bag_loss(self, logits: Tensor, truth: Tensor, smoothing: float, weight: Tensor) -> Tensor:
        from torch.nn import functional

        return weight * functional.cross_entropy(logits[None], truth.argmax()[None], label_smoothing=smoothing)

    def tile_margins(self, logits: Tensor) -> Tensor:
        import torch

        chances = torch.log_softmax(logits, -1)
        return chances - torch.log1p(-chances.exp().clamp(max=1 - 1e-6))

    def ece(self, truth: Truth, values: Floats) -> float:
        """By the probability of the class chosen."""
        chosen = values.argmax(1)
        right = (truth.argmax(1) == chosen).astype(np.int64)
        return calibration_error(right, values.max(1))
