import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pathovit.aggregator import AggregatorConfig, SlideTransformer, load_model, save_model
from pathovit.errors import SettingsError, WeightsError
from pathovit.features import SlideFeatures, Verdict

DIM, PITCH = 8, 96.0


def network(
    classes: tuple[str, ...] = ("normal", "tumour"), task: str = "binary", kind: str = "slide_transformer"
) -> SlideTransformer:
    torch.manual_seed(0)
    made = SlideTransformer(AggregatorConfig(DIM, classes, task, width=32, depth=1, kind=kind)).eval()
    with torch.no_grad():  # branches at full strength, or a fault in them would hide behind the small start
        for name, parameter in made.named_parameters():
            if ".scale." in name:
                parameter.fill_(1.0)
    return made


def bag(tiles: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    place = torch.randperm(40 * 40, generator=chance)[:tiles]
    return torch.randn(tiles, DIM, generator=chance), torch.stack([place % 40, place // 40], -1).double() * PITCH


def slide_features(tiles: int = 50) -> SlideFeatures:
    features, xy = bag(tiles)
    recipe = {"encoder": {"encoder": "e", "weights_sha256": "w", "dim": DIM, "tile_px": 96}, "tiles": {"mpp": 1.0}}
    attributes = {"mpp_x": 1.0, "mpp_y": 1.0, "tile_l0": [96.0, 96.0], "stride_l0": [96.0, 96.0], "mpp": 1.0, "recipe": recipe}
    verdict = np.zeros(tiles, np.uint8)
    verdict[7] = Verdict.UNREADABLE
    values = features.numpy().astype(np.float16)
    values[7] = np.nan
    return SlideFeatures("s", values, xy.numpy().astype(np.int64), np.ones(tiles, np.float32), verdict, attributes)


@pytest.mark.parametrize("kind", ["slide_transformer", "abmil", "mean"])
def test_the_tiles_add_up_to_the_answer(kind: str) -> None:
    answer = network(kind=kind).predict(slide_features())
    assert np.nansum(answer.contributions, 0) + answer.bias == pytest.approx(answer.logits, abs=1e-5)
    assert np.nansum(answer.attention) == pytest.approx(1, abs=1e-5)
    assert answer.probabilities.sum() == pytest.approx(1)


def test_tiles_that_were_not_read_have_no_score_and_no_influence() -> None:
    slide = slide_features()
    answer = network().predict(slide)
    assert np.isnan(answer.tile_scores[7]).all()
    assert np.isfinite(np.delete(answer.tile_scores, 7, 0)).all()


def test_order_and_origin_of_the_tiles_do_not_matter() -> None:
    net, (features, xy) = network(), bag()
    order = torch.randperm(len(features))
    with torch.inference_mode():
        one = net(features, xy, PITCH)
        two = net(features[order], xy[order] + torch.tensor([12_345.6, 789.0]), PITCH)
    assert torch.allclose(one.logits, two.logits, atol=1e-5)
    assert torch.allclose(one.evidence[order], two.evidence, atol=1e-4)


def test_neighbours_matter_and_distance_is_felt() -> None:
    net, (features, xy) = network(), bag(64)
    with torch.inference_mode():
        near = net(features, xy, PITCH).evidence
        other = features.clone()
        other[1:] = torch.randn(63, DIM)
        assert not torch.allclose(net(other, xy, PITCH).evidence[0], near[0], atol=1e-4)
        assert not torch.allclose(net(features, xy * 2, 2 * PITCH).evidence, near, atol=1e-4)


def test_far_tiles_reach_each_other_through_regions() -> None:
    net = network()
    features = torch.randn(2, DIM)
    xy = torch.tensor([[0.0, 0.0], [100 * PITCH, 0.0]]).double()  # six windows apart
    changed = torch.stack([features[0], features[1] + 3])
    with torch.inference_mode():
        assert not torch.allclose(net(features, xy, PITCH).evidence[0], net(changed, xy, PITCH).evidence[0], atol=1e-5)


@pytest.mark.parametrize("mpp", [0.25, 0.2462, 0.2467, 0.2485, 0.263])
def test_no_two_tiles_of_a_snapped_grid_share_a_place(mpp: float) -> None:
    """Tiles read at 4 x 0.2462 = 0.985 um/px lie 94.5 um apart, not the 96 um that were asked for."""
    stride = 384.0 if abs(4 * mpp - 1) <= 0.02 else 96 / mpp
    columns, rows = np.meshgrid(np.arange(260), np.arange(260))
    xy = np.rint(np.stack([columns.ravel(), rows.ravel()], -1) * stride).astype(np.int64)
    attributes = {"mpp_x": mpp, "mpp_y": mpp, "tile_l0": [stride, stride], "stride_l0": [stride, stride]}
    slide = SlideFeatures("s", np.zeros((1, 1), np.float16), xy, np.ones(1, np.float32), np.zeros(1, np.uint8), attributes)
    centres = slide.centres_um()
    places = np.rint((centres - centres.min(0)) / slide.pitch_um)
    assert len(np.unique(places, axis=0)) == 260 * 260


def test_a_single_tile_is_a_slide() -> None:
    with torch.inference_mode():
        found = network()(torch.randn(1, DIM), torch.zeros(1, 2).double(), PITCH)
    assert found.attention.tolist() == [1.0]
    assert torch.allclose(found.logits, found.evidence[0] + found.bias)


def test_every_parameter_learns() -> None:
    net, (features, xy) = network(), bag(300)
    net.train()
    net(features, xy, PITCH).logits.sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize(("task", "total"), [("multiclass", 1.0), ("multilabel", None)])
def test_more_than_two_classes(task: str, total: float | None) -> None:
    answer = network(("a", "b", "c"), task).predict(slide_features())
    assert answer.probabilities.shape == (3,)
    assert answer.tile_scores.shape == (50, 3)
    if total is not None:
        assert answer.probabilities.sum() == pytest.approx(total)


def card(**changes: object) -> dict[str, object]:
    return {"encoder": {"encoder": "e", "weights_sha256": "w", "dim": DIM, "tile_px": 96, "mpp": 1.0, **changes}}


def test_a_model_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    net = network()
    save_model(tmp_path / "m", net, card())
    slide = slide_features()
    assert np.array_equal(load_model(tmp_path / "m").predict(slide).logits, net.predict(slide).logits)


@pytest.mark.parametrize(("key", "value"), [("encoder", "other"), ("weights_sha256", "other"), ("mpp", 0.5), ("tile_px", 224)])
def test_features_the_model_was_not_trained_on_are_refused_and_both_named(tmp_path: Path, key: str, value: object) -> None:
    save_model(tmp_path / "m", network(), card(**{key: value}))
    with pytest.raises(SettingsError, match=rf"'m' was trained on features with {key} = {value}, and these have"):
        load_model(tmp_path / "m").predict(slide_features())


def test_swapped_weights_are_noticed(tmp_path: Path) -> None:
    save_model(tmp_path / "m", network(), card())
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**described, "weights_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="its SHA-256 is not the one in model.json"):
        load_model(tmp_path / "m")


def test_a_folder_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model.json is missing.*pathovit train"):
        load_model(tmp_path)
