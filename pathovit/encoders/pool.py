"""Tokens of a network to one vector per image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def pool_tokens(model: nn.Module, images: torch.Tensor, pool: str) -> torch.Tensor:
    """One vector (B, D) per image: timm's own pooling, CLS or mean patch token or both, or the model's own output."""
    if pool == "direct":
        direct: torch.Tensor = model(images)
        return direct
    return pooled(model, tokens_of(model, images), pool)


def has_places(model: nn.Module, pool: str) -> bool:
    """Whether its tokens are of places of the image, and can be had."""
    return pool != "direct" or (hasattr(model, "tokens") and hasattr(model, "pooled"))


def tokens_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Tokens of a network that `has_places`, in the layout that is its own."""
    network: Any = model  # timm's, or the bundled one, which has them by another name
    tokens: torch.Tensor = network.tokens(images) if hasattr(model, "tokens") else network.forward_features(images)
    return tokens


def pooled(model: nn.Module, tokens: torch.Tensor, pool: str) -> torch.Tensor:
    """Those tokens as one vector (B, D) per image."""
    import torch

    network: Any = model
    if pool == "direct":
        own: torch.Tensor = network.pooled(tokens)
        return own
    if pool == "head":
        head: torch.Tensor = network.forward_head(tokens, pre_logits=True)
        return head
    parts = {"cls": tokens[:, 0], "mean": tokens[:, network.num_prefix_tokens :].mean(1)}
    norm = getattr(model, "fc_norm", torch.nn.Identity())  # where tokens are normed after they are pooled
    return torch.cat([norm(parts[name]) for name in pool.split("_")], dim=-1)


def by_place(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Those tokens by place, (B, D, h, w)."""
    if tokens.ndim == 3:  # (B, T, D), perhaps with a CLS token and registers
        tokens = tokens[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
    return tokens.permute(0, 3, 1, 2) if tokens.shape[1] == tokens.shape[2] else tokens  # (B, h, w, D) of Swin
