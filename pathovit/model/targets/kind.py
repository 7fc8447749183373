"""Kind: all that differs between what can be asked of a slide. A new kind is one file beside this one, and a line in `target.py`.

truth           what a table says of a patient, as numbers
logits (C,)     what a network puts out; probabilities, margins and values are made of them
questions       what is decided, each with its options
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.model.calibration import Calibration, Floats
from pathovit.tables import number, refuse_thousands

if TYPE_CHECKING:
    from torch import Tensor

Truth = NDArray[np.float32]
Chances = NDArray[np.floating[Any]]  # of one patient (classes,)
Options: TypeAlias = tuple[str, ...]
Interval: TypeAlias = tuple[float, float]
Metric: TypeAlias = Callable[[Truth, Floats], float]  # of the truth (n, ...) and the values (n, V) of patients
Cells: TypeAlias = Mapping[int, tuple[str, ...]]  # of the target's columns, by line of the table


class Kind(ABC):
    """What is asked, by its columns and the names of its answers."""

    task: ClassVar[str]
    is_classification: ClassVar[bool]
    least_bags: ClassVar[int] = 1  # of a training step
    metrics: ClassVar[Mapping[str, str]]  # name -> method, the main one first

    def __init__(self, columns: Options, classes: Options) -> None:
        self.columns, self.classes = columns, classes

    # From a table

    @classmethod
    def columns_wanted(cls, given: int) -> int:
        """Columns that such a target has."""
        return 1

    @classmethod
    @abstractmethod
    def class_names(cls, columns: Options, cells: Cells, positive: str | None) -> Options:
        """Names of the answers, from the cells of the columns. Raises SettingsError where these cannot be such a target."""

    @abstractmethod
    def read(self, line: int, values: Options) -> Truth:
        """The truth of one row. Raises SettingsError that names the line."""

    def require_spread(self, truth: Truth) -> None:
        """Raises SettingsError where all rows (n, ...) say the same, and there is nothing to learn."""
        same = truth.min(0) == truth.max(0)
        if same.any():
            raise SettingsError(
                f"Column {self.columns[int(same.argmax())]!r} is the same in every row; there is nothing to learn. Leave it out."
            )

    def said_of(self, cells: Sequence[Options]) -> list[str]:
        """Sentences on what was read as what."""
        commas = [cell for values in cells for cell in values if "," in cell]
        return [f"{', '.join(self.columns)}: commas are read as decimal points, as in {commas[0]}"] if commas else []

    def numbers(self, line: int, values: Options) -> Truth:
        """Cells as numbers."""
        for column, text in zip(self.columns, values, strict=True):
            if number(text) is None:
                raise SettingsError(f"Line {line}: {column} is {text!r}, not a number.")
        return np.array([number(text) for text in values], np.float32)

    # Shape and names

    @property
    def outputs(self) -> int:
        """Numbers that a network puts out."""
        return 1

    @property
    @abstractmethod
    def answer_columns(self) -> list[str]:
        """Names of the values (n, V) of answers."""

    @property
    def truth_columns(self) -> list[str]:
        """Names of the numbers of the truth."""
        return [f"true_{name}" for name in self.columns]

    # Truth of a cohort (n, ...)

    @abstractmethod
    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """(n,) numbers of the groups that every part of a split should hold alike."""

    @abstractmethod
    def counts(self, truth: Truth) -> list[tuple[str, int]]:
        """Patients of all that must not be missing in a part, by name."""

    @abstractmethod
    def lacking(self, truth: Truth) -> str:
        """What a part lacks to teach or tell anything; empty if nothing."""

    def measure(self, truth: Truth) -> tuple[float, float]:
        """Centre and spread of a measurement in the training part; 0 and 1 for all else."""
        return 0.0, 1.0

    # Answers

    def questions(self) -> list[Options]:
        """What is decided, each with its options."""
        return []

    def conforming(self) -> list[int]:
        """Of how many options each question of `Calibration.conformity` is."""
        return [len(options) for options in self.questions()]

    def probabilities(self, logits: Floats) -> Floats:
        """(..., C) calibrated logits to (..., classes); nothing for targets without classes."""
        return logits[..., :0]

    def margins(self, logits: Floats) -> Floats:
        """(..., C) log-odds of each class against all others."""
        return logits

    def values(self, logits: Floats, centre: float, scale: float) -> Floats:
        """(n, C) logits to the values (n, V) that are judged: probabilities; measurements or risks."""
        return logits * scale + centre

    def measured(self, calibration: Calibration, logits: Floats, error_rate: float) -> tuple[float | None, Interval | None]:
        """The value of a measurement or a risk, and its interval; None for targets with classes."""
        return float(logits[0] * calibration.scale + calibration.centre), None

    def possible(self, calibration: Calibration, chances: Floats, error_rate: float) -> list[Options]:
        """For each question the options that cannot be ruled out: the truth is among them but for `error_rate` of patients."""
        return []

    @abstractmethod
    def said(self, possible: Sequence[Options], value: float | None) -> str:
        """The answer, where every question has one option left."""

    @abstractmethod
    def headline(self, answer: str, chances: Chances, value: float | None, interval: Interval | None) -> str:
        """The answer in a few words."""

    def called(self, chances: Chances) -> int | None:
        """Column of the tile scores whose class is the most probable; None if no class with tile scores is."""
        return None

    def chance_of(self, chances: Floats, column: int) -> float:
        """Probability of the class in a column of the tile scores."""
        return float(chances[column])

    def option(self, question: int, truth: Truth) -> str:
        """The true option of a question for one patient."""
        raise NotImplementedError(f"a {self.task} target asks no question")

    def one_vs_rest(self, truth: Truth, values: Floats) -> list[tuple[str, NDArray[np.int64], Floats]]:
        """(name, truth (n,), probability (n,)) of each class that has an answer of its own."""
        return []

    # Learning

    @abstractmethod
    def scaling(self, logits: Floats, truth: Truth, centre: float, scale: float) -> Calibration:
        """The first half of a calibration: temperature and shift, from the raw logits (n, C) of validation patients."""

    @abstractmethod
    def say_calibration(self, found: Calibration) -> str:
        """What a calibration is worth, in words."""

    def calibrate(self, scaled: Calibration, logits: Floats, truth: Truth, hottest: Floats) -> Calibration:
        """The second half: what scores and answers are worth once they are scaled.

        Parameters
        ----------
        logits : (n, C) of validation patients, scaled
        truth : (n, ...)
        hottest : (n, C) highest margin of a patient's tiles, scaled; NaN where there is no evidence
        """
        return scaled

    def class_weights(self, truth: Truth) -> Floats:
        """(2, C): weight of a patient without and with each class; 1 on average."""
        return np.ones((2, self.outputs))

    def bag_loss(self, logits: Tensor, truth: Tensor, smoothing: float, weight: Tensor) -> Tensor:
        """Loss of one patient's logits (C,); of a measurement, the truth is in its own spread. Not for kinds of many bags."""
        raise NotImplementedError(f"a {self.task} target has no loss of single patients")

    def step_loss(self, logits: Tensor, truth: Tensor) -> Tensor | None:
        """Loss of all patients (n, C) of a step, for kinds that compare them; None where they cannot be compared."""
        raise NotImplementedError(f"a {self.task} target has a loss of single patients")

    @abstractmethod
    def part_loss(self, logits: Tensor, truth: Truth, centre: float, scale: float) -> float:
        """Loss of a whole part (n, C), which early stopping judges."""

    def metric(self, name: str) -> Metric:
        """A metric by its name; not a number where it is not defined."""
        found: Metric = getattr(self, self.metrics[name])
        return found

    def over_folds(self, name: str, truth: Truth, values: Floats, fold: NDArray[np.int64]) -> float:
        """A metric of patients who were answered by several models, each those of its fold (n,)."""
        return self.metric(name)(truth, values)


def numbers_of(columns: Options, cells: Cells) -> None:
    """Refuse columns of numbers whose commas may be separators of thousands."""
    for place, column in enumerate(columns):
        refuse_thousands([value[place] for value in cells.values()], column)


def require_flags(line: int, flags: Truth, columns: Sequence[str], values: Sequence[str]) -> None:
    """Refuse what is neither 0 nor 1."""
    if not np.isin(flags, (0, 1)).all():
        raise SettingsError(f"Line {line}: {', '.join(columns)} must be 0 or 1, not {', '.join(values)}.")
