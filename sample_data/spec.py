"""What is asked for: one slide to make, and the slides of the demo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]  # float32 wherever it is large
Pixels = npt.NDArray[np.uint8]
Rng = np.random.Generator

TILE_PX = 256
MARGIN_PX = 48  # read around an out-of-focus tile, so that its blur has neighbours
QUILT = 4  # orientations in which a patch is laid, so that the eye finds no repeat


@dataclass(frozen=True)
class SampleSpec:
    """One slide to make; equal specs give equal files."""

    name: str
    seed: int
    size: tuple[int, int]  # (width, height), level-0 pixels
    mpp: float = 0.5
    tumour_fraction: float = 0.3  # share of the tissue; 0 makes a benign slide
    pieces: int = 1
    tissue_fraction: float = 0.40  # share of the slide
    pen: bool = True
    fold: bool = True
    blur: bool = True
    bubble: bool = True


def demo_specs(count: int, seed: int, size: tuple[int, int] = (7168, 6144), mpp: float = 0.5) -> list[SampleSpec]:
    """Specs sample-1, sample-2 ...: in turn a large tumour, a small tumour and none."""
    kinds = (
        SampleSpec("", seed, size, mpp, tumour_fraction=0.30, fold=False),
        SampleSpec("", seed, size, mpp, tumour_fraction=0.04, pieces=2, bubble=False),
        SampleSpec("", seed, size, mpp, tumour_fraction=0.0, blur=False),
    )
    return [replace(kinds[i % 3], name=f"sample-{i + 1}", seed=seed * 1000 + i) for i in range(count)]


def large_spec(size_px: int, seed: int, mpp: float = 0.25) -> SampleSpec:
    """One square slide; above 10 mm it holds five pieces of tissue, as a slide of biopsies does."""
    spec = SampleSpec(f"sample-{size_px}", seed, (size_px, size_px), mpp, tumour_fraction=0.25)
    return replace(spec, pieces=5, tissue_fraction=0.28) if size_px * mpp > 10_000 else spec


def downsamples(spec: SampleSpec) -> list[int]:
    """Downsample of every level: 1, 4, 16, 64, ending once a level is at most 512 px wide."""
    return [1] + [d for d in (4, 16, 64) if max(spec.size) * 4 / d > 512]
