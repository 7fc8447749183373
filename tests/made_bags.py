"""A bag of features, and networks that answer for it."""

from __future__ import annotations

import torch

from pathovit.model.aggregator import Aggregator
from pathovit.model.baselines import make_aggregator
from pathovit.settings import AggregatorConfig

DIM, PITCH = 8, 96.0


def network(outputs: int = 1, kind: str = "slide_transformer") -> Aggregator:
    torch.manual_seed(0)
    made = make_aggregator(AggregatorConfig(DIM, outputs, width=32, depth=1, kind=kind)).eval()
    with torch.no_grad():  # branches at full strength, or a fault in them would hide behind the small start
        for name, parameter in made.named_parameters():
            if ".scale." in name:
                parameter.fill_(1.0)
    return made


def bag(tiles: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    place = torch.randperm(40 * 40, generator=chance)[:tiles]
    return torch.randn(tiles, DIM, generator=chance), torch.stack([place % 40, place // 40], -1).double() * PITCH
