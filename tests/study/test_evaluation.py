from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathovit.errors import SettingsError
from pathovit.model.judged import Metric
from pathovit.model.metrics import calibration_error, comparable
from pathovit.model.targets import Target
from pathovit.study.evaluation import Answers, answers_csv, compare, evaluate, read_answers
from pathovit.study.figures import evaluation_picture

BINARY = Target("binary", ("label",), ("benign", "tumour"))
NUMBER = Target("regression", ("age",), ("age",))
SURVIVAL = Target("survival", ("months", "died"), ("risk",))


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not ask how wide an interval is."""
    monkeypatch.setattr("pathovit.study.evaluation.BOOTSTRAPS", 250)


def binary(patients: int = 60, noise: float = 1.0, seed: int = 0) -> Answers:
    chance = np.random.default_rng(seed)
    truth = np.arange(patients) % 2
    positive = 1 / (1 + np.exp(-(truth * 2 - 1 + noise * chance.normal(size=patients))))
    names = tuple(f"p{i}" for i in range(patients))
    return Answers(BINARY, names, truth[:, None].astype(np.float32), np.stack([1 - positive, positive], -1))


def test_metrics_that_can_be_worked_out_by_hand() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    positive = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9])
    found = evaluate(Answers(BINARY, ("x",) * 8, truth[:, None].astype(np.float32), np.stack([1 - positive, positive], -1)))
    assert found["auroc"].value == pytest.approx(15 / 16, abs=1e-4)
    assert found["balanced_accuracy"].value == 0.75
    assert found["sensitivity_at_95_specificity"].value == 0.75  # above the highest benign, 0.6
    assert found["brier"].value == pytest.approx(np.mean((positive - truth) ** 2), abs=1e-4)
    assert found["auroc"].low is None  # eight patients


def test_calibration_error_by_hand() -> None:
    truth, chance = np.array([1, 0, 1, 1]), np.array([0.55, 0.55, 0.95, 0.95])
    assert calibration_error(truth, chance) == pytest.approx(0.5 * abs(0.5 - 0.55) + 0.5 * abs(1 - 0.95))


def test_intervals_hold_the_value_and_shrink_with_patients() -> None:
    few, many = evaluate(binary(40, noise=2))["auroc"], evaluate(binary(400, noise=2))["auroc"]
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_an_absent_class_leaves_a_metric_undefined() -> None:
    answers = binary(30)
    found = evaluate(Answers(BINARY, answers.patients, np.zeros((30, 1), np.float32), answers.values))
    assert found["auroc"] == Metric(None)
    assert found["brier"].value is not None


def test_survival_and_numbers_have_their_own_metrics() -> None:
    pytest.importorskip("lifelines", reason="survival comes from lifelines")
    months = np.arange(1, 41, dtype=np.float32)
    truth = np.stack([months, np.ones(40, np.float32)], -1)
    names = tuple(map(str, range(40)))
    assert evaluate(Answers(SURVIVAL, names, truth, -months[:, None].astype(float)))["c_index"].value == 1.0
    assert evaluate(Answers(SURVIVAL, names, truth, months[:, None].astype(float)))["c_index"].value == 0.0
    found = evaluate(Answers(NUMBER, names, months[:, None], months[:, None].astype(float) + 2))
    assert found["mae"].value == 2.0
    assert found["r2"].value == pytest.approx(1 - 4 / np.var(months), abs=1e-3)


@pytest.mark.usefixtures("few_draws")
def test_a_better_model_is_found_better_and_equal_ones_are_not() -> None:
    good, bad = binary(200, noise=0.6), binary(200, noise=3.0, seed=1)
    found = compare(bad, good)["auroc"]
    assert found.difference > 0.1
    assert found.low > 0
    assert found.p_value < 0.01
    same = compare(good, good)["auroc"]
    assert same.difference == 0
    assert same.p_value == 1


@pytest.mark.usefixtures("few_draws")
def test_patients_are_paired_by_name_not_by_row() -> None:
    a = binary(60)
    order = np.random.default_rng(0).permutation(60)
    b = Answers(BINARY, tuple(a.patients[i] for i in order), a.truth[order], a.values[order])
    assert all(line.difference == 0 for line in compare(a, b).values())


def test_what_cannot_be_compared_is_refused() -> None:
    a = binary(60)
    with pytest.raises(SettingsError, match="different questions"):
        compare(a, Answers(NUMBER, a.patients, a.truth, a.values[:, :1]))
    with pytest.raises(SettingsError, match="0 patients in common"):
        compare(a, Answers(BINARY, tuple(f"q{i}" for i in range(60)), a.truth, a.values))
    with pytest.raises(SettingsError, match="different truths"):
        compare(a, Answers(BINARY, a.patients, 1 - a.truth, a.values))


def test_answers_are_written_and_read_again(tmp_path: Path) -> None:
    answers = binary(30)
    (tmp_path / "predictions.csv").write_bytes(answers_csv(answers, str, {"novelty": ["0.5"] * 30}))
    again = read_answers(tmp_path / "predictions.csv", BINARY)
    assert again.patients == answers.patients
    assert again.values == pytest.approx(answers.values, abs=1e-6)
    with pytest.raises(SettingsError, match="not the predictions"):
        read_answers(tmp_path / "predictions.csv", NUMBER)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression", "survival"])
def test_every_target_has_a_picture(tmp_path: Path, task: str) -> None:
    if task == "survival":
        pytest.importorskip("lifelines", reason="survival comes from lifelines")
    chance = np.random.default_rng(0)
    numbers = chance.random((40, 1))
    three = chance.dirichlet(np.ones(3), 40)
    answers = {
        "binary": binary(40),
        "multiclass": Answers(
            Target(task, ("x",), ("a", "b", "c")), ("p",) * 40, np.eye(3, dtype=np.float32)[np.arange(40) % 3], three
        ),
        "multilabel": Answers(
            Target(task, ("a", "b", "c"), ("a", "b", "c")), ("p",) * 40, np.eye(3, dtype=np.float32)[np.arange(40) % 3], three
        ),
        "regression": Answers(NUMBER, ("p",) * 40, numbers.astype(np.float32), numbers + 0.1),
        "survival": Answers(SURVIVAL, ("p",) * 40, np.concatenate([numbers, numbers > 0.3], 1).astype(np.float32), 1 - numbers),
    }[task]
    evaluation_picture(tmp_path / "e.png", answers, evaluate(answers), "a title")
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.size[0] > 300
        assert np.asarray(picture.convert("L")).std() > 5


def test_risks_of_several_models_are_compared_within_each() -> None:
    """Each model has a scale of its own: a ranker without a fault in every fold is without one over all."""
    pytest.importorskip("lifelines", reason="survival comes from lifelines")
    months = np.arange(1, 31, dtype=np.float32)
    truth = np.stack([months, np.ones(30, np.float32)], -1)
    fold = np.arange(30) % 3
    risk = -months + 100.0 * fold  # of one model all are higher than of another
    names = tuple(map(str, range(30)))
    assert evaluate(Answers(SURVIVAL, names, truth, risk[:, None]))["c_index"].value < 0.8
    found = evaluate(Answers(SURVIVAL, names, truth, risk[:, None], fold=fold))["c_index"]
    assert (found.value, found.low) == (1.0, 1.0)
    nobody = np.stack([months, np.zeros(30, np.float32)], -1)
    assert evaluate(Answers(SURVIVAL, names, nobody, risk[:, None], fold=fold))["c_index"].value is None


def test_pairs_are_those_that_harrell_counts() -> None:
    truth = np.array([[1, 1], [2, 1], [2, 0], [2, 1], [3, 0]], np.float32)
    assert comparable(truth) == 4 + 2 + 2
