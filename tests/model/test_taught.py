"""TaughtHead: means over neighbours, evidence that adds up, distance from what was shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathovit.model.lattice import Lattice
from pathovit.model.taught import REACHES, TaughtHead
from pathovit.settings import AggregatorConfig

PITCH = 96.0
Bag = tuple[torch.Tensor, torch.Tensor, float]


@pytest.fixture
def bag() -> Bag:
    """60 tiles scattered over a lattice of 14 x 9, features (60, 5), far from the origin."""
    chance = np.random.default_rng(0)
    place = chance.permutation(14 * 9)[:60]
    xy_um = torch.from_numpy(np.stack([place % 14, place // 14], -1) * PITCH + 1234.5)
    return torch.from_numpy(chance.normal(size=(60, 5)).astype(np.float32)), xy_um, PITCH


def head(classes: int = 3) -> TaughtHead:
    network = TaughtHead(AggregatorConfig(feature_dim=5, outputs=classes, width=4, kind="taught"))
    torch.manual_seed(1)
    return network.requires_grad_(False).eval()


@pytest.mark.parametrize("reach", REACHES)
def test_a_mean_over_neighbours_is_a_gaussian_over_the_tiles_that_there_are(bag: Bag, reach: float) -> None:
    features, xy_um, _ = bag
    away = ((xy_um[:, None] - xy_um[None]) / PITCH).round()
    weight = torch.exp(-away.square().sum(-1) / (2 * reach**2))
    weight[away.abs().amax(-1) > -(-5 * reach // 2)] = 0
    expected = (weight.float() @ features) / weight.float().sum(1, keepdim=True)
    found = torch.from_numpy(Lattice(xy_um.numpy(), PITCH).mean(features.numpy(), reach))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_evidence_is_linear_in_the_means_and_adds_up_to_the_logits(bag: Bag) -> None:
    network = head()
    network.weight.normal_()
    network.bias.normal_()
    found = network(*bag)
    lattice = Lattice(bag[1].numpy(), bag[2])
    means = [torch.from_numpy(lattice.mean(bag[0].numpy(), reach)) for reach in REACHES]
    torch.testing.assert_close(
        found.evidence, sum(mean @ part for mean, part in zip(means, network.weight, strict=True)), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(found.logits, (found.attention[:, None] * found.evidence).sum(0) + found.bias)
    assert found.attention.sum() == pytest.approx(1)


def test_order_and_origin_of_tiles_do_not_matter(bag: Bag) -> None:
    network = head()
    network.weight.normal_()
    features, xy_um, pitch = bag
    turned = torch.randperm(len(features))
    moved = network(features[turned], xy_um[turned] + 5000, pitch)
    torch.testing.assert_close(moved.evidence, network(*bag).evidence[turned], atol=1e-5, rtol=1e-4)


def test_what_was_shown_is_not_strange_and_what_is_far_from_all_of_it_is(bag: Bag) -> None:
    network = head()
    network.axes[:] = torch.eye(5)
    network.limit.fill_(2.0)
    seen = network.seen(*bag)
    assert seen.shape == (60, 5)
    network.shown[:] = seen[:4]
    strange = network.strangeness(seen)
    torch.testing.assert_close(strange, torch.cdist(seen, seen[:4]).min(1).values / 2, atol=1e-3, rtol=1e-4)
    assert strange[:4].max() < 1e-2
    assert network.strangeness(seen + 100).min() > 1
