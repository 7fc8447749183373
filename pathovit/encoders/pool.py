"""Tokens of a network to one vector per image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def pool_tokens(model: nn.Module, images: torch.Tensor, pool: str) -> torch.Tensor:
    """One vector (B, D) per image: timm's own pooling, CLS or mean patch token or both, or the model's own output."""
    import torch

    if pool == "direct":
        direct: torch.Tensor = model(images)
        return direct
    network: Any = model  # timm's, each of which has these two
    tokens: torch.Tensor = network.forward_features(images)
    if pool == "head":
        pooled: torch.Tensor = network.forward_head(tokens, pre_logits=True)
        return pooled
    parts = {"cls": tokens[:, 0], "mean": tokens[:, network.num_prefix_tokens :].mean(1)}
    norm = getattr(model, "fc_norm", torch.nn.Identity())  # where tokens are normed after they are pooled
    return torch.cat([norm(parts[name]) for name in pool.split("_")], dim=-1)
