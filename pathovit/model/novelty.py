"""Novelty: how unlike the cohort a slide is, from its features alone: another stain, blur, another organ.

The distance of a slide's mean tile from the cohort's mean tile, measured in the spread of the cohort's tiles; of a single
tile the same. Both are divided by what 95 % of validation slides (tiles) stay below, so that above 1 is strange.
Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018 (Mahalanobis).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.model.calibration import upper_quantile

Floats = NDArray[np.float32]
TILES_A_SLIDE = 200  # looked at in fitting
STRANGE_RATE = 0.05  # of the cohort's own slides, and tiles, that score above 1
SMALLEST_LIMIT = 0.02  # of slides, in limits of tiles: a cohort of like slides must not make every new one strange
FLOOR = 1e-3  # of the largest spread; directions in which tiles hardly differ are not blown up


@dataclass(frozen=True)
class Novelty:
    """Mean of the cohort's tiles, their whitening, and the two limits."""

    centre: Floats  # (D,)
    whiten: Floats  # (D, D)
    stray: Floats  # () squared distance that the mean of one tile strays by chance, with a margin
    slide_limit: Floats  # ()
    tile_limit: Floats  # ()

    @classmethod
    def fit(cls, train: Sequence[NDArray[Any]], validation: Sequence[NDArray[Any]]) -> Novelty:
        """From the features (n, D) of every training slide; limits from those of validation slides."""
        from sklearn.covariance import LedoitWolf

        sample = np.concatenate([_some(slide) for slide in train])
        spread, axes = np.linalg.eigh(LedoitWolf().fit(sample).covariance_)
        floored = (spread + FLOOR * spread[-1]) * sample.shape[1]
        left = spread / floored  # variance of each whitened direction
        stray = left.sum() + 2 * np.sqrt(2 * np.square(left).sum())  # mean and two spreads of a chi-square
        known = [
            np.asarray(values, np.float32) for values in (sample.mean(0, dtype=np.float64), axes / np.sqrt(floored), stray, 1, 1)
        ]
        bare = cls(*known)
        slides = np.array([bare.slide(slide) for slide in validation])
        tiles = np.concatenate([bare.tiles(_some(slide)) for slide in validation])
        limits = upper_quantile(slides, STRANGE_RATE), float(np.quantile(tiles, 1 - STRANGE_RATE))
        slide_limit = max(limits[0], SMALLEST_LIMIT * limits[1])
        return replace(bare, slide_limit=np.asarray(slide_limit, np.float32), tile_limit=np.asarray(limits[1], np.float32))

    def tiles(self, features: NDArray[Any]) -> Floats:
        """(N,) novelty of single tiles (N, D)."""
        away = (features.astype(np.float32) - self.centre) @ self.whiten
        return np.asarray(np.linalg.norm(away, axis=1) / self.tile_limit, np.float32)

    def slide(self, features: NDArray[Any]) -> float:
        """Novelty of a slide from its tiles (N, D), less what the mean of so few tiles strays by chance."""
        mean = features.mean(0, dtype=np.float64).astype(np.float32)
        distance = float(np.square((mean - self.centre) @ self.whiten).sum()) - float(self.stray) / len(features)
        return float(np.sqrt(max(distance, 0.0)) / self.slide_limit)

    def tensors(self) -> dict[str, Floats]:
        """To be kept beside the weights."""
        return {name: np.asarray(values, np.float32) for name, values in asdict(self).items()}

    @classmethod
    def from_tensors(cls, found: dict[str, Any]) -> Novelty | None:
        """The other way; None if there are none."""
        return cls(**found) if found else None


def _some(slide: NDArray[Any]) -> Floats:
    """A few tiles (n, D) of a slide, evenly spread."""
    return np.asarray(slide[:: max(1, len(slide) // TILES_A_SLIDE)], np.float32)
