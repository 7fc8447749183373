"""Marks: what regions say of single tiles, for the classes that a table asks for.

1 the tile is of the class, 0 it is not, not a number where nobody says; (N, C), beside the tiles of a bag.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.manifest import some
from pathovit.model.targets import Target
from pathovit.model.targets.binary import Binary
from pathovit.model.targets.classes import Classes
from pathovit.model.targets.multilabel import Multilabel
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.study.regions import NO_NAME, Meaning, Region, find_regions, label_tiles
from pathovit.tables import Say
from pathovit.text import counted

Marks = NDArray[np.float32]


def _one_by_one(meaning: Meaning) -> list[Meaning]:
    """The same for every class alone, of classes that do not exclude each other: other tissue, and the class."""
    return [
        Meaning((NO_NAME, name), {key: _alone(means, place) for key, means in meaning.allowed.items()})
        for place, name in enumerate(meaning.classes[1:], start=1)
    ]


def _alone(means: tuple[bool, ...], place: int) -> tuple[bool, bool]:
    """What a name allows of one class: another class says nothing of it."""
    others = any(mean for other, mean in enumerate(means) if other != place)
    return (others, True) if means[place] else (True, not means[0])


def _unsaid(text: str) -> None:
    """It was said of the first label."""


@dataclass(frozen=True)
class Drawn:
    """Regions of many slides, and what they mean for a target."""

    regions: Mapping[str, Sequence[Region]]  # by slide_id
    meaning: Meaning
    target: Target

    @classmethod
    def read(cls, paths: Sequence[Path], out: OutFolder, target: Target, say: Say) -> Drawn:
        """From GeoJSON files, or folders of them, that are named after slides with features.

        Raises
        ------
        SettingsError : a target without classes; regions that cannot be read, match no slide, or show none of the classes
        """
        if not isinstance(target.kind, Classes):
            raise SettingsError(f"Regions show classes, and a {target.task} target has none. Leave out --regions.")
        regions = find_regions(paths, out, say)
        negative = target.classes[0] if isinstance(target.kind, Binary) else None
        return cls(regions, Meaning.for_target(regions, target.score_names, negative, say), target)

    def marks(self, stored: SlideFeatures, say: Say) -> Marks | None:
        """(n, C) of the tiles that were read; None where nothing is drawn on the slide.

        Raises
        ------
        SettingsError : regions off the tissue, or two that contradict each other
        """
        regions = self.regions.get(stored.slide_id)
        if regions is None:
            return None
        if isinstance(self.target.kind, Multilabel):  # a tile can be of several
            known = [
                label_tiles(stored, regions, one, say if not place else _unsaid)
                for place, one in enumerate(_one_by_one(self.meaning))
            ]
            each = np.stack([one.allowed[stored.ok] for one in known], 1)  # (n, C, 2) not of it, of it
            return np.where(each.all(2), np.nan, each[..., 1]).astype(np.float32)
        allowed = label_tiles(stored, regions, self.meaning, say).allowed[stored.ok]
        of_class = allowed[:, 1:]  # the first is tissue of no class
        sure = of_class & (allowed.sum(1) == 1)[:, None]
        return np.where(sure, 1, np.where(of_class, np.nan, 0)).astype(np.float32)

    def require_listed(self, slides: Collection[str], say: Say) -> None:
        """Say which regions are of slides that no row names: of these neither patient nor part is known."""
        if others := sorted(set(self.regions) - set(slides)):
            say(f"regions of {counted(len(others), 'slide')} that the table does not name are left out: {some(others)}")

    def implied(self, patient: str, truth: NDArray[np.float32], marks: Marks | None) -> NDArray[np.float32]:
        """The truth of a patient, which may follow from marks: who has a tile of the class has it.

        Raises
        ------
        SettingsError : the label denies a class that is drawn
        """
        if marks is None or not isinstance(self.target.kind, Binary) or not (marks == 1).any():
            return truth
        if truth[0] == 0:
            raise SettingsError(
                f"Patient {patient!r} is {self.target.classes[0]!r} in the table, and {self.target.classes[1]!r} is drawn on a slide. "
                "Correct one of them."
            )
        return np.ones_like(truth)
