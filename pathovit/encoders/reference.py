"""ReferenceNet: the small hierarchical tile encoder that pathovit ships; convolutions, then a transformer.

Made by workflows/reference/: stem and stages from EfficientNet-Lite0 (ImageNet weights, Apache-2.0), the blocks from
scratch; distilled from DINOv2 ViT-S/14 on H&E tiles at about 1 um/px (distil.py), then fine-tuned to tell tumour from
normal on PatchCamelyon patches, CC0 (finetune.py). The weights hold the encoder alone, without the tumour head.

Written in plain torch, with the names and the arithmetic of timm's `tf_efficientnet_lite0` and `Block`: to import timm takes
longer than to embed a biopsy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
TILE_PX = 96
MPP = 1.0
DIM = 256
STRIDE = 16  # pixels a token stands for
# Of EfficientNet-Lite0 to stride 16: channels, kernel, stride of the first block, blocks.
STAGES = ((24, 3, 2, 2), (40, 5, 2, 2), (80, 3, 2, 3), (112, 5, 1, 3))
STEM, FIRST, EXPANSION = 32, 16, 6


class ReferenceNet(nn.Module):
    """Tiles to features: EfficientNet-Lite0 stages to stride 16, then transformer blocks over a tile's tokens."""

    def __init__(self, dim: int = DIM, depth: int = 4, heads: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv(3, STEM, 3, 2), NormAct(STEM))  # (B, 32, H/2, W/2)
        stages: list[nn.Module] = [nn.Sequential(Separable(STEM, FIRST))]
        channels = FIRST
        for out, kernel, stride, blocks in STAGES:
            first = InvertedResidual(channels, out, kernel, stride)
            stages.append(nn.Sequential(first, *(InvertedResidual(out, out, kernel, 1) for _ in range(blocks - 1))))
            channels = out
        self.stages = nn.Sequential(*stages)  # (B, 112, H/16, W/16)
        self.project = nn.Conv2d(channels, dim, kernel_size=1)
        # A depthwise convolution gives every token its position by its neighbours, at any tile size.
        self.position = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.blocks = nn.ModuleList(Block(dim, heads, drop_path) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out_norm = nn.LayerNorm(dim, elementwise_affine=False)

    def tokens(self, tiles: Tensor) -> Tensor:
        """Token vectors of normalised tiles: (B, 3, H, W), sides multiples of 32, to (B, T, D)."""
        maps = self.project(self.stages(self.stem(tiles)))  # (B, 3, H, W) -> (B, D, H/16, W/16)
        maps = maps + self.position(maps)
        tokens = maps.flatten(2).transpose(1, 2)  # (B, D, H/16, W/16) -> (B, T, D)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward(self, tiles: Tensor) -> Tensor:
        """Features (B, D) of normalised tiles (B, 3, H, W): the mean token, each feature vector of unit variance."""
        return self.pooled(self.tokens(tiles))

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        features: Tensor = self.out_norm(tokens.mean(dim=1))
        return features


class SameConv(nn.Conv2d):
    """A convolution whose output has ceil(side / stride) pixels; what is missing is added right and below first, as TensorFlow does."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(inside, out, kernel, stride, padding=0 if stride > 1 else kernel // 2, groups=groups, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return super().forward(maps)
        missing = [max(0, -(-side // 2) * 2 - 2 + self.kernel_size[0] - side) for side in maps.shape[-2:]]
        (top, left), (high, wide) = [m // 2 for m in missing], missing
        return super().forward(functional.pad(maps, (left, wide - left, top, high - top)))


class NormAct(nn.BatchNorm2d):
    """Batch norm, and ReLU6 after it unless it is the last one of a block."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = act

    def forward(self, maps: Tensor) -> Tensor:
        normed = super().forward(maps)
        return functional.relu6(normed, inplace=True) if self.act else normed


class Separable(nn.Module):
    """A depthwise convolution, and one over channels."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = SameConv(inside, inside, 3, 1, groups=inside), NormAct(inside)
        self.conv_pw, self.bn2 = SameConv(inside, out, 1, 1), NormAct(out, act=False)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(maps))))
        return found


class InvertedResidual(nn.Module):
    """Widened, convolved channel by channel, narrowed; added to what came in where shapes allow it."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * inside
        self.conv_pw, self.bn1 = SameConv(inside, wide, 1, 1), NormAct(wide)
        self.conv_dw, self.bn2 = SameConv(wide, wide, kernel, stride, groups=wide), NormAct(wide)
        self.conv_pwl, self.bn3 = SameConv(wide, out, 1, 1), NormAct(out, act=False)
        self.adds = inside == out and stride == 1

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(self.bn1(self.conv_pw(maps))))))
        return found + maps if self.adds else found


class Block(nn.Module):
    """A transformer block with layer scale; in training, whole branches are left out by chance (`drop_path`)."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, 4 * dim)
        self.ls1, self.ls2 = LayerScale(dim), LayerScale(dim)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._dropped(self.ls1(self.attn(self.norm1(tokens))))
        return tokens + self._dropped(self.ls2(self.mlp(self.norm2(tokens))))

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return branch
        kept = branch.new_empty((len(branch), 1, 1)).bernoulli_(1 - self.drop_path)
        return branch * kept / (1 - self.drop_path)


class Attention(nn.Module):
    """Every token looks at all of its tile."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        count, length, dim = tokens.shape
        query, key, value = (
            self.qkv(tokens).reshape(count, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        seen = functional.scaled_dot_product_attention(query, key, value)  # (B, heads, T, D / heads)
        mixed: Tensor = self.proj(seen.transpose(1, 2).reshape(count, length, dim))
        return mixed


class Mlp(nn.Module):
    def __init__(self, dim: int, wide: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, wide), nn.Linear(wide, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return found


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma
