"""Target: what a slide model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pathovit.model.targets.binary import Binary
from pathovit.model.targets.kind import Kind
from pathovit.model.targets.multiclass import Multiclass
from pathovit.model.targets.multilabel import Multilabel
from pathovit.model.targets.regression import Regression
from pathovit.model.targets.survival import Survival

KINDS: Mapping[str, type[Kind]] = {kind.task: kind for kind in (Binary, Multiclass, Multilabel, Regression, Survival)}


@dataclass(frozen=True)
class Target:
    """What is asked. `classes` name the answers: for a binary target (negative, positive), else one per output."""

    task: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]

    @cached_property
    def kind(self) -> Kind:
        """All that differs between targets."""
        return KINDS[self.task](self.columns, self.classes)

    @property
    def outputs(self) -> int:
        """Numbers that a network puts out: a binary target has one logit, of its positive class."""
        return self.kind.outputs

    @property
    def score_names(self) -> tuple[str, ...]:
        """What the columns of tile scores (N, outputs) speak of."""
        return self.classes[-self.outputs :]

    @property
    def is_classification(self) -> bool:
        return self.kind.is_classification

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Target:
        return cls(found["task"], tuple(found["columns"]), tuple(found["classes"]))

    def __str__(self) -> str:
        return f"{self.task} of {', '.join(self.columns)} ({', '.join(self.classes)})"
