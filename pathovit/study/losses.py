"""What training lowers: the loss of a patient's answer and, where there are classes, of single tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pathovit.model.aggregator import Aggregator, TileEvidence
from pathovit.model.targets import Target
from pathovit.model.targets.classes import Classes, smooth
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Bag
from pathovit.study.evaluation import main_metric


@dataclass(frozen=True)
class Loss:
    """The loss of bags."""

    target: Target
    settings: TrainSettings
    weights: Tensor  # (2, C)
    centre: float
    scale: float

    def of_step(
        self, network: Aggregator, step: Sequence[Bag], chance: np.random.Generator, device: torch.device
    ) -> Iterator[Tensor]:
        """Losses to go backward from, one at a time, so that one bag is in memory; a Cox loss needs all bags at once."""
        together: list[Tensor] = []
        for bag in step:
            kept = some_tiles(len(bag.features), self.settings, chance)
            found, features = run_bag(network, bag, kept, device, self.settings.precision, self.settings.feature_noise)
            if self.target.kind.least_bags > 1:
                together.append(found.logits)
                continue
            truth = torch.from_numpy(bag.truth).to(device)
            marks = None if bag.marks is None else bag.marks[kept].to(device)
            loss = self.of_bag(found, truth, marks)
            if bag.is_labelled:
                loss = loss + network.extra_loss(features, truth)
            yield loss / len(step)
        if together:
            truths = torch.from_numpy(np.stack([bag.truth for bag in step])).to(device)
            compared = self.target.kind.step_loss(torch.stack(together), truths)
            if compared is not None:
                yield compared

    def of_bag(self, found: TileEvidence, truth: Tensor, marks: Tensor | None = None) -> Tensor:
        """Loss of the patient's answer; where there are classes, also of single tiles.

        Tiles with marks (N, C) are judged by these. Of the others, every tile of a patient without a class lacks it, the hottest
        above all; of a patient with it some show it, so the hottest few must. Without this, tiles that attention overlooks could
        show any colour.
        """
        kind, eps = self.target.kind, self.settings.label_smoothing
        if not isinstance(kind, Classes):
            return kind.bag_loss(found.logits, (truth - self.centre) / self.scale, eps, self.weights)
        loss = found.logits.new_zeros(())
        tiles = kind.tile_margins(found.evidence + found.bias)
        if not truth.isnan().any():
            weight = kind.weight_of(truth, self.weights.to(truth.device))
            loss = kind.bag_loss(found.logits, truth, eps, weight)
            if self.settings.tile_loss and self.settings.kind == "slide_transformer":
                shown = weight if marks is None else torch.where((truth > 0) & (marks == 1).any(0), 0, weight)
                rest = tiles if marks is None else tiles[marks.isnan().all(1)]
                if len(rest):
                    loss = loss + self.settings.tile_loss * self.of_tiles(rest, truth, shown)
        if marks is not None:
            loss = loss + self.settings.region_loss * self.of_marks(tiles, marks)
        return loss

    def of_marks(self, tiles: Tensor, marks: Tensor) -> Tensor:
        """Loss of marked tiles, by log-odds (N, C): those with a class count as much as those without, however many they are."""
        losses = []
        for column, mark in zip(tiles.T, marks.T, strict=True):
            for value in (0.0, 1.0):
                if (chosen := mark == value).any():
                    goal = smooth(mark[chosen], self.settings.label_smoothing)
                    losses.append(functional.binary_cross_entropy_with_logits(column[chosen], goal))
        return torch.stack(losses).mean() if losses else tiles.new_zeros(())

    def of_tiles(self, tiles: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
        """Loss of tiles by their log-odds (N, C) of each class against all others."""
        top = tiles.topk(max(1, round(len(tiles) * self.settings.top_share)), dim=0).values  # (k, C)
        goal = smooth(truth, self.settings.label_smoothing)
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
        loss = self.target.kind.part_loss(logits, truth, self.centre, self.scale)
        return {"loss": loss, **main_metric(self.target, truth, logits.numpy().astype(np.float64), self.centre, self.scale)}


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
