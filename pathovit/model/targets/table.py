"""From a table to a target and the truth of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathovit.errors import SettingsError
from pathovit.manifest import ManifestRow
from pathovit.model.targets.kind import Truth
from pathovit.model.targets.target import KINDS, Target
from pathovit.tables import NO_VALUE, number, spelling

FEWEST_NUMBERS = 12  # a column with more distinct numbers than this, or with decimals, is a measurement, not a set of classes
FEW = 0.2  # share of values that are no numbers, in a column that should be one of numbers


def read_target(rows: Sequence[ManifestRow], columns: Sequence[str], task: str | None, positive: str | None) -> Target:
    """The target that columns of a table describe, unless `task` says which.

    Raises
    ------
    SettingsError : no such column, one class only, a value that is no number; the line is named
    """
    if task is not None and task not in KINDS:
        raise SettingsError(f"--task {task!r} is unknown. Use {', '.join(KINDS)}.")
    cells = _filled(rows, columns)
    kind = KINDS[task or _guess(cells, len(columns))]
    wanted = kind.columns_wanted(len(columns))
    if len(columns) != wanted:
        raise SettingsError(
            f"A {kind.task} target has {wanted} columns, and --target names {len(columns)}: {', '.join(columns)}."
        )
    target = Target(kind.task, tuple(columns), kind.class_names(tuple(columns), cells, positive))
    target.kind.require_spread(np.stack(list(read_truth(rows, target).values())))
    return target


def read_truth(rows: Sequence[ManifestRow], target: Target) -> dict[int, Truth]:
    """The truth by line; rows whose cells are empty are left out.

    Raises
    ------
    SettingsError : no such column, a class the target does not know, a value that is no number; the line is named
    """
    return {line: target.kind.read(line, values) for line, values in _filled(rows, target.columns).items()}


def said_of_classes(rows: Sequence[ManifestRow], target: Target) -> list[str]:
    """Sentences on what was read as what."""
    return target.kind.said_of([tuple(row.label(column) or "" for column in target.columns) for row in rows])


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
        numbers = {text for text in distinct if number(text) is not None}
        if len(distinct) > FEWEST_NUMBERS and 0 < len(distinct - numbers) <= len(distinct) * FEW:
            line, odd = next((line, value[0]) for line, value in cells.items() if number(value[0]) is None)
            raise SettingsError(
                f"Line {line}: {odd!r} is no number, and nearly all others in its column are. Mend it, or leave the cell empty; "
                "if they are classes after all: --task multiclass."
            )
        if (
            numbers == distinct
            and len(distinct) > 2
            and (len(distinct) > FEWEST_NUMBERS or any("." in text for text in distinct))
        ):
            return "regression"
        return "binary" if len(distinct) <= 2 else "multiclass"
    flags = [{spelling(value[i]) for value in values} <= {"0", "1"} for i in range(columns)]
    return "survival" if columns == 2 and flags[1] and not flags[0] else "multilabel"
