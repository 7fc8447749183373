"""Kinds of tissue as the page shows them: from what `pathovit run` or `pathovit tissue` drew; a person gives them names."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely import STRtree, points
from shapely.geometry import shape

from pathovit.errors import SettingsError
from pathovit.files import open_text, read_bytes
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.show.qupath import offset
from pathovit.study.kind_names import NAMES, read_names, write_names

FOLDER = "tissue"
EXAMPLES = 4


@dataclass(frozen=True)
class Kind:
    """A kind on a slide: where it is, and some tiles of it."""

    letter: str
    name: str
    colour: tuple[int, int, int]
    tiles: NDArray[np.int64]
    examples: tuple[int, ...]


def kinds_on(out: OutFolder, stored: SlideFeatures) -> list[Kind]:
    """Kinds of a slide by letter; none where no tissue map was drawn, or a damaged one."""
    path = out.path / FOLDER / f"{stored.slide_id}.geojson"
    if not path.is_file() or path.is_symlink():
        return []
    try:
        features = json.loads(read_bytes(path))["features"]
        known = [(feature["properties"]["classification"], shape(feature["geometry"])) for feature in features]
    except (ValueError, KeyError, TypeError):
        return []
    names = read_names(out.path / FOLDER)
    x, y = offset(stored)
    centres = stored.centres_l0() - np.array([x, y])
    tree = STRtree(points(centres))
    found: dict[str, tuple[tuple[int, int, int], list[int]]] = {}
    for classification, area in known:
        letter = str(classification["name"]).split()[0]
        colour = tuple(int(part) for part in classification["color"][:3])
        found.setdefault(letter, ((colour[0], colour[1], colour[2]), []))[1].extend(
            tree.query(area, predicate="contains").tolist()
        )
    return [
        Kind(letter, names.get(letter, ""), colour, index := np.unique(np.array(tiles, np.int64)), examples_of(stored, index))
        for letter, (colour, tiles) in sorted(found.items())
        if tiles
    ]


def examples_of(stored: SlideFeatures, tiles: NDArray[np.int64]) -> tuple[int, ...]:
    """Some tiles of a kind, those that lie most amid others of it, from different places."""
    lattice = stored.grid.lattice()[tiles]
    inside = {tuple(place) for place in lattice.tolist()}
    around = [sum((x + dx, y + dy) in inside for dx in (-1, 0, 1) for dy in (-1, 0, 1)) for x, y in lattice.tolist()]
    best = np.flatnonzero(np.array(around) == max(around))
    chosen = best[np.linspace(0, len(best) - 1, min(EXAMPLES, len(best))).round().astype(int)]
    return tuple(int(tiles[place]) for place in np.unique(chosen))


def name_kind(out: OutFolder, letter: str, name: str) -> None:
    """Write a name into names.csv.

    Raises
    ------
    SettingsError : there is no such kind
    """
    letters = _letters(out)
    if letter not in letters:
        raise SettingsError(f"There is no kind {letter!r}; there are {', '.join(letters) or 'none'}.")
    write_names(out.path / FOLDER, letters, {**read_names(out.path / FOLDER), letter: name})


def named_source(out: OutFolder) -> Path | None:
    """What `pathovit teach` takes for kinds that have a name; None where none has."""
    return out.path / FOLDER / NAMES if read_names(out.path / FOLDER) else None


def _letters(out: OutFolder) -> list[str]:
    """Of all kinds of the folder, as its table of areas names them; the last column is tissue of none."""
    try:
        with open_text(out.path / FOLDER / "areas.csv") as file:
            columns = next(csv.reader(file), [])
    except FileNotFoundError:
        return []
    return [column.split()[0] for column in columns[2:-1]]
