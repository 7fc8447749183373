import numpy as np
import pytest

from pathovit.model.calibration import (
    Calibration,
    upper_quantile,
)
from pathovit.model.metrics import calibration_error
from pathovit.model.targets import Target

BINARY = Target("binary", ("label",), ("benign", "tumour"))
THREE = Target("multiclass", ("label",), ("a", "b", "c"))
BOTH = Target("multilabel", ("er", "pr"), ("er", "pr"))


def drawn(patients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 1) and truth (n, 1) that fit each other."""
    chance = np.random.default_rng(seed)
    logits = chance.normal(0, 2, (patients, 1))
    return logits, (chance.random((patients, 1)) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def whole(target: Target, logits: np.ndarray, truth: np.ndarray, hottest: np.ndarray | None = None) -> Calibration:
    """Both halves of a calibration."""
    made = target.kind.scaling(logits, truth, 0, 1)
    scaled = logits / made.temperature + np.array(made.shift)
    return target.kind.calibrate(made, scaled, truth, scaled if hottest is None else hottest)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_scaling_undoes_overconfidence_and_a_wrong_threshold(factor: float, offset: float) -> None:
    logits, truth = drawn(4000)
    temperature, shift = BINARY.kind.fit_scaling(logits * factor + offset, truth)
    assert temperature == pytest.approx(factor, rel=0.12)
    assert offset / temperature + shift[0] == pytest.approx(0, abs=0.1)


def test_calibrated_probabilities_are_frequencies_on_new_patients() -> None:
    logits, truth = drawn(2000)
    made = BINARY.kind.scaling(logits * 5, truth, 0, 1)
    fresh, fresh_truth = drawn(4000, seed=1)
    before = calibration_error(fresh_truth[:, 0].astype(int), BINARY.kind.probabilities(fresh * 5)[:, 1])
    after = calibration_error(
        fresh_truth[:, 0].astype(int), BINARY.kind.probabilities(fresh * 5 / made.temperature + made.shift[0])[:, 1]
    )
    assert before > 0.1
    assert after < 0.03


def test_separable_patients_do_not_ask_for_certainty() -> None:
    truth = np.array([[0.0], [1.0]] * 15, np.float32)
    temperature, shift = BINARY.kind.fit_scaling(truth * 8 - 4, truth)
    assert BINARY.kind.probabilities(4 / temperature + shift)[1] == pytest.approx(15.5 / 16, abs=0.003)


@pytest.mark.parametrize(("target", "columns"), [(BINARY, 1), (THREE, 3), (BOTH, 2)])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_truth_is_among_the_possible_answers_as_often_as_promised(target: Target, columns: int, rate: float) -> None:
    """Mean coverage over many draws of validation patients, as the guarantee is over both."""
    chance = np.random.default_rng(0)
    covered = []
    for _ in range(30):
        logits = chance.normal(0, 1.5, (160, columns))
        chances = target.kind.probabilities(logits)
        if target is THREE:
            truth = np.eye(3, dtype=np.float32)[[chance.choice(3, p=p) for p in chances]]
        else:
            truth = (chance.random((160, columns)) < chances[:, -columns:]).astype(np.float32)
        made = whole(target, logits[:80], truth[:80])
        scaled = target.kind.probabilities(logits / made.temperature + np.array(made.shift))
        for row in range(80, 160):
            for question, options in enumerate(target.kind.possible(made, scaled[row], rate)):
                if target is BOTH:
                    right = target.classes[question] if truth[row, question] else f"no {target.classes[question]}"
                else:
                    right = target.classes[int(truth[row].argmax() if target is THREE else truth[row, 0])]
                covered.append(right in options)
    assert 1 - rate - 0.02 < np.mean(covered) < 1 - rate + 0.04


def test_too_few_patients_leave_the_answer_open() -> None:
    logits, truth = np.array([[-3.0], [3.0]] * 3), np.array([[0.0], [1.0]] * 3, np.float32)
    made = whole(BINARY, logits, truth)
    assert BINARY.kind.possible(made, np.array([0.01, 0.99]), 0.1) == [("benign", "tumour")]


def test_few_benign_patients_reach_the_hot_limit() -> None:
    chance = np.random.default_rng(0)
    beyond = [chance.normal() >= upper_quantile(chance.normal(size=60), 0.05) for _ in range(4000)]
    assert 0.03 < np.mean(beyond) < 0.065
    assert upper_quantile(np.array([1.0, 5.0, 3.0]), 0.05) == pytest.approx(5.0)  # too few to say: the highest


def test_the_hot_limit_comes_from_patients_without_the_class() -> None:
    logits, truth = drawn(200)
    hottest = np.where(truth == 1, 50.0, np.linspace(0, 2, 200)[:, None])
    made = whole(BINARY, logits, truth, hottest)
    assert made.hot[0] < 2.0001
    assert made.hot_patients == (int((truth == 0).sum()),)


def test_margins_are_log_odds() -> None:
    chances = THREE.kind.probabilities(np.array([1.0, 2.0, 0.5]))
    assert THREE.kind.margins(np.array([1.0, 2.0, 0.5])) == pytest.approx(np.log(chances / (1 - chances)))


def test_a_calibration_survives_json() -> None:
    logits, truth = drawn(50)
    made = whole(BINARY, logits, truth)
    assert Calibration.from_json(made.to_json()) == made
