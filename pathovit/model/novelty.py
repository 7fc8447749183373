"""Novelty: how unlike the cohort a slide is, from its features alone: another stain, blur, another organ.

The distance of a single tile from the cohort's mean tile, measured in the spread of the cohort's tiles; of a slide that of its mean
tile from the mean slide, measured in the spread of the cohort's slides, which differ in stain and in what is on them. Both are
divided by what 95 % of validation slides (tiles) stay below, so that above 1 is strange.
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
SHRUNK = 0.5  # of the spread between slides, that is taken to be the same in all directions: slides are few
FLOOR = 1e-3  # of the largest spread; directions in which tiles hardly differ are not blown up


@dataclass(frozen=True)
class Novelty:
    """Means of the cohort's tiles and slides, their whitening, and the two limits."""

    centre: Floats  # (D,)
    whiten: Floats  # (D, D)
    slide_centre: Floats  # (D,)
    slide_whiten: Floats  # (D, D)
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
        centre, whiten = sample.mean(0, dtype=np.float64), axes / np.sqrt(floored)
        means = np.stack([slide.mean(0, dtype=np.float64) for slide in train])
        between = np.cov(((means - centre) @ whiten).T) if len(means) > 1 else np.zeros_like(whiten)
        average = np.trace(between) / len(between)
        # Of one slide, or of equal ones, nothing is known of how slides differ: then it is the spread of tiles that counts.
        size, turn = np.linalg.eigh((1 - SHRUNK) * between + SHRUNK * (average or 1.0) * np.eye(len(between)))
        slide_whiten = whiten @ (turn / np.sqrt(size))
        left = slide_whiten.T @ (axes * spread) @ axes.T @ slide_whiten  # how single tiles spread, seen as slides are
        stray = np.trace(left) + 2 * np.sqrt(2 * np.square(left).sum())  # mean and two spreads of a sum of chi-squares
        known = (centre, whiten, means.mean(0), slide_whiten, stray, 1, 1)
        bare = cls(*(np.asarray(values, np.float32) for values in known))
        slides = np.array([bare.slide(slide) for slide in validation])
        tiles = np.concatenate([bare.tiles(_some(slide)) for slide in validation])
        limits = upper_quantile(slides, STRANGE_RATE), float(np.quantile(tiles, 1 - STRANGE_RATE))
        slide_limit = max(limits[0], SMALLEST_LIMIT * limits[1] / np.sqrt(size.mean()))
        return replace(bare, slide_limit=np.asarray(slide_limit, np.float32), tile_limit=np.asarray(limits[1], np.float32))

    def tiles(self, features: NDArray[Any]) -> Floats:
        """(N,) novelty of single tiles (N, D)."""
        away = (features.astype(np.float32) - self.centre) @ self.whiten
        return np.asarray(np.linalg.norm(away, axis=1) / self.tile_limit, np.float32)

    def slide(self, features: NDArray[Any]) -> float:
        """Novelty of a slide from its tiles (N, D), less what the mean of so few tiles strays by chance."""
        mean = features.mean(0, dtype=np.float64).astype(np.float32)
        distance = float(np.square((mean - self.slide_centre) @ self.slide_whiten).sum()) - float(self.stray) / len(features)
        return float(np.sqrt(max(distance, 0.0)) / self.slide_limit)

    def tensors(self) -> dict[str, Floats]:
        """To be kept beside the weights."""
        return {name: np.asarray(values, np.float32) for name, values in asdict(self).items()}

    @classmethod
    def from_tensors(cls, found: dict[str, Any]) -> Novelty | None:
        """The other way; None if there are none. Models of before measured slides in the spread of tiles."""
        before = {"slide_centre": found["centre"], "slide_whiten": found["whiten"]} if found else {}
        return cls(**(before | found)) if found else None


def _some(slide: NDArray[Any]) -> Floats:
    """A few tiles (n, D) of a slide, evenly spread."""
    return np.asarray(slide[:: max(1, len(slide) // TILES_A_SLIDE)], np.float32)
