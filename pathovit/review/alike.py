"""Tiles that look alike, by the cosine of their features: of the same slide, and of a sample of the other ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.outputs.features import SlideFeatures

BLOCK = 4096  # tiles compared at a time
APART = 3  # cells between a tile and one that counts as another place


@dataclass(frozen=True)
class Alike:
    """A tile that looks like another one."""

    slide_id: str
    index: int
    cosine: float


@dataclass(frozen=True)
class Part:
    """Features of some tiles of a slide, evenly over it; always the same ones."""

    slide_id: str
    index: NDArray[np.int64]  # (n,) in grid order
    features: NDArray[np.float16]  # (n, D)

    @classmethod
    def of(cls, stored: SlideFeatures, count: int) -> Part:
        ok = np.flatnonzero(stored.ok)
        index = ok[np.unique(np.linspace(0, len(ok) - 1, min(count, len(ok))).round().astype(np.int64))]
        return cls(stored.slide_id, index, stored.features[index].astype(np.float16))


@dataclass(frozen=True)
class Sample:
    """Features of some tiles of many slides."""

    slide_ids: tuple[str, ...]
    slide: NDArray[np.int64]  # (n,) place in slide_ids
    index: NDArray[np.int64]  # (n,) in grid order
    features: NDArray[np.float16]  # (n, D)

    @classmethod
    def joined(cls, parts: list[Part]) -> Sample:
        return cls(
            tuple(part.slide_id for part in parts),
            np.repeat(np.arange(len(parts)), [len(part.index) for part in parts]),
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.features for part in parts]),
        )


def cosines(vector: NDArray[np.float32], features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(N,) of one vector (D,) with rows (N, D); -1 where a row is no numbers."""
    found = np.empty(len(features), np.float32)
    unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK].astype(np.float32)
        found[start : start + BLOCK] = block @ unit / np.maximum(np.linalg.norm(block, axis=1), 1e-12)
    return np.asarray(np.nan_to_num(found, nan=-1.0), np.float32)


def alike_here(stored: SlideFeatures, index: int, count: int) -> list[Alike]:
    """The most similar tiles of the slide, not right beside the tile or each other."""
    like = cosines(stored.features[index].astype(np.float32), stored.features)
    at = stored.grid.lattice()
    free = np.abs(at - at[index]).max(1) >= APART
    found: list[Alike] = []
    while len(found) < count and (like[free] > -1).any():
        best = int(np.where(free, like, -2).argmax())
        found.append(Alike(stored.slide_id, best, float(like[best])))
        free &= np.abs(at - at[best]).max(1) >= APART
    return found


def alike_elsewhere(sample: Sample, stored: SlideFeatures, index: int, count: int) -> list[Alike]:
    """The most similar tiles of other slides in the sample, one of each."""
    if sample.features.shape[1] != stored.features.shape[1]:  # another encoder's
        return []
    like = cosines(stored.features[index].astype(np.float32), sample.features)
    found: list[Alike] = []
    for row in np.argsort(-like, kind="stable"):
        slide_id = sample.slide_ids[sample.slide[row]]
        if slide_id != stored.slide_id and slide_id not in {one.slide_id for one in found}:
            found.append(Alike(slide_id, int(sample.index[row]), float(like[row])))
            if len(found) == count:
                break
    return found
