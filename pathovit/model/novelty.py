"""Novelty: how unlike the cohort a slide is, from its features alone: another stain, blur, another organ.

The distance of a single tile from the cohort's mean tile, measured in the spread of the cohort's tiles; of a slide that of its mean
tile from the mean slide, measured in the spread of the cohort's slides, which differ in stain and in what is on them. Where a
cohort falls into groups that have nothing between them, it is the mean slide of the nearest group. Both are divided by what
95 % of validation slides (tiles) stay below, so that above 1 is strange.
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
TILES_AT_ONCE = 8192
TILES_A_SLIDE = 200  # looked at in fitting
STRANGE_RATE = 0.05  # of the cohort's own slides, and tiles, that score above 1
SMALLEST_LIMIT = 0.02  # of slides, in limits of tiles: a cohort of like slides must not make every new one strange
LEAST_GROUP, GAP = 5, 4.0  # slides of a group, and how far groups lie apart, in the spread inside them
SHRUNK = 0.5  # of the spread between slides, that is taken to be the same in all directions: slides are few
FLOOR = 1e-3  # of the largest spread; directions in which tiles hardly differ are not blown up


@dataclass(frozen=True)
class Novelty:
    """Means of the cohort's tiles and slides, their whitening, and the two limits."""

    centre: Floats  # (D,)
    whiten: Floats  # (D, D)
    slide_centres: Floats  # (G, D) of groups of slides
    slide_whiten: Floats  # (D, D)
    stray: Floats  # () squared distance that the mean of one tile strays by chance, with a margin
    slide_limit: Floats  # ()
    tile_limit: Floats  # ()

    @classmethod
    def fit(cls, train: Sequence[NDArray[Any]], validation: Sequence[NDArray[Any]]) -> Novelty:
        """From the features (n, D) of every training slide; limits from those of validation slides."""
        tiles = [_some(slide) for slide in train]
        sample, centred = np.concatenate(tiles), np.concatenate([some - some.mean(0) for some in tiles])
        whiten, _ = _whitening(sample)
        inside, left = _whitening(centred if len(sample) > 2 * len(train) else sample)  # slides of one tile have no inside
        means = np.stack([slide.mean(0, dtype=np.float64) for slide in train])
        group = _groups(means @ inside)
        centres = np.stack([means[group == one].mean(0) for one in range(group.max() + 1)])
        away = (means - centres[group]) @ inside
        between = away.T @ away / max(1, len(means) - len(centres))
        average = np.trace(between) / len(between)
        # Of one slide, or of equal ones, nothing is known of how slides differ: then it is the spread of tiles that counts.
        size, turn = np.linalg.eigh((1 - SHRUNK) * between + SHRUNK * (average or 1.0) * np.eye(len(between)))
        turn = turn / np.sqrt(size)
        spread = turn.T @ (left[:, None] * turn)  # of single tiles, seen as slides are
        stray = np.trace(spread) + 2 * np.sqrt(2 * np.square(spread).sum())  # mean and two spreads of a sum of chi-squares
        known = (sample.mean(0, dtype=np.float64), whiten, centres, inside @ turn, stray, 1, 1)
        bare = cls(*(np.asarray(values, np.float32) for values in known))
        slides = np.array([bare.slide(slide) for slide in validation])
        strangeness = np.concatenate([bare.tiles(_some(slide)) for slide in validation])
        limits = upper_quantile(slides, STRANGE_RATE), float(np.quantile(strangeness, 1 - STRANGE_RATE))
        slide_limit = max(limits[0], SMALLEST_LIMIT * limits[1] / np.sqrt(size.mean()))
        return replace(bare, slide_limit=np.asarray(slide_limit, np.float32), tile_limit=np.asarray(limits[1], np.float32))

    def tiles(self, features: NDArray[Any]) -> Floats:
        """(N,) novelty of single tiles (N, D)."""
        distance = np.empty(len(features), np.float32)
        for first in range(0, len(features), TILES_AT_ONCE):
            part = slice(first, first + TILES_AT_ONCE)
            distance[part] = np.linalg.norm((features[part].astype(np.float32) - self.centre) @ self.whiten, axis=1)
        return np.asarray(distance / self.tile_limit, np.float32)

    def slide(self, features: NDArray[Any]) -> float:
        """Novelty of a slide from its tiles (N, D), less what the mean of so few tiles strays by chance."""
        mean = features.mean(0, dtype=np.float64).astype(np.float32)
        away = np.square((mean - self.slide_centres) @ self.slide_whiten).sum(1)
        distance = float(away.min()) - float(self.stray) / len(features)
        return float(np.sqrt(max(distance, 0.0)) / self.slide_limit)

    def tensors(self) -> dict[str, Floats]:
        """To be kept beside the weights."""
        return {name: np.asarray(values, np.float32) for name, values in asdict(self).items()}

    @classmethod
    def from_tensors(cls, found: dict[str, Any]) -> Novelty | None:
        """The other way; None if there are none. Raises KeyError, TypeError or ValueError where they are others. Models of before measured slides in the spread of tiles."""
        if not found:
            return None
        before = {"slide_centres": found["centre"][None], "slide_whiten": found["whiten"]}
        novelty = cls(**(before | found))
        groups, dim = novelty.slide_centres.shape
        square = (dim, dim)
        shapes = [values.shape for values in asdict(novelty).values()]
        if shapes != [(dim,), square, (groups, dim), square, (), (), ()]:
            raise ValueError(f"shapes {shapes}")
        return novelty


def _whitening(sample: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D, D) that makes the spread of tiles (n, D) the same in all directions, and 1 in all; and what is left in each (D,)."""
    from sklearn.covariance import LedoitWolf

    spread, axes = np.linalg.eigh(LedoitWolf().fit(sample).covariance_)
    floored = (spread + FLOOR * spread[-1]) * sample.shape[1]
    return axes / np.sqrt(floored), spread / floored


def _groups(means: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) group of each slide, of means (n, D): one, unless slides fall into groups that lie far apart."""
    from sklearn.cluster import KMeans

    group = np.zeros(len(means), np.int64)
    place = 0
    while place <= group.max():
        mine = np.flatnonzero(group == place)
        if len(mine) >= 2 * LEAST_GROUP:
            halves = KMeans(2, n_init=4, random_state=0).fit(means[mine])
            (first, second), sizes = halves.cluster_centers_, np.bincount(halves.labels_)
            inside = np.sqrt(halves.inertia_ / len(mine))
            if sizes.min() >= LEAST_GROUP and np.linalg.norm(first - second) > GAP * inside:
                group[mine[halves.labels_ == 1]] = group.max() + 1
                continue  # either may fall apart again
        place += 1
    return group


def _some(slide: NDArray[Any]) -> Floats:
    """A few tiles (n, D) of a slide, evenly spread."""
    return np.asarray(slide[:: max(1, len(slide) // TILES_A_SLIDE)], np.float32)
