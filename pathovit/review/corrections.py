"""What readers decided and painted, as files that other steps read: labels.csv, and GeoJSON of tile outlines for each slide."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shapely import GEOSException
from shapely.geometry import shape

from pathovit.errors import SettingsError
from pathovit.files import csv_table, read_bytes, write_atomically
from pathovit.outputs.features import SlideFeatures
from pathovit.review.about import about, tiles_sha256
from pathovit.review.desk import Case, Desk
from pathovit.review.opinion import Cell, painted_by_all, runs_of
from pathovit.review.readers import Reader
from pathovit.show.qupath import MADE_BY, offset, write_painted
from pathovit.study.regions import COMPLETE, NOT, find_regions, says_nothing, tiles_in
from pathovit.tables import Say, spelling
from pathovit.text import counted


def cell_index(stored: SlideFeatures) -> dict[Cell, int]:
    """Tile at each cell of the lattice."""
    return {(int(row), int(column)): tile for tile, (column, row) in enumerate(stored.grid.lattice())}


def write_labels(desk: Desk, path: Path) -> tuple[int, int, int]:
    """labels.csv as `train` reads it: of slides on which readers agree, or that were settled. How many; unsure; disagreed upon."""
    rows, unsure, disagreed = [], 0, 0
    with_patients = any(case.patient for case in desk.cases())
    for case in sorted((case for case in desk.cases() if case.record), key=lambda case: case.slide_id):
        found = desk.standing(case)
        disagreed += found.disagreement and not found.settled
        unsure += found.label == ""
        if found.label:
            rows.append(
                {"slide": case.slide_id, "patient": case.patient or case.slide_id, "label": found.label, "reader": found.by}
            )
    names = ["slide", *(["patient"] if with_patients else []), "label", "reader"]
    write_atomically(path, csv_table(names, [{name: row[name] for name in names} for row in rows]))
    return len(rows), unsure, disagreed


def write_regions(desk: Desk, folder: Path) -> tuple[int, int, int]:
    """A GeoJSON file for each slide with painted tiles; those of before are replaced. Slides; tiles; tiles that readers disagree on."""
    _clear(folder)
    slides = tiles = differ = 0
    for case in desk.cases():
        if case.record is None:
            continue
        painted, disagreed = painted_by_all(desk.events(case.slide_id), tiles_sha256(case.record))
        differ += disagreed
        if painted:
            write_cells(folder / f"{case.slide_id}.geojson", desk.features(case), painted)
            slides, tiles = slides + 1, tiles + len(painted)
    return slides, tiles, differ


def _clear(folder: Path) -> None:
    """Take out what was written here before.

    Raises
    ------
    SettingsError : there are regions of somebody else
    """
    ours = []
    for path in folder.glob("*.geojson") if folder.is_dir() else ():
        try:
            is_ours = json.loads(read_bytes(path)).get("made_by") == MADE_BY
        except (OSError, ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise SettingsError(f"{path}: regions that are not of a review. Choose another --regions, so that they stay.")
        ours.append(path)
    for path in ours:
        path.unlink()


def write_cells(path: Path, stored: SlideFeatures, painted: dict[Cell, str]) -> None:
    """Painted tiles as outlines, those of a class that touch as one."""
    at = cell_index(stored)
    by_label: dict[str, list[int]] = {}
    for cell, label in painted.items():
        if cell in at:
            by_label.setdefault(label, []).append(at[cell])
    write_painted(path, stored, {label: np.array(sorted(tiles)) for label, tiles in sorted(by_label.items())})


def import_regions(desk: Desk, paths: Sequence[Path], reader: Reader, say: Say) -> int:
    """Regions from QuPath become painted tiles of a reader, as events; those of the same file before are taken back. How many slides.

    Raises
    ------
    SettingsError : a file that cannot be read, of no slide, or off its tissue
    """
    regions = find_regions(paths, desk.out, say)
    found = 0
    for slide_id, drawn in regions.items():
        case = next((case for case in desk.cases() if case.slide_id == slide_id and case.record), None)
        if case is None:
            raise SettingsError(f"{slide_id}: it has no results yet. Run pathovit on it first.")
        stored = desk.features(case)
        lattice = stored.grid.lattice()
        cells: dict[str, set[Cell]] = {}
        for region, tiles in zip(drawn, tiles_in(stored, drawn), strict=True):
            if not len(tiles):
                say(f"{region}: it lies on no tile, and is left out")
                continue
            cells.setdefault(region.name, set()).update((int(row), int(column)) for column, row in lattice[tiles])
        _settle(cells, drawn[0].file)
        if not cells:
            raise SettingsError(f"{drawn[0].file}: none of its {counted(len(drawn), 'region')} lies on a tile of {slide_id}.")
        files = sorted({_told(region.file, case) for region in drawn})
        painted = {label: runs_of(inside) for label, inside in cells.items()}
        said = {"event": "imported", "files": files, "regions": len(drawn), "painted": painted}
        desk.record.append(slide_id, reader.name, reader.role, said, {}, about(case.record))
        found += 1
    return found


def _settle(cells: dict[str, set[Cell]], file: str) -> None:
    """One label for a cell, as `teach` understands regions: what is ignored wins, a class over "not", and "complete" is all that has none.

    Raises
    ------
    SettingsError : a cell of two classes
    """
    ignored = set().union(*(inside for name, inside in cells.items() if says_nothing(spelling(name))))
    taken: dict[Cell, str] = {}
    ranks = sorted(cells, key=lambda name: (spelling(name) == COMPLETE, spelling(name).startswith(NOT)))
    for name in ranks:
        if says_nothing(spelling(name)):
            continue
        cells[name] -= ignored
        is_class = spelling(name) != COMPLETE and not spelling(name).startswith(NOT)
        if is_class and (both := [taken[cell] for cell in cells[name] if cell in taken]):
            raise SettingsError(f"{file}: regions of {both[0]!r} and of {name!r} overlap. Draw each tile as one class.")
        cells[name] -= set(taken)
        taken |= dict.fromkeys(cells[name], name)


def _told(file: str, case: Case) -> str:
    """The name of a file of regions, if names are kept: it is named after its slide; else what stands for it."""
    return file if case.file else f"regions-{hashlib.sha256(f'{case.slide_id} {file}'.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Asked:
    """A tile that a taught model would like to know."""

    slide_id: str
    index: int
    row: int
    column: int


def suggested(desk: Desk) -> list[Asked]:
    """What `pathovit teach --suggest` asks for, the most helpful first. What was edited into something else is left out."""
    found: list[tuple[int, Asked]] = []
    cases = {case.slide_id: case for case in desk.cases() if case.record}
    for path in sorted((desk.out.path / "suggested").glob("*.geojson")):
        squares = _squares(path) if path.stem in cases else {}
        if not squares:
            continue
        stored = desk.features(cases[path.stem])
        centres, lattice = stored.centres_l0(), stored.grid.lattice()
        for rank, centre in squares.items():
            index = int(np.abs(centres - (np.asarray(centre) + np.asarray(offset(stored)))).sum(1).argmin())
            column, row = (int(v) for v in lattice[index])
            found.append((rank, Asked(path.stem, index, row, column)))
    return [asked for _, asked in sorted(found, key=lambda pair: pair[0])]


def _squares(path: Path) -> dict[int, tuple[float, float]]:
    """Middles of the squares of a file, by their rank: a person may have drawn in it, too."""
    try:
        features = json.loads(read_bytes(path))["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    found = {}
    for feature in features if isinstance(features, list) else ():
        try:
            rank = re.fullmatch(r"suggested (\d+)", feature["properties"]["name"])
            centre = shape(feature["geometry"]).centroid
            if rank and not centre.is_empty:
                found[int(rank[1])] = (centre.x, centre.y)
        except (KeyError, TypeError, ValueError, AttributeError, GEOSException):
            continue
    return found
