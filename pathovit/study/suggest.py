"""Which tiles to ask a person for: those that a taught model is unsure of, unlike what was shown, and unlike each other.

They go to `suggested/` in the output folder: a GeoJSON file per slide, whose squares get a class in QuPath and are then taught
from; and one picture of them all.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pathovit.errors import SettingsError, SlideError
from pathovit.model.prediction import SlidePrediction
from pathovit.model.slide_model import SlideModel
from pathovit.model.taught import TaughtHead
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.runs import files_at_hand
from pathovit.outputs.store import FeatureStore
from pathovit.show.asked import AskedTile, draw_asked
from pathovit.show.qupath import write_squares
from pathovit.slides.outlines import read_outlines
from pathovit.slides.readers import RGB
from pathovit.slides.slide import open_slide
from pathovit.study.lessons import Lessons
from pathovit.tables import Say

Floats = NDArray[np.float32]
KEPT = 1000  # candidates of a slide
UNLIKE_WEIGHT = 0.5  # beside uncertainty, of how unlike a tile is
APART = 4  # tiles between two of one slide


@dataclass(frozen=True)
class Candidates:
    """The tiles of a slide that may be asked for."""

    record: SlideRecord
    stored: SlideFeatures
    index: NDArray[np.int64]  # (n,) in grid order
    unsure: Floats  # (n,) 0 to 1
    seen: Floats  # (n, AXES)
    unlike: Floats  # (n,) distance from what was shown, 1 at the limit


def suggest_tiles(
    out: OutFolder, model: SlideModel, given: Lessons, count: int, say: Say, with_picture: bool = True
) -> list[AskedTile]:
    """The `count` tiles of a folder that help most, first the one that helps most; written to `suggested/`."""
    painted = {lesson.stored.slide_id: lesson.labels.known for lesson in given.lessons}
    found = []
    for record in out.embedded():
        try:
            stored = FeatureStore(out.slide(record.slide_id), out.called(record)).read()
            found.append(candidates(record, stored, model, painted.get(record.slide_id)))
        except (SlideError, SettingsError) as error:
            say(f"{out.called(record).name}: left out ({error})")
    asked = choose(found, count)
    _write(out, asked, say, with_picture)
    return asked


def uncertainty(prediction: SlidePrediction) -> Floats:
    """(N,) 1 where two classes are as likely, 0 where one is certain; NaN where a tile was not read."""
    scores = prediction.tile_scores
    if scores.shape[1] == 1:
        scores = np.concatenate([scores, 1 - scores], 1)
    ordered = np.sort(scores, axis=1)
    return np.asarray(1 - (ordered[:, -1] - ordered[:, -2]))


def candidates(record: SlideRecord, stored: SlideFeatures, model: SlideModel, closed: NDArray[np.bool_] | None) -> Candidates:
    """The tiles of a slide that may be asked for; not those that are closed (N,), e.g. as they are known."""
    prediction = model.predict(stored)
    assert isinstance(model.network, TaughtHead)
    ok = stored.ok
    with torch.inference_mode():
        features = torch.from_numpy(stored.features[ok].astype(np.float32))
        seen = model.network.seen(features, torch.from_numpy(stored.centres_um()[ok]), stored.pitch_um).numpy()
    unsure, unlike = uncertainty(prediction)[ok], prediction.tile_novelty[ok]
    help_ = unsure + UNLIKE_WEIGHT * unlike
    if closed is not None:
        help_[closed[ok]] = -1
    best = np.argsort(-help_, kind="stable")[: min(KEPT, int((help_ >= 0).sum()))]
    return Candidates(record, stored, np.flatnonzero(ok)[best], unsure[best], seen[best], unlike[best])


def choose(found: list[Candidates], count: int) -> list[AskedTile]:
    """One after the other: each that is chosen makes those like it, and those beside it, less wanted."""
    if not found:
        return []
    slide = np.repeat(np.arange(len(found)), [len(one.index) for one in found])
    index, unsure, seen, unlike = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("index", "unsure", "seen", "unlike")
    )
    place = np.concatenate([one.stored.xy[one.index] / np.asarray(one.stored.grid.stride_l0) for one in found])
    scale = np.median(np.linalg.norm(seen - seen.mean(0), axis=1)) if len(seen) else 1.0
    asked: list[AskedTile] = []
    free = np.ones(len(index), bool)
    while len(asked) < count and free.any():
        best = int(np.where(free, unsure + UNLIKE_WEIGHT * unlike, -1).argmax())
        one = found[slide[best]]
        asked.append(
            AskedTile(len(asked) + 1, one.record, one.stored, int(index[best]), float(unsure[best]), float(unlike[best]))
        )
        unlike = np.minimum(unlike, np.linalg.norm(seen - seen[best], axis=1) / scale)
        free &= (slide != slide[best]) | (np.abs(place - place[best]).max(1) >= APART)
    return asked


def _make_room(folder: Path, say: Say) -> None:
    """Remove what was asked for before; what somebody gave classes to is their work, and is put aside."""
    try:
        given = any(one.name for path in folder.glob("*.geojson") for one in read_outlines(path))
    except SettingsError:  # it is not as we wrote it
        given = True
    if given:
        aside = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%dT%H%M%S')}")
        folder.rename(aside)
        say(f"{folder}: somebody gave classes there. It is kept as {aside}, to be taught from")
    shutil.rmtree(folder, ignore_errors=True)


def _write(out: OutFolder, asked: list[AskedTile], say: Say, with_picture: bool) -> None:
    folder, files = out.path / "suggested", files_at_hand(out)
    _make_room(folder, say)
    by_slide: dict[str, list[AskedTile]] = {}
    for tile in asked:
        by_slide.setdefault(tile.record.slide_id, []).append(tile)
    pictures: dict[int, RGB] = {}
    for slide_id, tiles in by_slide.items():
        record, stored = tiles[0].record, tiles[0].stored
        write_squares(folder / f"{slide_id}.geojson", stored, {tile.index: f"suggested {tile.rank}" for tile in tiles})
        if not with_picture:
            continue
        if (path := files.get(record.sha256)) is None:
            say(f"{out.called(record).name}: it is not where it was, so there is no picture of its tiles")
            continue
        with open_slide(path, record.description.mpp, record.description.mpp_source, record.sha256) as slide:
            pictures |= {tile.rank: tile.picture(slide) for tile in tiles}
    if pictures:
        draw_asked(folder / "suggested.png", [tile for tile in asked if tile.rank in pictures], pictures)
