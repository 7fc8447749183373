"""TaughtHead: what a person showed on some tiles of some slides, carried to all others.

A linear head on the means of features over a tile and its neighbours, near and wide: tissue hardly changes from one tile to
the next, and a tile alone is noisy. As all of that is linear, features are projected first and averaged afterwards, and a
slide of 100,000 tiles takes a second.

How unlike everything that was shown a tile is, is its distance from the nearest tile that was, in the spread of all
tiles of those slides; above 1, it lies further than what was shown lies from the rest of what was shown.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pathovit.model.aggregator import Aggregator, TileEvidence
from pathovit.model.lattice import Lattice
from pathovit.settings import AggregatorConfig

REACHES = (0.7, 2.5)  # of the means: spreads of a Gaussian, in tiles
AXES = 32  # in which distances are measured, or as many as there are features
TILES_AT_ONCE = 4096


class TaughtHead(Aggregator):
    """Linear in features and their neighbourhood means; its answer for a slide is that of its tiles with most evidence."""

    weight: Tensor
    bias: Tensor
    shown: Tensor
    centre: Tensor
    axes: Tensor
    limit: Tensor

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__(config)
        axes = min(AXES, config.feature_dim)
        self.register_buffer("weight", torch.zeros(len(REACHES), config.feature_dim, config.outputs))
        self.register_buffer("bias", torch.zeros(config.outputs))
        self.register_buffer("shown", torch.zeros(config.width, axes))  # tiles that were shown, in the axes
        self.register_buffer("centre", torch.zeros(config.feature_dim))
        self.register_buffer("axes", torch.zeros(config.feature_dim, axes))
        self.register_buffer("limit", torch.ones(()))

    def forward(self, features: Tensor, xy_um: Tensor, pitch_um: float) -> TileEvidence:
        lattice = Lattice(xy_um.numpy(), pitch_um)
        said = torch.einsum("nd,kdc->knc", features.float(), self.weight).numpy()
        means = [lattice.mean(part, reach) for part, reach in zip(said, REACHES, strict=True)]
        evidence = torch.from_numpy(sum(means[1:], means[0]))
        attention = torch.softmax((evidence + self.bias).max(1).values, 0)
        return TileEvidence((attention[:, None] * evidence).sum(0) + self.bias, evidence, attention, self.bias)

    def seen(self, features: Tensor, xy_um: Tensor, pitch_um: float) -> Tensor:
        """(N, AXES) where tiles lie in the axes in which distances are measured."""
        seen = (features.float() - self.centre) @ self.axes
        return torch.from_numpy(Lattice(xy_um.numpy(), pitch_um).mean(seen.numpy(), REACHES[0]))

    def strangeness(self, seen: Tensor) -> Tensor:
        """(N,) how unlike everything that was shown tiles are, by where they lie; above 1 they were not taught."""
        nearest = [torch.cdist(part, self.shown).min(1).values for part in torch.split(seen, TILES_AT_ONCE)]
        return torch.cat(nearest) / self.limit
