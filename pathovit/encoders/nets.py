"""Networks that timm does not build by name, of its parts: one function each, from the side of a tile to the network.

They give their features themselves (pool "direct"). Names of layers are those of the published weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionPool(nn.Module):
    """One query that looks at all tokens (CoCa): (B, T, context) to (B, dim)."""

    def __init__(self, dim: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(context)
        self.to_q, self.to_kv = nn.Linear(dim, dim, bias=False), nn.Linear(context, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        count = len(tokens)
        query = self.to_q(self.ln_q(self.query)).expand(count, 1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        parts = (
            part.reshape(count, -1, self.heads, part.shape[-1] // self.heads).transpose(1, 2) for part in (query, key, value)
        )
        seen = functional.scaled_dot_product_attention(*parts)  # (B, heads, 1, dim / heads)
        pooled: Tensor = self.to_out(seen.transpose(1, 2).reshape(count, -1))
        return pooled


class Conch15(nn.Module):
    """The vision tower of CONCH v1.5: ViT-L/16, whose tokens are pooled by one query. Source: the published weights' layout."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.trunk = timm.create_model("vit_large_patch16_224", num_classes=0, img_size=side, init_values=1.0)
        self.attn_pool_contrast = AttentionPool(768, 1024, 8)
        self.ln_contrast = nn.LayerNorm(768)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(images)))
        return found

    def adapt(self, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        return _trunk_adapted(tensors, self.trunk, "trunk.")


class Keep(nn.Module):
    """The image side of KEEP: ViT-L/16 and two layers, of unit length."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.visual = timm.create_model("vit_large_patch16_224", num_classes=0, img_size=side, init_values=1e-5)
        self.visual_head = nn.Sequential(nn.Linear(1024, 768), nn.GELU(), nn.Linear(768, 768))

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize(self.visual_head(self.visual(images)), dim=-1)

    def adapt(self, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        seen = {
            name: tensor for name, tensor in tensors.items() if name.startswith(("visual.", "visual_head."))
        }  # not its text side
        for name in [name for name in seen if name.endswith((".ls1.weight", ".ls2.weight"))]:
            seen[name.removesuffix("weight") + "gamma"] = seen.pop(name)
        return _trunk_adapted(seen, self.visual, "visual.")


class ConvStem(nn.Module):
    """Pixels to tokens of 4 x 4 by convolutions: (B, 3, H, W) to (B, H/4, W/4, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, out in ((3, dim // 8), (dim // 8, dim // 4)):
            layers += [nn.Conv2d(inside, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        self.proj = nn.Sequential(*layers, nn.Conv2d(dim // 4, dim, 1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))  # (B, dim, H/4, W/4) -> (B, H/4, W/4, dim)
        return found


class CTransPath(nn.Module):
    """Swin-T behind a convolutional stem; the mean token."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=side)
        self.swin.patch_embed = ConvStem(96)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.swin(images)
        return found

    def adapt(self, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Published as an older timm named it, where a layer was made smaller at its end and not at the next one's beginning."""
        older = any(name.startswith("layers.0.downsample") for name in tensors)
        found = {}
        for name, tensor in tensors.items():
            if name.endswith(("attn_mask", "relative_position_index")):
                continue  # computed
            parts = name.removeprefix("swin.").split(".")
            if older and parts[0] == "layers" and parts[2] == "downsample":
                parts[1] = str(int(parts[1]) + 1)
            found[".".join(["swin", *parts])] = tensor
        return {name: tensor for name, tensor in found.items() if not name.startswith("swin.head.")}


def _trunk_adapted(tensors: dict[str, Tensor], trunk: Any, prefix: str) -> dict[str, Tensor]:
    """Positions of the trunk for its own size, as timm resamples them."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    of_trunk = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    return others | {f"{prefix}{name}": tensor for name, tensor in checkpoint_filter_fn(of_trunk, trunk).items()}


OWN_NETS: dict[str, Callable[[int], nn.Module]] = {
    "pathovit-keep": Keep,
    "pathovit-conch_v15": Conch15,
    "pathovit-ctranspath": CTransPath,
}
