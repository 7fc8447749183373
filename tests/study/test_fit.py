import numpy as np
import pytest
import torch

from pathovit.errors import SettingsError
from pathovit.model.aggregator import TileEvidence
from pathovit.model.targets import Target
from pathovit.model.targets.survival import cox_loss
from pathovit.settings import TrainSettings
from pathovit.study.fit import rate
from pathovit.study.losses import Loss, some_tiles


def test_the_learning_rate_rises_and_falls_for_any_number_of_steps() -> None:
    for steps in (1, 2, 9, 10, 11, 500):
        rates = [rate(step, steps) for step in range(steps)]
        assert all(0 < r <= 1 for r in rates)
        assert max(rates) >= 0.5
    assert rate(0, 500) < 0.05
    assert rate(499, 500) < 0.001


def test_cox_loss_by_hand() -> None:
    """Three patients: events at 1 and 2, the third still observed at 3."""
    risks = torch.tensor([0.5, -0.2, 0.1])
    truth = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 0.0]])
    first = -(risks[0] - torch.logsumexp(risks, 0))
    second = -(risks[1] - torch.logsumexp(risks[1:], 0))
    assert cox_loss(risks, truth).item() == pytest.approx(float(first + second) / 2)


def test_a_higher_risk_of_those_who_die_first_lowers_the_cox_loss() -> None:
    truth = torch.tensor([[1.0, 1.0], [5.0, 1.0]])
    assert cox_loss(torch.tensor([2.0, -2.0]), truth) < cox_loss(torch.tensor([-2.0, 2.0]), truth)


def found(evidence: torch.Tensor) -> TileEvidence:
    even = torch.full((len(evidence),), 1 / len(evidence))
    return TileEvidence(evidence.mean(0), evidence, even, torch.zeros(evidence.shape[1]))


def test_every_tile_of_a_benign_patient_must_be_cold_and_the_hottest_of_a_tumour_patient_hot() -> None:
    settings = TrainSettings(label_smoothing=0.0, top_share=0.1)
    judge = Loss(Target("binary", ("x",), ("benign", "tumour")), settings, torch.ones(2, 1), 0.0, 1.0)
    few_hot, cold = torch.full((20, 1), -4.0), torch.full((20, 1), -4.0)
    few_hot[:2] = 4.0
    benign, tumour = torch.tensor([0.0]), torch.tensor([1.0])
    ones = torch.ones(1)
    assert judge.of_tiles(few_hot, benign, ones) > judge.of_tiles(cold, benign, ones) + 1
    assert judge.of_tiles(few_hot, tumour, ones) < 0.1
    assert judge.of_tiles(cold, tumour, ones) > 3


def test_a_common_class_is_not_drowned_by_rare_ones() -> None:
    """Weights 0.37 and 6.7: a patient of the common class counts 0.37, in the answer and in every tile."""
    target = Target("multiclass", ("x",), ("a", "b", "c"))
    settings = TrainSettings(label_smoothing=0.0)
    weights = torch.tensor([[0.37, 6.7, 6.7]] * 2)
    even = found(torch.zeros(30, 3))
    truth = torch.tensor([1.0, 0.0, 0.0])
    weighted = Loss(target, settings, weights, 0.0, 1.0).of_bag(even, truth)
    plain = Loss(target, settings, torch.ones(2, 3), 0.0, 1.0).of_bag(even, truth)
    assert weighted.item() == pytest.approx(0.37 * plain.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "train.epochs is 0"),
        ({"precision": "fp8"}, "train.precision is 'fp8'"),
        ({"validation_share": 0.0}, "need a validation part"),
        ({"test_share": 0.9}, "train.test_share is 0.9"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings(**settings)


def test_regression_loss_is_on_the_scale_of_the_cohort() -> None:
    judge = Loss(Target("regression", ("age",), ("age",)), TrainSettings(), torch.ones(2, 1), 50.0, 10.0)
    assert judge.of_bag(found(torch.full((4, 1), 1.5)), torch.tensor([np.float32(65.0)])).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_a_class_of_one_patient_or_of_none_has_a_finite_weight(task: str) -> None:
    target = Target(task, ("x", "y"), ("a", "b"))
    truth = np.zeros((8, target.outputs), np.float32)
    truth[0, 0] = 1
    weights = target.kind.class_weights(truth)
    assert weights[1, 0] == 8 / 2  # one patient with it
    assert weights[0, 0] == pytest.approx(8 / 14)
    truth[:] = 0
    assert np.isfinite(target.kind.class_weights(truth)).all()


def test_tiles_of_a_step_are_as_many_as_asked_in_grid_order() -> None:
    settings, chance = TrainSettings(max_tiles=50, tile_dropout=0.3), np.random.default_rng(0)
    counts = []
    for _ in range(200):
        kept = some_tiles(60, settings, chance).tolist()
        assert kept == sorted(set(kept))
        counts.append(len(kept))
    assert max(counts) == 50
    assert min(counts) >= 42  # 70 % of them
    assert some_tiles(1, settings, chance).tolist() == [0]
