"""Kinds of tissue as the page shows them: from what `pathovit run` or `pathovit tissue` drew; a person gives them names."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely import STRtree, points
from shapely.geometry import shape

from pathovit.errors import SettingsError
from pathovit.files import csv_table, tried_again, write_atomically
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.show.qupath import offset

FOLDER, NAMES = "tissue", "names.csv"
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
        features = json.loads(tried_again(path.read_bytes))["features"]
        known = [(feature["properties"]["classification"], shape(feature["geometry"])) for feature in features]
    except (ValueError, KeyError, TypeError):
        return []
    names = read_names(out)
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


def read_names(out: OutFolder) -> dict[str, str]:
    """Names by letter, of names.csv. Raises SettingsError where it is no such table."""
    return {row["kind"].strip(): (row["name"] or "").strip() for row in _rows(out)}


def name_kind(out: OutFolder, letter: str, name: str) -> None:
    """Write a name into names.csv.

    Raises
    ------
    SettingsError : there is no such kind
    """
    rows = _rows(out)
    if letter not in [row["kind"].strip() for row in rows]:
        raise SettingsError(f"There is no kind {letter!r}.")
    changed: list[dict[str, object]] = [
        {"kind": row["kind"], "name": name if row["kind"].strip() == letter else row["name"]} for row in rows
    ]
    write_atomically(_path(out), csv_table(["kind", "name"], changed))


def named_source(out: OutFolder) -> Path | None:
    """What `pathovit teach` takes for kinds that have a name; None where none has."""
    return _path(out) if any(read_names(out).values()) else None


def _rows(out: OutFolder) -> Sequence[dict[str, str]]:
    path = _path(out)
    if not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"kind", "name"} <= {*rows[0]}:
        raise SettingsError(f"{path}: it has no columns kind and name. Put them back, or remove the file: it is written anew.")
    return rows


def _path(out: OutFolder) -> Path:
    return out.path / FOLDER / NAMES
