"""Target: what a slide model is asked, as the columns of a table say it.

one column of names            binary or multiclass          truth (1,) or one-hot (C,)
several columns of 0 and 1     multilabel                    truth (C,)
one column of numbers          regression                    truth (1,)
a time and an event column     survival                      truth (2,): time, 1 if the event happened
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.manifest import ManifestRow, one_spelling
from pathovit.tables import NO_VALUE, number, refuse_thousands, spelling

TASKS = ("binary", "multiclass", "multilabel", "regression", "survival")
FEWEST_NUMBERS = 12  # a column with more distinct numbers than this is a measurement, not a set of classes


@dataclass(frozen=True)
class Target:
    """What is asked. `classes` name the answers: for a binary target (negative, positive), else one per output."""

    task: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Numbers that a network puts out: a binary target has one logit, of its positive class."""
        return 1 if self.task in ("binary", "regression", "survival") else len(self.classes)

    @property
    def score_names(self) -> tuple[str, ...]:
        """What the columns of tile scores (N, outputs) speak of."""
        return self.classes[-self.outputs :]

    @property
    def is_classification(self) -> bool:
        return self.task in ("binary", "multiclass", "multilabel")


Truth = NDArray[np.float32]


def read_target(rows: Sequence[ManifestRow], columns: Sequence[str], task: str | None, positive: str | None) -> Target:
    """The target that columns of a table describe, unless `task` says which.

    Raises
    ------
    SettingsError : no such column, one class only, a value that is no number; the line is named
    """
    if task is not None and task not in TASKS:
        raise SettingsError(f"--task {task!r} is unknown. Use {', '.join(TASKS)}.")
    cells = _filled(rows, columns)
    task = task or _guess(cells, len(columns))
    wanted = {"survival": 2, "multilabel": max(2, len(columns))}.get(task, 1)
    if len(columns) != wanted:
        raise SettingsError(f"A {task} target has {wanted} columns, and --target names {len(columns)}: {', '.join(columns)}.")
    if task in ("binary", "multiclass"):
        found = set(one_spelling(value[0] for value in cells.values()).values())
        return Target(task, tuple(columns), _class_names(found, columns[0], task, positive))
    for place, column in enumerate(columns):
        refuse_thousands([value[place] for value in cells.values()], column)
    names = {"multilabel": tuple(columns), "regression": tuple(columns), "survival": ("risk",)}[task]
    target = Target(task, tuple(columns), names)
    truth = np.stack(list(read_truth(rows, target).values()))
    same = truth.min(0) == truth.max(0)
    if task == "survival" and not truth[:, 1].any():
        raise SettingsError(f"Column {columns[1]!r} is 0 in every row: without an event there is nothing to learn.")
    if task != "survival" and same.any():
        raise SettingsError(
            f"Column {columns[int(same.argmax())]!r} is the same in every row; there is nothing to learn. Leave it out."
        )
    return target


def read_truth(rows: Sequence[ManifestRow], target: Target) -> dict[int, Truth]:
    """The truth by line; rows whose cells are empty are left out.

    Raises
    ------
    SettingsError : no such column, a class the target does not know, a value that is no number; the line is named
    """
    found = {}
    classes = {spelling(name): index for index, name in enumerate(target.classes)}
    for line, values in _filled(rows, target.columns).items():
        if target.task not in ("binary", "multiclass"):
            found[line] = _numbers(line, values, target.columns, target.task)
        elif (index := classes.get(spelling(values[0]))) is None:
            raise SettingsError(
                f"Line {line}: {target.columns[0]} is {values[0]!r}; the model knows {', '.join(target.classes)}."
            )
        elif target.task == "binary":
            found[line] = np.array([index], np.float32)
        else:
            found[line] = np.eye(len(target.classes), dtype=np.float32)[index]
    return found


def said_of_classes(rows: Sequence[ManifestRow], target: Target) -> list[str]:
    """Sentences on what was read as what: the classes found with their rows, and the spellings that were taken for one."""
    if target.task not in ("binary", "multiclass"):
        commas = [row.label(column) for row in rows for column in target.columns if "," in (row.label(column) or "")]
        return [f"{', '.join(target.columns)}: commas are read as decimal points, as in {commas[0]}"] if commas else []
    column, classes = target.columns[0], {spelling(name): name for name in target.classes}
    cells = [value for row in rows if (value := row.label(column))]
    counts = Counter(classes[spelling(cell)] for cell in cells)
    listed = ", ".join(f"{name} ({counts[name]})" for name in target.classes)
    said = [f"classes found in column {column}: {listed}"]
    ways: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        ways[classes[spelling(cell)]].add(cell)
    for name, spelled in ways.items():
        if others := sorted(spelled - {name}):
            said.append(f"{column}: {', '.join(others)} read as {name}")
    return said


def _filled(rows: Sequence[ManifestRow], columns: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The cells of the columns, by line, of rows that have them."""
    cells = {row.line: found for row in rows if (found := _cells(row, columns, rows)) is not None}
    if not cells:
        raise SettingsError(f"Column {', '.join(columns)} is empty in every row. Choose another with --target.")
    return cells


def _cells(row: ManifestRow, columns: Sequence[str], rows: Sequence[ManifestRow]) -> tuple[str, ...] | None:
    """The row's values, or None if all are empty."""
    found = [row.label(column) for column in columns]
    for column, value in zip(columns, found, strict=True):
        if value is None:
            known = sorted({name for r in rows for name, _ in r.labels})
            raise SettingsError(
                f"The table has no column {column!r}. Choose one with --target: {', '.join(known) or 'there is no column of labels'}."
            )
        if value.lower() in NO_VALUE:
            raise SettingsError(f"Line {row.line}: {column} is {value!r}. Leave the cell empty where it is not known.")
    values = tuple(str(value) for value in found)
    if not any(values):
        return None
    if not all(values):
        missing = columns[values.index("")]
        raise SettingsError(
            f"Line {row.line}: {missing} is empty and the others are not. Give all of {', '.join(columns)}, or none."
        )
    return values


def _guess(cells: dict[int, tuple[str, ...]], columns: int) -> str:
    values = list(cells.values())
    if columns == 1:
        distinct = {spelling(value[0]) for value in values}
        if len(distinct) > FEWEST_NUMBERS and all(number(text) is not None for text in distinct):
            return "regression"
        return "binary" if len(distinct) <= 2 else "multiclass"
    flags = [{spelling(value[i]) for value in values} <= {"0", "1"} for i in range(columns)]
    return "survival" if columns == 2 and flags[1] and not flags[0] else "multilabel"


def _class_names(found: set[str], column: str, task: str, positive: str | None) -> tuple[str, ...]:
    names = sorted(found)
    if len(names) < 2:
        raise SettingsError(f"All slides have one label ({', '.join(names)}); at least two classes are needed.")
    if task == "binary" and len(names) > 2:
        raise SettingsError(f"A binary target has two classes, and column {column!r} has {len(names)}: {', '.join(names)}.")
    if positive is not None:
        last = next((name for name in names if spelling(name) == spelling(positive)), None)
        if last is None:
            raise SettingsError(f"--positive {positive!r} is not a label of the table: {', '.join(names)}.")
        names = [*(name for name in names if name != last), last]
    return tuple(names)


def _numbers(line: int, values: tuple[str, ...], columns: Sequence[str], task: str) -> Truth:
    for column, text in zip(columns, values, strict=True):
        if number(text) is None:
            raise SettingsError(f"Line {line}: {column} is {text!r}, not a number.")
    found = np.array([number(text) for text in values], np.float32)
    flags = found[1:] if task == "survival" else found if task == "multilabel" else found[:0]
    if not np.isin(flags, (0, 1)).all():
        raise SettingsError(
            f"Line {line}: {', '.join(columns[-len(flags) :])} must be 0 or 1, not {', '.join(values[-len(flags) :])}."
        )
    if task == "survival" and not found[0] > 0:
        raise SettingsError(f"Line {line}: {columns[0]} is {values[0]}; a time must be above 0.")
    return found


def strata(target: Target, truth: NDArray[np.float32]) -> NDArray[np.int64]:
    """(n,) numbers of the groups that every part of a split should hold alike.

    Classes; combinations of labels; quarters of a measurement; events and non-events.
    """
    if target.task == "binary":
        return truth[:, 0].astype(np.int64)
    if target.task == "multiclass":
        return np.asarray(truth.argmax(1), np.int64)
    if target.task == "regression":
        return np.asarray(np.searchsorted(np.quantile(truth[:, 0], [0.25, 0.5, 0.75]), truth[:, 0]), np.int64)
    if target.task == "survival":
        return truth[:, 1].astype(np.int64)
    code = (truth @ (2 ** np.arange(truth.shape[1]))).astype(np.int64)
    return np.asarray(code, np.int64)


def answer_columns(target: Target) -> list[str]:
    """Names of the columns of `Answers.values`."""
    if target.is_classification:
        return [f"prob_{name}" for name in target.classes]
    return ["risk"] if target.task == "survival" else [f"predicted_{target.columns[0]}"]


def truth_columns(target: Target) -> list[str]:
    """Names of the columns of `Answers.truth`."""
    if target.task == "multiclass":
        return [f"true_{name}" for name in target.classes]
    return [f"true_{name}" for name in (target.classes[-1:] if target.task == "binary" else target.columns)]
