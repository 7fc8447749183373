import numpy as np
import pytest

from pathovit.calibration import Calibration, calibrate, fit_temperature, margins, possible_answers, probabilities, upper_quantile
from pathovit.evaluation import calibration_error
from pathovit.targets import Target

BINARY = Target("binary", ("label",), ("benign", "tumour"))
THREE = Target("multiclass", ("label",), ("a", "b", "c"))
BOTH = Target("multilabel", ("er", "pr"), ("er", "pr"))


def drawn(patients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 1) and truth (n, 1) that fit each other."""
    chance = np.random.default_rng(seed)
    logits = chance.normal(0, 2, (patients, 1))
    return logits, (chance.random((patients, 1)) < 1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_overconfidence(factor: float) -> None:
    logits, truth = drawn(4000)
    assert fit_temperature(BINARY, logits * factor, truth) == pytest.approx(factor, rel=0.12)


def test_calibrated_probabilities_are_frequencies_on_new_patients() -> None:
    logits, truth = drawn(2000)
    made = calibrate(BINARY, logits * 5, truth, logits, 0, 1)
    fresh, fresh_truth = drawn(4000, seed=1)
    before = calibration_error(fresh_truth[:, 0].astype(int), probabilities(BINARY, fresh * 5)[:, 1])
    after = calibration_error(fresh_truth[:, 0].astype(int), probabilities(BINARY, fresh * 5 / made.temperature)[:, 1])
    assert before > 0.1
    assert after < 0.03


def test_separable_patients_do_not_ask_for_certainty() -> None:
    truth = np.array([[0.0], [1.0]] * 15, np.float32)
    found = fit_temperature(BINARY, truth * 8 - 4, truth)
    assert 0.8 < probabilities(BINARY, np.array([4 / found]))[1] < 0.99


@pytest.mark.parametrize(("target", "columns"), [(BINARY, 1), (THREE, 3), (BOTH, 2)])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_truth_is_among_the_possible_answers_as_often_as_promised(target: Target, columns: int, rate: float) -> None:
    """Mean coverage over many draws of validation patients, as the guarantee is over both."""
    chance = np.random.default_rng(0)
    covered = []
    for _ in range(30):
        logits = chance.normal(0, 1.5, (160, columns))
        chances = probabilities(target, logits)
        if target is THREE:
            truth = np.eye(3, dtype=np.float32)[[chance.choice(3, p=p) for p in chances]]
        else:
            truth = (chance.random((160, columns)) < chances[:, -columns:]).astype(np.float32)
        made = calibrate(target, logits[:80], truth[:80], logits[:80], 0, 1)
        scaled = probabilities(target, logits / made.temperature)
        for row in range(80, 160):
            for question, options in enumerate(possible_answers(target, made, scaled[row], rate)):
                if target is BOTH:
                    right = target.classes[question] if truth[row, question] else f"no {target.classes[question]}"
                else:
                    right = target.classes[int(truth[row].argmax() if target is THREE else truth[row, 0])]
                covered.append(right in options)
    assert 1 - rate - 0.02 < np.mean(covered) < 1 - rate + 0.04


def test_too_few_patients_leave_the_answer_open() -> None:
    logits, truth = np.array([[-3.0], [3.0]] * 3), np.array([[0.0], [1.0]] * 3, np.float32)
    made = calibrate(BINARY, logits, truth, logits, 0, 1)
    assert possible_answers(BINARY, made, np.array([0.01, 0.99]), 0.1) == [("benign", "tumour")]


def test_few_benign_patients_reach_the_hot_limit() -> None:
    chance = np.random.default_rng(0)
    beyond = [chance.normal() >= upper_quantile(chance.normal(size=60), 0.05) for _ in range(4000)]
    assert 0.03 < np.mean(beyond) < 0.065
    assert upper_quantile(np.array([1.0, 5.0, 3.0]), 0.05) == pytest.approx(5.0)  # too few to say: the highest


def test_the_hot_limit_comes_from_patients_without_the_class() -> None:
    logits, truth = drawn(200)
    hottest = np.where(truth == 1, 50.0, np.linspace(0, 2, 200)[:, None])
    made = calibrate(BINARY, logits, truth, hottest, 0, 1)
    assert made.hot[0] * made.temperature < 2.0001
    assert made.hot_patients == (int((truth == 0).sum()),)


def test_margins_are_log_odds() -> None:
    chances = probabilities(THREE, np.array([1.0, 2.0, 0.5]))
    assert margins(THREE, np.array([1.0, 2.0, 0.5])) == pytest.approx(np.log(chances / (1 - chances)))


def test_a_calibration_survives_json() -> None:
    logits, truth = drawn(50)
    made = calibrate(BINARY, logits, truth, logits, 0, 1)
    assert Calibration.from_dict(made.to_dict()) == made
