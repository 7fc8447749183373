"""Tiles as another laboratory, scanner or turn of the slide would have shown them; with chance that is given, on any device.

Source of the stain vectors: Ruifrok & Johnston, Anal Quant Cytol Histol 2001. Source of jitter in their space: Tellez et al.,
"Quantifying the effects of data augmentation and stain color normalization in computational pathology", Med Image Anal 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

OD_FROM_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
STAIN, STAIN_SHIFT, LIGHT, BLUR_SHARE = 0.25, 0.04, 0.2, 0.3


def to_images(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W), 0 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def altered(images: Tensor) -> Tensor:
    """Every image (B, 3, H, W) in another stain, light and focus."""
    count = len(images)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *(shape or (1, 1, 1)), device=images.device).uniform_(low, high)

    stains = torch.tensor(OD_FROM_HED, device=images.device)
    amounts = -torch.log(images.clamp(min=1 / 256)).permute(0, 2, 3, 1) @ torch.linalg.inv(stains)  # (B, H, W, 3)
    amounts = amounts * between(1 - STAIN, 1 + STAIN, 1, 1, 3) + between(-STAIN_SHIFT, STAIN_SHIFT, 1, 1, 3)
    images = torch.exp(-(amounts @ stains)).permute(0, 3, 1, 2).clamp(0, 1)
    images = images ** between(1 - LIGHT, 1 + LIGHT)
    middle = images.mean((1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * between(1 - LIGHT, 1 + LIGHT)).clamp(0, 1)
    soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    return torch.where(between(0, 1) < BLUR_SHARE, soft, images)


def views(images: Tensor, side: int, scale: tuple[float, float]) -> Tensor:
    """A part of every image, turned and mirrored by chance: (B, 3, H, W) to (B, 3, side, side).

    Parameters
    ----------
    scale : smallest and largest share of the area that is seen
    """
    return through(images, windows(len(images), scale, images.device), side)


def windows(count: int, scale: tuple[float, float], device: torch.device) -> Tensor:
    """Which part of an image is seen, and how it is turned: (B, 2, 3), by chance."""
    part = torch.empty(count, device=device).uniform_(*scale).sqrt()
    angle = torch.randint(4, (count,), device=device) * (math.pi / 2)
    flip = torch.randint(2, (count,), device=device) * 2 - 1
    cos, sin = torch.cos(angle) * part, torch.sin(angle) * part
    free = 1 - part
    shift_x, shift_y = (torch.empty(count, device=device).uniform_(-1, 1) * free for _ in range(2))
    return torch.stack([torch.stack([cos * flip, -sin, shift_x], 1), torch.stack([sin * flip, cos, shift_y], 1)], 1)


def through(images: Tensor, seen: Tensor, side: int) -> Tensor:
    """Images, or features by place, (B, C, H, W), as such windows show them: (B, C, side, side)."""
    grid = functional.affine_grid(seen, [len(images), images.shape[1], side, side], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
