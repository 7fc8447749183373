"""What training lowers: the loss of a patient's answer and, where there are classes, of single tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pathovit.model.aggregator import Aggregator, TileEvidence
from pathovit.model.calibration import calibrated_loss
from pathovit.model.targets import Target
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Bag
from pathovit.study.evaluation import main_metric


@dataclass(frozen=True)
class Loss:
    """The loss of bags, for every kind of target."""

    target: Target
    settings: TrainSettings
    weights: Tensor  # (2, C)
    centre: float
    scale: float

    def of_step(
        self, network: Aggregator, step: Sequence[Bag], chance: np.random.Generator, device: torch.device
    ) -> Iterator[Tensor]:
        """Losses to go backward from, one at a time, so that one bag is in memory; a Cox loss needs all bags at once."""
        risks: list[Tensor] = []
        for bag in step:
            kept = some_tiles(len(bag.features), self.settings, chance)
            found, features = run_bag(network, bag, kept, device, self.settings.precision, self.settings.feature_noise)
            if self.target.task == "survival":
                risks.append(found.logits[0])
                continue
            truth = torch.from_numpy(bag.truth).to(device)
            yield (self.of_bag(found, truth) + network.extra_loss(features, truth)) / len(step)
        if risks and any(bag.truth[1] for bag in step):
            yield cox_loss(torch.stack(risks), torch.from_numpy(np.stack([bag.truth for bag in step])).to(device))

    def of_bag(self, found: TileEvidence, truth: Tensor) -> Tensor:
        """Loss of the patient's answer; where there are classes, also of single tiles.

        Every tile of a patient without a class lacks it, the hottest above all; of a patient with it some show it, so the
        hottest few must. Without this, tiles that attention overlooks could show any colour.
        """
        if self.target.task == "regression":
            return functional.mse_loss(found.logits, (truth - self.centre) / self.scale)
        eps, weights = self.settings.label_smoothing, self.weights.to(truth.device)
        weight = torch.where(truth > 0, weights[1], weights[0])  # (C,)
        if self.target.task == "multiclass":
            weight = weight[truth.argmax()]  # a patient has one class, and its weight
            loss = weight * functional.cross_entropy(found.logits[None], truth.argmax()[None], label_smoothing=eps)
        else:
            loss = (
                weight * functional.binary_cross_entropy_with_logits(found.logits, _smooth(truth, eps), reduction="none")
            ).mean()
        if self.settings.tile_loss and self.settings.kind == "slide_transformer":
            loss = loss + self.settings.tile_loss * self.of_tiles(found, truth, weight)
        return loss

    def of_tiles(self, found: TileEvidence, truth: Tensor, weight: Tensor) -> Tensor:
        tiles = found.evidence + found.bias  # (N, C)
        if self.target.task == "multiclass":
            chances = torch.log_softmax(tiles, -1)
            tiles = chances - torch.log1p(-chances.exp().clamp(max=1 - 1e-6))  # log-odds against all other classes
        top = tiles.topk(max(1, round(len(tiles) * self.settings.top_share)), dim=0).values  # (k, C)
        goal = _smooth(truth, self.settings.label_smoothing)
        hottest = functional.binary_cross_entropy_with_logits(top, goal.expand_as(top), reduction="none").mean(0)
        every = functional.binary_cross_entropy_with_logits(tiles, goal.expand_as(tiles), reduction="none").mean(0)
        return (weight * torch.where(truth > 0, hottest, (hottest + every) / 2)).mean()

    def of_part(self, network: Aggregator, bags: Sequence[Bag], device: torch.device) -> dict[str, float]:
        """Loss and main metric of a part. Where there are classes, the log loss at the temperature that calibration would find."""
        network.eval()
        truth = np.stack([bag.truth for bag in bags])
        with torch.inference_mode():
            found = [run_bag(network, bag, None, device, self.settings.precision)[0].logits.cpu() for bag in bags]
        logits = torch.stack(found)
        if self.target.task == "survival":
            loss = cox_loss(logits[:, 0], torch.from_numpy(truth)).item()
        elif self.target.task == "regression":
            loss = functional.mse_loss(logits, (torch.from_numpy(truth) - self.centre) / self.scale).item()
        else:
            loss = calibrated_loss(self.target, logits.numpy().astype(np.float64), truth)
        return {"loss": loss, **main_metric(self.target, truth, logits.numpy().astype(np.float64), self.centre, self.scale)}


def _smooth(truth: Tensor, eps: float) -> Tensor:
    return truth * (1 - eps) + eps / 2


def cox_loss(risks: Tensor, truth: Tensor) -> Tensor:
    """Negative partial log-likelihood of risks (n,) given (n, 2) time and event; ties as Breslow does.

    Source: Cox, "Regression models and life-tables", 1972.
    """
    at_risk = truth[None, :, 0] >= truth[:, None, 0]  # (n, n): who is still observed when i's time comes
    total = torch.logsumexp(risks[None].expand(len(risks), -1).masked_fill(~at_risk, -torch.inf), 1)
    return ((total - risks) * truth[:, 1]).sum() / truth[:, 1].sum().clamp_min(1)


def run_bag(
    network: Aggregator, bag: Bag, kept: Tensor | None, device: torch.device, precision: str = "fp32", noise: float = 0.0
) -> tuple[TileEvidence, Tensor]:
    """Evidence of a bag, or of the tiles `kept` of it; and the features as the network saw them."""
    features, xy_um = (bag.features, bag.xy_um) if kept is None else (bag.features[kept], bag.xy_um[kept])
    features, xy_um = features.to(device).float(), (xy_um - xy_um.min(0).values).float().to(device)
    if noise:
        features = features + noise * network.feature_scale * torch.randn_like(features)
    mixed = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        found: TileEvidence = network(features, xy_um, bag.pitch_um)
    return TileEvidence(found.logits.float(), found.evidence, found.attention, found.bias), features


def some_tiles(tiles: int, settings: TrainSettings, chance: np.random.Generator) -> Tensor:
    """Indices of the tiles of a bag that take part in a step, in grid order."""
    wanted = max(1, min(settings.max_tiles, round(tiles * (1 - settings.tile_dropout * chance.random()))))
    return torch.from_numpy(np.sort(chance.permutation(tiles)[:wanted]))
