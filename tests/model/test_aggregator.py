import numpy as np
import pytest
import torch
from made import made_features
from made_bags import DIM, PITCH, bag, network

from pathovit.errors import SettingsError
from pathovit.model import aggregator
from pathovit.model.aggregator import Aggregator, WindowLayout, split_heads

KINDS = ["slide_transformer", "mean", "abmil", "clam_sb", "transformer", "transmil"]


def made(kind: str, outputs: int = 1) -> Aggregator:
    if kind not in ("slide_transformer", "mean"):
        pytest.importorskip("torchmil", reason="the baselines come from torchmil")
    return network(outputs, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_tiles_add_up_to_the_answer(kind: str, outputs: int) -> None:
    features, xy = bag(90)
    with torch.inference_mode():
        found = made(kind, outputs)(features, xy, PITCH)
    assert found.logits.shape == (outputs,)
    assert found.evidence.shape == (90, outputs)
    if kind == "transmil":
        assert found.evidence.isnan().all()
        return
    assert float(found.attention.sum()) == pytest.approx(1, abs=1e-5)
    total = (found.attention[:, None] * found.evidence).sum(0) + found.bias
    assert torch.allclose(total, found.logits, atol=1e-5)


def test_windows_are_packed_and_no_tile_is_lost() -> None:
    _, xy = bag(600)
    place = (xy / PITCH).long()
    layout = WindowLayout(place[:, 0], place[:, 1], 8)
    places = list(layout.spread(torch.arange(600)[:, None]))
    held = torch.cat([tiles[..., 0][filled] for tiles, filled in zip(places, layout.filled, strict=True)])
    assert sorted(held.tolist()) == list(range(600))
    assert torch.equal(layout.gather(places), torch.arange(600)[:, None])
    with torch.inference_mode():
        assert torch.equal(layout.gather(places), torch.arange(600)[:, None])
    for part, filled in zip(places, layout.filled, strict=True):
        for tiles, there in zip(part[..., 0], filled, strict=True):
            windows = (place[tiles[there]] + 8) // 16
            assert len(torch.unique(windows, dim=0)) == 1


def test_an_answer_in_parts_is_that_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something is learned all tiles are taken at once."""
    monkeypatch.setattr(aggregator, "ROWS_AT_ONCE", 64)
    features, xy = bag(333)
    whole = network()(features, xy, PITCH)
    with torch.inference_mode():
        parts = network()(features, xy, PITCH)
    for name in ("logits", "evidence", "attention"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5), name


@pytest.mark.parametrize("rows", [64, 4096])
def test_in_mixed_precision_blocks_add_up_in_single(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation on a GPU runs so; its answers choose the model."""
    monkeypatch.setattr(aggregator, "ROWS_AT_ONCE", rows)
    features, xy = bag(333)
    net, kinds = network(), []
    for block in net.blocks:
        block.register_forward_hook(lambda block, given, tokens: kinds.append(tokens.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        net(features, xy, PITCH)
    assert kinds == [torch.float32] * len(net.blocks)


def test_packing_does_not_change_attention() -> None:
    """Against attention written down plainly: softmax of similarity and distance over the tiles of the same window."""
    net = network()
    _, xy = bag(300)
    attention = net.blocks[0].window
    tokens = torch.randn(300, 32)
    place = (xy / PITCH).long()
    layout = WindowLayout(place[:, 0], place[:, 1], 0)
    with torch.inference_mode():
        found = attention(tokens, layout, xy.float())
        q, k, v = split_heads(attention.qkv(attention.norm(tokens)), attention.heads).permute(1, 2, 0, 3)
        away = torch.cdist(xy.float(), xy.float()) / 100
        reach = attention.log_reach.exp()[:, None, None]
        strength = q @ k.transpose(1, 2) / 8**0.5 - away**2 / (2 * reach**2)
        together = layout.window[:, None] == layout.window[None]
        weights = strength.masked_fill(~together, -torch.inf).softmax(-1)
        wanted = attention.out((weights @ v).transpose(0, 1).flatten(1))
    assert torch.allclose(found, wanted, atol=1e-4)


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
    slide = made_features(xy, grid={"tile": stride}, mpp=mpp)
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


def test_attention_recomputed_in_training_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (features, xy) = network(), bag(400)
    found = []
    for at_once in (32, 2):
        monkeypatch.setattr(aggregator, "WINDOWS_AT_ONCE", at_once)
        net.zero_grad()
        net(features, xy, PITCH).logits.sum().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-4), name


def test_half_precision_hardly_changes_the_answer() -> None:
    net, (features, xy) = network(), bag(300)
    with torch.inference_mode():
        full = net(features, xy, PITCH).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = net(features, xy, PITCH).logits
    assert torch.allclose(full, half.float(), atol=0.05)


def test_an_unknown_kind_names_those_there_are() -> None:
    with pytest.raises(SettingsError, match="'gcn' is unknown. Use slide_transformer, mean, abmil"):
        network(kind="gcn")


def test_slides_far_apart_in_one_bag_do_not_blur_each_others_distances() -> None:
    """The second of two equal slides, very far away, must be seen as the first is."""
    net = network()
    features, xy = bag(600)
    far = xy + torch.tensor([16 * 1000 * PITCH, 0.0])
    with torch.inference_mode():
        one = net(torch.cat([features, features * 0.9]), torch.cat([xy, far]), PITCH).evidence
        two = net(torch.cat([features * 0.9, features]), torch.cat([xy, far]), PITCH).evidence
    assert torch.allclose(one[:600], two[600:], atol=1e-4)
