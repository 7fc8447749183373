"""Lessons: slides of an output folder, each with what was painted on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pathovit.errors import SettingsError
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore
from pathovit.study.kind_names import NAMES
from pathovit.study.kinds import TissueKinds
from pathovit.study.regions import NOTHING, Meaning, TileLabels, find_regions, label_tiles
from pathovit.tables import Say

TILES_OF_A_KIND = 100  # of each slide, at most half of them
OnSlide = Callable[[int, int], None]  # slides that are read, and how many there are


@dataclass(frozen=True)
class Lesson:
    """A slide, and what was painted on it."""

    stored: SlideFeatures
    labels: TileLabels
    patient: str | None  # where it is known


@dataclass(frozen=True)
class Lessons:
    """All that was painted, and the classes that it shows; of two, the last is the one that is asked for."""

    lessons: tuple[Lesson, ...]
    classes: tuple[str, ...]


def read_lessons(
    out: OutFolder, paths: Sequence[Path], positive: str | None = None, say: Say = lambda text: None,
    on_slide: OnSlide = lambda done, total: None,
) -> Lessons:  # fmt: skip
    """From the features of a folder, and GeoJSON files (or folders of them) that are named after its slides; or from names of kinds.

    Raises
    ------
    SettingsError : regions that cannot be read, match no slide, lie off its tissue or contradict each other; fewer than two classes
    StoreError : damaged features
    """
    if len(paths) == 1 and paths[0].name == NAMES:
        return _lessons_of_kinds(out, paths[0].parent, positive, say)
    drawn = find_regions(paths, out, say)
    meaning = Meaning.of(drawn, positive)
    lessons = []
    for slide_id, regions in drawn.items():
        folder = out.slide(slide_id)
        record = folder.record()
        assert record is not None, "regions are matched to slides with a record"
        stored = FeatureStore(folder, out.called(record)).read()
        lessons.append(Lesson(stored, label_tiles(stored, regions, meaning, say), record.patient))
        on_slide(len(lessons), len(drawn))
    return Lessons(tuple(lessons), meaning.classes)


def _lessons_of_kinds(out: OutFolder, folder: Path, positive: str | None, say: Say) -> Lessons:
    """The tiles that are most like the kinds that were given a name in a folder's names.csv."""
    kinds = TissueKinds.load(folder, say)
    if kinds is None:
        raise SettingsError(f"{folder}: no kinds of tissue there. Find some with: pathovit tissue {out.path}")
    if not kinds.names:
        raise SettingsError(f"{folder / NAMES}: no kind has a name. Look at kinds.png, and fill in the column name.")
    slides, labels, patients = [], {}, {}
    for record in out.embedded():
        stored = FeatureStore(out.slide(record.slide_id), out.called(record)).read()
        kind, unlike = kinds.tell(stored)
        tiles = np.full(len(kind), "", object)
        for place, letter in enumerate(kinds.letters):
            mine = np.flatnonzero(kind == place)
            nearest = mine[np.argsort(unlike[mine], kind="stable")[: min(TILES_OF_A_KIND, len(mine) // 2)]]
            tiles[nearest] = kinds.names.get(letter, "")
        if tiles.astype(bool).any():
            slides.append(stored)
            labels[record.slide_id] = list(tiles)
            if record.patient:
                patients[record.slide_id] = record.patient
    say(
        f"taught on the tiles that are most like their kind, so that figures on these flatter: {', '.join(f'{letter} ({name})' for letter, name in sorted(kinds.names.items()))}"
    )
    return lessons_of(slides, labels, positive, patients)


def lessons_of(
    features: Sequence[SlideFeatures],
    labels: Mapping[str, Sequence[str]],
    positive: str | None = None,
    patients: Mapping[str, str] | None = None,
) -> Lessons:
    """From features, and for some slide_ids the class of every tile, in grid order; "" where it is not known.

    Parameters
    ----------
    patients : by slide_id; where one is not given, nothing is said of patients

    Raises
    ------
    SettingsError : labels of another slide, or of another number of tiles; fewer than two classes
    """
    known = {stored.slide_id: stored for stored in features}
    names = sorted({str(name) for tiles in labels.values() for name in tiles if name})
    if positive is not None and positive not in names:
        raise SettingsError(f"positive {positive!r} is not a class of the labels: {', '.join(names)}.")
    classes = (*(name for name in names if name != positive), *([positive] if positive else []))
    if len(classes) < 2:
        raise SettingsError(f"The labels show {len(classes)} class. Two are needed at least.")
    lessons = []
    for slide_id, tiles in labels.items():
        stored = known.get(slide_id)
        if stored is None or len(tiles) != len(stored.xy):
            what = "there are no features of it" if stored is None else f"it has {len(stored.xy)} tiles, and {len(tiles)} labels"
            raise SettingsError(f"Labels of {slide_id}: {what}.")
        given = np.asarray(tiles, dtype=object)
        allowed = np.stack([given == name for name in classes], 1)
        labelled = allowed.any(1) & stored.ok
        allowed[~labelled] = True
        lessons.append(Lesson(stored, TileLabels(allowed, np.where(labelled, 0, NOTHING)), (patients or {}).get(slide_id)))
    return Lessons(tuple(lessons), classes)
