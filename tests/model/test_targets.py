from pathlib import Path

import numpy as np
import pytest

from pathovit.errors import SettingsError
from pathovit.manifest import ManifestRow
from pathovit.model.targets import Target, read_target, read_truth, said_of_classes
from pathovit.model.targets.classes import RESERVED
from pathovit.outputs.records import A_MAP, OUTSIDE, UNSURE


def rows(**columns: list[str]) -> list[ManifestRow]:
    """A table whose first row is line 2."""
    length = len(next(iter(columns.values())))
    return [
        ManifestRow(Path(f"s{i}.svs"), i + 2, None, None, tuple((name, values[i]) for name, values in columns.items()))
        for i in range(length)
    ]


MANY = [str(30 + i / 2) for i in range(20)]


@pytest.mark.parametrize(
    ("columns", "names", "task"),
    [
        ({"label": ["a", "b"] * 5}, ["label"], "binary"),
        ({"label": ["a", "b", "c"] * 5}, ["label"], "multiclass"),
        ({"grade": ["1", "2", "3"] * 5}, ["grade"], "multiclass"),
        ({"age": MANY}, ["age"], "regression"),
        ({"er": ["0", "1"] * 10, "pr": ["1", "0"] * 10}, ["er", "pr"], "multilabel"),
        ({"months": MANY, "died": ["0", "1"] * 10}, ["months", "died"], "survival"),
    ],
)
def test_the_columns_say_what_is_asked(columns: dict[str, list[str]], names: list[str], task: str) -> None:
    assert read_target(rows(**columns), names, None, None).task == task


def test_answers_that_name_no_class_are_no_classes() -> None:
    assert set(RESERVED) == {UNSURE, OUTSIDE, A_MAP}
    with pytest.raises(SettingsError, match="A class cannot be called 'Outside'"):
        read_target(rows(margin=["Outside", "inside"] * 5), ["margin"], None, None)


def test_the_truth_has_the_shape_of_the_task() -> None:
    table = rows(label=["b", "a", "", "c"], er=["1", "0", "", "1"], months=["3", "4", "", "5"])
    three = Target("multiclass", ("label",), ("a", "b", "c"))
    assert {line: t.tolist() for line, t in read_truth(table, three).items()} == {2: [0, 1, 0], 3: [1, 0, 0], 5: [0, 0, 1]}
    both = read_truth(table, Target("survival", ("months", "er"), ("risk",)))
    assert both[5].tolist() == [5, 1]


def test_the_positive_class_comes_last() -> None:
    asked = read_target(rows(label=["cancer", "benign"]), ["label"], None, "cancer")
    assert asked.classes == ("benign", "cancer")
    assert asked.outputs == 1
    assert asked.score_names == ("cancer",)


@pytest.mark.parametrize(
    ("columns", "names", "task", "message"),
    [
        ({"label": ["a"] * 4}, "label", None, r"one label \(a\)"),
        ({"label": [""] * 4}, "label", None, "empty in every row"),
        ({"label": ["a", "b"]}, "grade", None, "no column 'grade'. Choose one with --target: label"),
        ({"label": ["a", "b", "N/A"]}, "label", None, "Line 4: label is 'N/A'. Leave the cell empty"),
        ({"label": ["a", "b", "c"]}, "label", "binary", "A binary target has two classes, and column 'label' has 3"),
        ({"age": [*MANY, "old"]}, "age", "regression", "Line 22: age is 'old', not a number"),
        ({"age": [*MANY, "inf"]}, "age", "regression", "Line 22: age is 'inf', not a number"),
        ({"er": ["0", "1", "1"], "pr": ["0", "1", ""]}, "er,pr", None, "Line 4: pr is empty and the others are not"),
        ({"er": ["0", "1", "2"], "pr": ["0", "1", "0"]}, "er,pr", "multilabel", "Line 4: er, pr must be 0 or 1, not 2, 0"),
        ({"er": ["0", "1"], "pr": ["1", "1"]}, "er,pr", None, "Column 'pr' is the same in every row"),
        ({"months": [*MANY, "0"], "died": ["1"] * 21}, "months,died", "survival", "Line 22: months is 0; a time must be above 0"),
        ({"months": MANY, "died": ["0"] * 20}, "months,died", "survival", "Column 'died' is 0 in every row"),
        ({"months": MANY}, "months", "survival", "A survival target has 2 columns, and --target names 1"),
        ({"label": ["a", "b"]}, "label", "guess", "--task 'guess' is unknown"),
    ],
)
def test_a_bad_table_is_told_which_line(columns: dict[str, list[str]], names: str, task: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_target(rows(**columns), names.split(","), task, None)


def test_a_class_the_model_does_not_know_is_named() -> None:
    with pytest.raises(SettingsError, match="Line 3: label is 'x'; the model knows a, b"):
        read_truth(rows(label=["a", "x"]), Target("binary", ("label",), ("a", "b")))


def test_strata_hold_what_must_be_spread() -> None:
    months = np.array([[1, 0], [2, 1], [3, 1]], np.float32)
    assert Target("survival", ("m", "d"), ("risk",)).kind.strata(months).tolist() == [0, 1, 1]
    ages = np.arange(8, dtype=np.float32)[:, None]
    assert Target("regression", ("age",), ("age",)).kind.strata(ages).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_spellings_of_one_class_are_one_and_said() -> None:
    table = rows(label=["Benign", "benign", "Benign", "malignant", "Malignant ", "malignant"])
    asked = read_target(table, ["label"], None, None)
    assert (asked.task, asked.classes) == ("binary", ("Benign", "malignant"))
    assert said_of_classes(table, asked) == [
        "classes found in column label: Benign (3), malignant (3)",
        "label: benign read as Benign",
        "label: Malignant  read as malignant",
    ]
    mixed = rows(label=["0", "0.0", "1", "1.0", "0", "1"])
    assert read_target(mixed, ["label"], None, "1.0").classes == ("0", "1")
    assert {line: truth.tolist() for line, truth in read_truth(mixed, read_target(mixed, ["label"], None, None)).items()}[3] == [
        0
    ]


def test_decimal_commas_are_read_and_said_and_thousands_refused() -> None:
    table = rows(age=[f"{30 + i // 2},{i % 2 * 5}" for i in range(20)])
    asked = read_target(table, ["age"], None, None)
    assert asked.task == "regression"
    assert read_truth(table, asked)[3].tolist() == [30.5]
    assert said_of_classes(table, asked) == ["age: commas are read as decimal points, as in 30,0"]
    with pytest.raises(SettingsError, match="1,001, 1,002, 1,003 can mean thousands or decimals"):
        read_target(rows(cells=[f"1,00{i}" if i < 10 else f"1,0{i}" for i in range(1, 20)]), ["cells"], None, None)
