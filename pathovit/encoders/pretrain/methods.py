"""Three ways to learn from tiles without labels; each is a module whose forward pass is its loss.

distil  the features of a teacher, which sees the tile as it is, from a tile that was altered: of the tile, and of places in it where both have any
dino    one view of a tile says what a slowly moving average of the network says of another (Caron et al., ICCV 2021)
mae     pixels of places that were covered (He et al., CVPR 2022), in the form that every architecture takes (SimMIM, Xie et al., CVPR 2022)
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathovit.encoders.pretrain.augment import altered, through, views, windows
from pathovit.encoders.pretrain.backbone import Backbone, width_of
from pathovit.errors import SettingsError

COVERED, PLACE_PX = 0.3, 16  # share of the image, and side of what is covered together
DECODER = 256
PROTOTYPES, HIDDEN, BOTTLENECK = 2048, 512, 128
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, CENTRE_MOMENTUM = 0.1, 0.05, 0.9
LOCAL_VIEWS = 2
GLOBAL, LOCAL, DISTILLED = (0.4, 1.0), (0.1, 0.4), (0.5, 1.0)


class Method(nn.Module):
    """A backbone, and what is trained with it."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def learned(self) -> Backbone:
        """The network that comes out of it."""
        return self.backbone

    def after_step(self, progress: float) -> None:
        """What changes beside the gradient; `progress` is the share of all steps."""


class Distil(Method):
    """`dim`, `place_dim` : numbers that a teacher says of a tile, and of a place in it; 0 if it says none."""

    def __init__(self, backbone: Backbone, dim: int, place_dim: int) -> None:
        super().__init__(backbone)
        self.whole = nn.Linear(backbone.record.dim, dim)
        self.places = nn.Linear(width_of(backbone)[0], place_dim) if place_dim and backbone.has_places else None

    def forward(self, images: Tensor, whole: Tensor, places: Tensor) -> Tensor:
        """Loss of images (B, 3, H, W), and what the teacher says of them (B, T), and of their places (B, P, h, w)."""
        side, seen = images.shape[-1], windows(len(images), DISTILLED, images.device)
        shown = through(altered(images), seen, side)
        if self.places is None:
            return _apart(self.whole(self.backbone(shown).float()), whole)
        found, maps = self.backbone.both(shown)
        there = self.places(maps.float().movedim(1, -1).flatten(0, -2))
        wanted = through(places, seen, maps.shape[-1]).movedim(1, -1).flatten(0, -2)
        return _apart(self.whole(found.float()), whole) + _apart(there, wanted)


def _apart(found: Tensor, wanted: Tensor) -> Tensor:
    return functional.smooth_l1_loss(found, wanted) + 1 - functional.cosine_similarity(found, wanted).mean()


class Projector(nn.Module):
    """Features to the chance of each prototype, as logits."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, BOTTLENECK))

    def forward(self, features: Tensor) -> Tensor:
        along = functional.normalize(self.layers(features), dim=-1)
        return along @ functional.normalize(self.prototypes, dim=-1).T


class Dino(Method):
    def __init__(self, backbone: Backbone, local_px: int) -> None:
        super().__init__(backbone)
        self.head = Projector(backbone.record.dim)
        self.teacher, self.teacher_head = copy.deepcopy(backbone), copy.deepcopy(self.head)
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.local_px = local_px
        self.register_buffer("centre", torch.zeros(1, PROTOTYPES))

    @property
    def learned(self) -> Backbone:
        return self.teacher

    def forward(self, images: Tensor, *given: Tensor) -> Tensor:
        """Loss of images (B, 3, H, W)."""
        side = images.shape[-1]
        seen = [views(altered(images), side, GLOBAL) for _ in range(2)]
        small = [views(altered(images), self.local_px, LOCAL) for _ in range(LOCAL_VIEWS)]
        centre = self.get_buffer("centre")
        with torch.no_grad():
            told = [self.teacher_head(self.teacher(view).float()) for view in seen]
            wanted = [functional.softmax((one - centre) / TEACHER_TEMPERATURE, dim=-1) for one in told]
        if self.training:
            new = torch.cat(told).mean(0, keepdim=True)
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(new)
                new = new / torch.distributed.get_world_size()
            centre.mul_(CENTRE_MOMENTUM).add_(new, alpha=1 - CENTRE_MOMENTUM)
        losses = []
        for place, view in enumerate([*seen, *small]):
            said = functional.log_softmax(self.head(self.backbone(view).float()) / STUDENT_TEMPERATURE, dim=-1)
            losses += [-(want * said).sum(-1).mean() for other, want in enumerate(wanted) if other != place]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        momentum = 1 - 0.01 * (1 + math.cos(math.pi * progress)) / 2  # 0.99 to 1
        for kept, new in ((self.teacher, self.backbone), (self.teacher_head, self.head)):
            for old, now in zip(kept.parameters(), new.parameters(), strict=True):
                old.lerp_(now, 1 - momentum)
            for held, fresh in zip(kept.buffers(), new.buffers(), strict=True):
                held.copy_(fresh)


class Mae(Method):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        width, self.stride = width_of(backbone)
        if backbone.side % self.stride:
            raise SettingsError(
                f"--method mae: tiles of {backbone.side} px are no whole places of {self.stride} px, which this network sees. "
                f"Use --tile-px {backbone.side // self.stride * self.stride or self.stride}."
            )
        # What is particular to pixels is made here, and not in the features: without these layers they become nothing else.
        layers: list[nn.Module] = [nn.Conv2d(width, DECODER, 1)]
        for _ in range(2):
            layers += [nn.GroupNorm(1, DECODER), nn.Conv2d(DECODER, DECODER, 3, padding=1), nn.GELU()]
        self.head = nn.Sequential(*layers, nn.Conv2d(DECODER, 3 * self.stride**2, 1))

    def forward(self, images: Tensor, *given: Tensor) -> Tensor:
        """Loss of images (B, 3, H, W): of pixels that were covered, with the mean colour of the image."""
        images = views(images, images.shape[-1], (0.5, 1.0))
        count, _, side, _ = images.shape
        places = side // PLACE_PX if side % PLACE_PX == 0 else side // self.stride
        covered = torch.rand(count, 1, places, places, device=images.device) < COVERED
        covered = functional.interpolate(covered.float(), (side, side), mode="nearest")
        colour = images.mean((2, 3), keepdim=True)
        seen = torch.where(covered > 0, colour, images)
        found = functional.pixel_shuffle(self.head(self.backbone.maps(seen).float()), self.stride)
        wanted = images - colour
        wrong = (found - wanted / wanted.std().clamp_min(1e-4)).abs() * covered
        return wrong.sum() / (3 * covered.sum()).clamp_min(1)
