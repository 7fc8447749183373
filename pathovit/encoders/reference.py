"""ReferenceNet: the small hierarchical tile encoder that pathovit ships; convolutions, then a transformer.

Made by workflows/reference/: stem and stages from EfficientNet-Lite0 (ImageNet weights, Apache-2.0), the blocks from
scratch; distilled from DINOv2 ViT-S/14 on H&E tiles at about 1 um/px (distil.py), then fine-tuned to tell tumour from
normal on PatchCamelyon patches, CC0 (finetune.py). The weights hold the encoder alone, without the tumour head.
"""

import timm
import torch
from timm.models.vision_transformer import Block
from torch import nn

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
TILE_PX = 96
MPP = 1.0
DIM = 256
STRIDE = 16  # pixels a token stands for


class ReferenceNet(nn.Module):
    """Tiles to features: EfficientNet-Lite0 stages to stride 16, then transformer blocks over a tile's tokens."""

    def __init__(self, dim: int = DIM, depth: int = 4, heads: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        backbone = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.stem = nn.Sequential(backbone.conv_stem, backbone.bn1)  # (B, 32, H/2, W/2); bn1 brings its ReLU6
        self.stages = backbone.blocks[:5]  # (B, 112, H/16, W/16)
        self.project = nn.Conv2d(112, dim, kernel_size=1)
        # A depthwise convolution gives every token its position by its neighbours, at any tile size.
        self.position = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio=4.0, qkv_bias=True, init_values=0.1, drop_path=drop_path) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.out_norm = nn.LayerNorm(dim, elementwise_affine=False)

    def tokens(self, tiles: torch.Tensor) -> torch.Tensor:
        """Token vectors of normalised tiles: (B, 3, H, W), sides multiples of 32, to (B, T, D)."""
        maps = self.project(self.stages(self.stem(tiles)))  # (B, 3, H, W) -> (B, D, H/16, W/16)
        maps = maps + self.position(maps)
        tokens = maps.flatten(2).transpose(1, 2)  # (B, D, H/16, W/16) -> (B, T, D)
        for block in self.blocks:
            tokens = block(tokens)
        normed: torch.Tensor = self.norm(tokens)
        return normed

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of normalised tiles (B, 3, H, W): the mean token, each feature vector of unit variance."""
        features: torch.Tensor = self.out_norm(self.tokens(tiles).mean(dim=1))  # (B, T, D) -> (B, D)
        return features
