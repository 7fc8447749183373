"""How good encoders are on labelled tiles of one's own: a linear probe and nearest neighbours, on patients that were left out.

Nothing is learned from a patient whose tiles are judged; intervals are over patients, where they are known.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.encoder import Encoder
from pathovit.errors import SettingsError
from pathovit.model.judged import Metric
from pathovit.slides.readers import RGB
from pathovit.study.evaluation import FEWEST_FOR_INTERVAL, draws, number_or_none, percentiles
from pathovit.study.labelled_tiles import LabelledTiles
from pathovit.text import counted

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the linear probe's freedom, C; chosen on patients of the training part alone
NEIGHBOURS = 20
MOST_WARM = 256  # tiles embedded before the clock begins
Floats = NDArray[np.float64]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Probed:
    """What is known of one encoder."""

    name: str
    weights: str  # published, bundled, one's own, a file's name, or random
    licence: str
    millions: float
    dim: int
    tile_px: int
    tiles_per_s: float
    device: str
    linear: Metric  # AUROC; of more than two classes the mean of each against the others
    nearest: Metric


def probe(encoder: Encoder, weights: str, tiles: LabelledTiles, pixels: RGB, on_step: OnStep, seed: int = 0) -> Probed:
    """Judge one encoder.

    Parameters
    ----------
    pixels : of the tiles, (n, tile_px, tile_px, 3)

    Raises
    ------
    SettingsError : too few tiles or patients of a class
    """
    parts = folds_of(tiles, seed)
    batch = encoder.batch_tiles  # on a GPU it is tried out, once
    encoder.embed(pixels[: min(batch, MOST_WARM)])
    begun = time.perf_counter()
    found = []
    for first in range(0, len(pixels), batch):
        found.append(encoder.embed(pixels[first : first + batch]))
        on_step(f"{encoder.name}: tiles", min(first + batch, len(pixels)), len(pixels))
    seconds = time.perf_counter() - begun
    features = np.concatenate(found).astype(np.float64)
    if bad := int((~np.isfinite(features)).any(1).sum()):
        raise SettingsError(
            f"Encoder {encoder.name!r}: its features of {counted(bad, 'tile')} are no numbers. Try --precision fp32."
        )
    record = encoder.record
    return Probed(
        record.name, weights, record.licence, record.millions, record.dim, encoder.tile_px, round(len(pixels) / seconds, 1), encoder.device.type,
        judged(_left_out(features, tiles, parts, _linear), tiles, seed), judged(_left_out(features, tiles, parts, _nearest), tiles, seed),
    )  # fmt: skip


def folds_of(tiles: LabelledTiles, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows to judge, patients apart, classes spread as evenly as they can be."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = FOLDS
    for place, name in enumerate(tiles.classes):
        with_it = len(np.unique(tiles.groups[tiles.truth == place]))
        folds = min(folds, with_it)
        if not with_it:
            raise SettingsError(f"No tile is of {name!r}. Draw larger regions of it, or leave it out.")
        if with_it < 2:
            raise SettingsError(
                f"Only one {tiles.unit} has tiles of {name!r}: two at least are needed, to learn from one and judge on the other."
            )
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(tiles.truth, tiles.truth, tiles.groups)
    return [(learn, judge) for learn, judge in split if len(set(tiles.truth[learn])) == len(tiles.classes)]


Probe = Callable[[Floats, NDArray[np.int64], NDArray[np.int64], Floats], Floats]


def _left_out(
    features: Floats, tiles: LabelledTiles, parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], fitted: Probe
) -> Floats:
    """Probabilities (n, C) of every tile, by a probe that has not seen its patient; NaN where no part judged it."""
    found = np.full((len(tiles), len(tiles.classes)), np.nan)
    for learn, judge in parts:
        mean, scale = features[learn].mean(0), features[learn].std(0)
        scaled = (features - mean) / np.where(scale > 1e-6, scale, 1.0)
        found[judge] = fitted(scaled[learn], tiles.truth[learn], tiles.groups[learn], scaled[judge])
    return found


def _linear(features: Floats, truth: NDArray[np.int64], groups: NDArray[np.int64], asked: Floats) -> Floats:
    """A logistic regression, as free as is best on patients of the training part that it has not seen."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(groups[truth == place])) for place in np.unique(truth))
    losses = dict.fromkeys(STRENGTHS, 0.0)
    if fewest >= 2:
        split = StratifiedGroupKFold(min(INNER_FOLDS, fewest), shuffle=True, random_state=0)
        for learn, judge in split.split(features, truth, groups):
            if len(set(truth[learn])) < len(set(truth)):
                continue
            for strength in STRENGTHS:
                model = _regression(strength, features[learn], truth[learn])
                losses[strength] += log_loss(truth[judge], model.predict_proba(features[judge]), labels=model.classes_)
    best = min(STRENGTHS, key=lambda strength: losses[strength])
    found: Floats = _regression(best, features, truth).predict_proba(asked)
    return found


def _regression(strength: float, features: Floats, truth: NDArray[np.int64]) -> LogisticRegression:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of one that is freer than is good, which loses the comparison
        return LogisticRegression(C=strength, max_iter=500).fit(features, truth)


def _nearest(features: Floats, truth: NDArray[np.int64], groups: NDArray[np.int64], asked: Floats) -> Floats:
    """The share of each class among the nearest tiles, by the angle between features."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(NEIGHBOURS, len(truth)), metric="cosine")
    found: Floats = model.fit(features, truth).predict_proba(asked)
    return found


def nearest_score(features: NDArray[np.float32], tiles: LabelledTiles) -> float | None:
    """AUROC of the nearest neighbours of other patients, from features (n, D)."""
    return judged(_left_out(features.astype(np.float64), tiles, folds_of(tiles, 0), _nearest), tiles, 0, interval=False).value


def judged(chance: Floats, tiles: LabelledTiles, seed: int, interval: bool = True) -> Metric:
    """AUROC with its interval over patients (or slides or tiles, where these are not known); without one for fewer than 20."""
    known = np.isfinite(chance[:, 0])
    chance, truth, groups = chance[known], tiles.truth[known], tiles.groups[known]
    value = number_or_none(_auroc(truth, chance))
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if not interval or len(counts) < FEWEST_FOR_INTERVAL:
        return Metric(value)
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1])
    drawn = (np.concatenate([rows[one] for one in chosen]) for chosen in draws(len(counts), seed))
    return Metric(value, *percentiles(np.array([_auroc(truth[some], chance[some]) for some in drawn])))


def _auroc(truth: NDArray[np.int64], chance: Floats) -> float:
    """Mean over classes of each against the others; of two classes that is one number. NaN where one is missing."""
    from pathovit.model.metrics import auroc

    if len(np.unique(truth)) < chance.shape[1]:
        return float("nan")
    places = [1] if chance.shape[1] == 2 else range(chance.shape[1])
    return float(np.mean([auroc((truth == place).astype(np.int64), chance[:, place]) for place in places]))
