"""Kinds of tissue, found without a label: the tiles of all slides of a folder, in a few groups that look alike.

A tile is known by the mean of its features and its neighbours'. Groups are found once, by k-means over all slides, and kept:
slides that are added later are told by the same groups, and what is like none of them becomes a new one, so that a kind
never changes its letter. A kind that was given a name can be taught from.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.files import read_bytes, to_json, write_atomically
from pathovit.model.lattice import Lattice
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.recipe import Values, differing
from pathovit.study.kind_names import NAMES, read_names, write_names
from pathovit.tables import Say
from pathovit.text import counted

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
FORMAT = 1
KINDS, MOST_KINDS = 8, 12
REACH = 0.7  # of the mean over neighbours, in tiles
AXES = 24  # principal axes of all tiles
ATTEMPTS, ROUNDS, STILL = 4, 300, 1e-3  # of k-means: beginnings, rounds, and how far a centre still moves at the end
FLOOR = 0.05  # of the largest spread: directions in which tiles hardly differ are not blown up
TILES_A_SLIDE, TILES = 2000, 60_000  # looked at in fitting
UNLIKE_RATE = 0.01  # of the tiles that groups were found in, which lie too far from all of them
NEW_SHARE, NEW_TILES, NEW_KINDS = 0.05, 100, 2  # of added slides that must be unlike all kinds to make new ones, and how many
NONE = -1


@dataclass(frozen=True)
class TissueKinds:
    """A few kinds, each with a letter; K of them, in A axes of D features."""

    mean: Floats  # (D,)
    axes: Floats  # (D, A)
    centres: Floats  # (K, A)
    limit: float  # distance from the nearest centre beyond which a tile is of no kind
    shaping: Values  # what the features were made by
    slides: tuple[str, ...]  # that are no news to the kinds, by slide_id
    names: Mapping[str, str] = field(default_factory=dict)  # by letter

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(string.ascii_uppercase[: len(self.centres)])

    def said(self, place: int) -> str:
        """A kind as people read it."""
        letter = self.letters[place]
        return f"{letter} {self.names[letter]}" if self.names.get(letter) else letter

    @property
    def digest(self) -> str:
        """Of all that a map is drawn by."""
        parts = [part.tobytes() for part in (self.mean, self.axes, self.centres)]
        words = json.dumps([self.limit, dict(sorted(self.names.items()))])
        return hashlib.sha256(b"".join([*parts, words.encode()])).hexdigest()

    @classmethod
    def fit(cls, slides: Sequence[SlideFeatures], seed: int = 0) -> TissueKinds:
        """From the tiles of some slides, each looked at once; the most frequent kind is A.

        Raises
        ------
        SettingsError : features made in different ways, or hardly any tiles
        """
        most = max(1, min(TILES_A_SLIDE, TILES // len(slides)))
        names: list[str] = []
        parts: list[Floats] = []
        shaping: Values = {}
        for stored in slides:
            shaping = shaping or stored.shaping()
            names.append(stored.slide_id)
            if said := differing(shaping, stored.shaping(), there=f"in {names[0]}", here=f"in {stored.slide_id}"):
                raise SettingsError(f"Features made in different ways have no kinds in common ({'; '.join(said[:3])}).")
            parts.append(_some(neighbourhood(stored)[stored.ok], most))
        sample = np.concatenate(parts)
        if len(sample) < 10 * KINDS:
            raise SettingsError(f"{counted(len(sample), 'tile')}: too few to find kinds of tissue in.")
        mean = sample.mean(0, dtype=np.float64)
        spread, directions = np.linalg.eigh(np.cov((sample - mean).T))
        spread, directions = spread[::-1][:AXES], directions[:, ::-1][:, :AXES]
        axes = np.asarray(directions / np.sqrt(spread + FLOOR * spread[0]), np.float32)
        seen = (sample - mean.astype(np.float32)) @ axes
        centres, distance = _groups(seen, KINDS, seed)
        limit = float(np.quantile(distance, 1 - UNLIKE_RATE))
        return cls(mean.astype(np.float32), axes, centres, limit, shaping, tuple(sorted(names)))

    def seen(self, stored: SlideFeatures) -> Floats:
        """(N, A) where tiles lie in the axes; NaN where one was not read."""
        return np.asarray((neighbourhood(stored) - self.mean) @ self.axes)

    def tell(self, stored: SlideFeatures) -> tuple[Places, Floats]:
        """(N,) the kind of every tile, NONE where it is like none or was not read; and its distance from that kind, 1 at the limit.

        Raises
        ------
        SettingsError : features made otherwise than those that kinds were found in
        """
        if said := differing(self.shaping, stored.shaping(), there="where kinds were found", here=f"in {stored.slide_id}"):
            raise SettingsError(f"{stored.slide_id}: its features were made otherwise ({'; '.join(said[:3])}).")
        kind, distance = _nearest(self.seen(stored), self.centres)
        distance = np.where(stored.ok, distance / self.limit, np.float32("nan"))
        return np.where(distance <= 1, kind, NONE), distance

    def grown(self, added: Sequence[SlideFeatures], seed: int = 0) -> TissueKinds:
        """With kinds of their own for what is like none of them on slides that were added; the others stay as they are.

        Features that were made otherwise have no place among them: `tell` refuses these slides.
        """
        most = max(1, min(TILES_A_SLIDE, TILES // max(1, len(added))))
        names: list[str] = []
        parts: list[Floats] = []
        for stored in added:
            names.append(stored.slide_id)
            if not differing(self.shaping, stored.shaping()):
                parts.append(_some(self.seen(stored)[stored.ok], most))
        slides = tuple(sorted({*self.slides, *names}))
        sample = np.concatenate(parts) if parts else self.centres[:0]
        far = sample[_nearest(sample, self.centres)[1] > self.limit]
        room = min(NEW_KINDS, MOST_KINDS - len(self.centres))
        if room < 1 or len(far) < max(NEW_TILES, NEW_SHARE * len(sample)):
            return replace(self, slides=slides)
        return replace(self, centres=np.concatenate([self.centres, _groups(far, room, seed)[0]]), slides=slides)

    def named(self, names: Mapping[str, str]) -> TissueKinds:
        """With names for some letters.

        Raises
        ------
        SettingsError : no such letter
        """
        unknown = [letter for letter in names if letter not in self.letters]
        if unknown:
            raise SettingsError(f"{unknown[0]!r} is not a kind. There are {', '.join(self.letters)}.")
        return replace(self, names={**self.names, **names})

    # On disk

    def save(self, folder: Path) -> None:
        """kinds.safetensors, names.csv, and kinds.json last."""
        from safetensors.numpy import save

        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("mean", "axes", "centres")}
        write_atomically(folder / "kinds.safetensors", save(tensors))
        write_names(folder, self.letters, self.names)
        known = {"format": FORMAT, "limit": self.limit, "shaping": self.shaping, "slides": list(self.slides)}
        write_atomically(folder / "kinds.json", to_json(known))

    @classmethod
    def load(cls, folder: Path, say: Say = lambda text: None) -> TissueKinds | None:
        """What was kept, with the names that names.csv gives now; None if there is nothing to read."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            known = json.loads(read_bytes(folder / "kinds.json"))
            tensors = load_file(folder / "kinds.safetensors")
            found = cls(**tensors, limit=float(known["limit"]), shaping=known["shaping"], slides=tuple(known["slides"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            say(f"{folder}: kinds of tissue that cannot be read ({error}); they are found anew")
            return None
        names = read_names(folder)
        try:
            return found.named(names)
        except SettingsError as error:
            raise SettingsError(f"{folder / NAMES}: {error}") from error


def neighbourhood(stored: SlideFeatures) -> Floats:
    """(N, D) means of features over each tile and its neighbours; NaN where a tile was not read."""
    found = np.full(stored.features.shape, np.nan, np.float32)
    ok = stored.ok
    if ok.any():
        found[ok] = Lattice(stored.centres_um()[ok], stored.pitch_um).mean(stored.features[ok].astype(np.float32), REACH)
    return found


def _groups(seen: Floats, count: int, seed: int) -> tuple[Floats, Floats]:
    """Centres (count, A) of groups, the largest first, and the distance (n,) of each tile from its own."""
    cv2.setRNGSeed(seed)
    until = cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, ROUNDS, STILL
    label = np.zeros((len(seen), 1), np.int32)  # it is filled in
    _, _, found = cv2.kmeans(np.ascontiguousarray(seen), count, label, until, ATTEMPTS, cv2.KMEANS_PP_CENTERS)
    order = np.argsort(-np.bincount(label[:, 0], minlength=count), kind="stable")
    centres = np.asarray(found, np.float32)[order]
    return centres, _nearest(seen, centres)[1]


def _nearest(seen: Floats, centres: Floats) -> tuple[Places, Floats]:
    """(N,) place of and distance from the nearest centre."""
    squared = np.square(seen).sum(1)[:, None] - 2 * seen @ centres.T + np.square(centres).sum(1)
    place = np.nan_to_num(squared, nan=np.inf).argmin(1)
    return place, np.sqrt(np.maximum(squared[np.arange(len(seen)), place], 0)).astype(np.float32)


def _some(rows: NDArray[Any], most: int) -> Floats:
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    return np.asarray(rows, np.float32)
