"""Yardsticks on the interface of the SlideTransformer, from torchmil (`pip install pathovit[baselines]`).

    mean          mean of the features, a linear layer              Source: the simplest that can be
    abmil         gated attention, a linear layer                   Source: Ilse et al., ICML 2018
    clam_sb       the same with clustering of its own tiles         Source: Lu et al., Nature BME 2021
    transformer   two layers of full attention, then abmil          memory grows with N x N
    transmil      Nystrom attention and a class token               Source: Shao et al., NeurIPS 2021

All but transmil end in a linear layer over a weighted mean, so their logit is a sum over tiles too, and what that layer
says of a tile is its evidence. transmil has attention only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathovit.errors import SettingsError
from pathovit.model.aggregator import Aggregator, SlideTransformer, TileEvidence
from pathovit.model.own_kinds import kinds_of_ones_own, made_by
from pathovit.settings import AggregatorConfig

DROPOUT = 0.25
TRANSMIL_TILES = 5000  # of a bag whose attention is asked for
CLAM_TILES, CLAM_WEIGHT = 8, 0.3 / 0.7  # as its authors weigh clustering against the answer


class MeanPool(Aggregator):
    """The mean tile, and a linear layer."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__(config)
        self.embed = _embed(config)
        self.classifier = nn.Linear(config.width, config.outputs)

    def forward(self, features: Tensor, xy_um: Tensor, pitch_um: float) -> TileEvidence:
        tokens = self.embed(self.standardise(features))
        even = torch.full((len(tokens),), 1 / len(tokens), device=tokens.device)
        return _linear_evidence(tokens, even, self.classifier)


class AttentionPool(Aggregator):
    """abmil, clam_sb and transformer: tokens, attention over them, a linear layer."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__(config)
        models = _torchmil()
        embed, shape = _embed(config), (config.feature_dim,)
        if config.kind == "transformer":
            self.model = models.TransformerABMIL(
                in_shape=shape, feat_ext=embed, pool_att_dim=config.width, pool_gated=True, transf_att_dim=config.width,
                transf_n_layers=2, transf_n_heads=config.heads, transf_dropout=DROPOUT,
            )  # fmt: skip
        else:
            make = {"abmil": models.ABMIL, "clam_sb": models.CLAM_SB}[config.kind]
            self.model = make(in_shape=shape, feat_ext=embed, att_dim=config.width, gated=True)
        self.model.last_layer = None  # ours may have more outputs
        self.model.classifier = nn.Linear(config.width, config.outputs)

    def forward(self, features: Tensor, xy_um: Tensor, pitch_um: float) -> TileEvidence:
        tokens, strength = self._attend(features)
        return _linear_evidence(tokens[0], torch.softmax(strength.float().flatten(), 0), self.model.classifier)

    def _attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (1, N, width) and the strength of attention (1, N) before its softmax."""
        tokens = self.model.feat_ext(self.standardise(features)[None])
        if self.config.kind == "transformer":
            tokens = self.model.transformer_encoder(tokens)
        return tokens, self.model.pool(tokens, return_att=True)[1]

    def extra_loss(self, features: Tensor, truth: Tensor) -> Tensor:
        """CLAM's clustering: tiles it attends to most belong to the patient's class and to no other, those it attends to least do not.

        With cross entropy, which CLAM offers too: the smooth SVM loss of torchmil 1.0.2 stops with an error on some bags.
        """
        if self.config.kind != "clam_sb":
            return super().extra_loss(features, truth)
        tokens, strength = self._attend(features)
        count = min(CLAM_TILES, -(-len(features) // 2))
        most, least = (tokens[0][(sign * strength[0]).topk(count).indices] for sign in (1, -1))
        inside, outside = (self.model.inst_classifiers[label] for label in (int(truth), 1 - int(truth)))
        one = torch.ones(count, dtype=torch.long, device=features.device)
        cluster = functional.cross_entropy(inside(torch.cat([most, least])), torch.cat([one, 0 * one]))
        return CLAM_WEIGHT * (cluster + functional.cross_entropy(outside(most), 0 * one))


class TransMIL(Aggregator):
    """TransMIL; tiles must come in grid order, as it lays them out in a square of its own."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__(config)
        self.model = _torchmil().TransMIL(
            in_shape=(config.feature_dim,), feat_ext=_embed(config), att_dim=config.width, n_heads=config.heads, dropout=0.1
        )
        self.model.classifier = nn.Linear(config.width, config.outputs)

    def forward(self, features: Tensor, xy_um: Tensor, pitch_um: float) -> TileEvidence:
        bag = self.standardise(features)[None]
        nothing = torch.full((len(features), self.config.outputs), torch.nan, device=bag.device)
        bias = torch.zeros(self.config.outputs, device=bag.device)
        if self.training or len(features) > TRANSMIL_TILES:  # its attention is an N x N matrix
            attention = torch.full((len(features),), torch.nan, device=bag.device)
            logits = self.model(bag)
        else:
            logits, attention = self.model(bag, return_att=True)
            attention = attention.float().flatten() / attention.sum()
        return TileEvidence(logits.float().reshape(-1), nothing, attention, bias)


def _embed(config: AggregatorConfig) -> nn.Module:
    return nn.Sequential(nn.Linear(config.feature_dim, config.width), nn.ReLU(), nn.Dropout(DROPOUT))


def _linear_evidence(tokens: Tensor, attention: Tensor, classifier: nn.Linear) -> TileEvidence:
    evidence = functional.linear(tokens, classifier.weight).float()  # (N, C)
    return TileEvidence((attention[:, None] * evidence).sum(0) + classifier.bias, evidence, attention, classifier.bias)


def _torchmil() -> Any:
    try:
        import torchmil.models
    except ImportError as error:
        raise SettingsError(
            "This kind of model comes from torchmil. Install it with: pip install 'pathovit[baselines]'"
        ) from error
    return torchmil.models


AGGREGATORS: dict[str, type[Aggregator]] = {
    "slide_transformer": SlideTransformer,
    "mean": MeanPool,
    "abmil": AttentionPool,
    "clam_sb": AttentionPool,
    "transformer": AttentionPool,
    "transmil": TransMIL,
}


def make_aggregator(config: AggregatorConfig) -> Aggregator:
    """An aggregator with random weights."""
    make = AGGREGATORS.get(config.kind) or made_by(config.kind)
    if make is None:
        raise SettingsError(f"--kind {config.kind!r} is unknown. Use {', '.join([*AGGREGATORS, *kinds_of_ones_own()])}.")
    return make(config)
