"""The network that is trained: features of images, and maps of where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pathovit.encoders.build import make_model
from pathovit.encoders.pool import by_place, has_places, pool_tokens, pooled, tokens_of
from pathovit.encoders.record import EncoderRecord
from pathovit.errors import SettingsError


class Backbone(nn.Module):
    """A record's network behind its colours: images (B, 3, H, W) of 0 to 1.

    Raises
    ------
    WeightsError : it cannot see images of this side
    """

    def __init__(self, record: EncoderRecord, side: int) -> None:
        super().__init__()
        self.record, self.side = record, side
        self.network = make_model(record, side)
        self.register_buffer("mean", torch.tensor(record.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(record.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D)."""
        return pool_tokens(self.network, self._seen(images), self.record.pool)

    def _seen(self, images: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    def maps(self, images: Tensor) -> Tensor:
        """Features by place, (B, D, h, w).

        Raises
        ------
        SettingsError : its architecture does not give them
        """
        if not self.has_places:
            raise SettingsError(f"{self.record.arch} gives no features by place, which mae needs. Use --method dino or distil.")
        return by_place(self.network, tokens_of(self.network, self._seen(images)))

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D), and by place (B, D, h, w), of one pass; it `has_places`."""
        tokens = tokens_of(self.network, self._seen(images))
        return pooled(self.network, tokens, self.record.pool), by_place(self.network, tokens)

    @property
    def has_places(self) -> bool:
        return has_places(self.network, self.record.pool)


def norms_of(backbone: Backbone) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Layers that know the mean and spread of what they have seen."""
    return [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]


@torch.no_grad()
def settle(backbone: Backbone, batches: Sequence[Tensor]) -> None:
    """Batch norm learns mean and spread anew, from images (B, 3, H, W) as they are: those of training were altered or covered."""
    norms = norms_of(backbone.eval()) if batches else []
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean of all batches
    for images in batches:
        backbone(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def width_of(backbone: Backbone) -> tuple[int, int]:
    """Numbers of a feature by place, and pixels from one place to the next."""
    with torch.no_grad():
        found = backbone.eval().maps(torch.zeros(1, 3, backbone.side, backbone.side))
    return found.shape[1], backbone.side // found.shape[2]
