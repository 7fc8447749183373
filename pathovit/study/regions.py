"""Regions: what a person drew on slides (GeoJSON of QuPath, XML of ASAP), and what it says of their tiles.

    tumour              the tile is of that class
    not tumour          it is of any other one
    complete            inside, all that is drawn is drawn: other tiles are of none of the classes that have a name
    ignore, Ignore*     it says nothing, whatever else lies there; so does any name with a star

Coordinates are QuPath's: level-0 pixels, less the bounds that it crops to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from shapely import STRtree, area, intersection, length
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from pathovit.errors import SettingsError
from pathovit.geometry import XY
from pathovit.manifest import Names, one_spelling, some
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.show.qupath import MARKED, offset, tile_squares
from pathovit.slides.outlines import Outline, files_in, read_outlines, stem_of
from pathovit.tables import Say, spelling
from pathovit.text import counted

INSIDE = 0.5  # of a tile that a polygon must cover, or of its side a line
MOST_OFF = 0.1  # of a slide's regions, that may lie off its tissue
OVERLAP = 0.1  # of a tile, on which regions that contradict each other may lie upon each other
NOT, REST, COMPLETE, IGNORE = "not ", "other", "complete", "ignore"
OURS = ("Mean score", "Highest score")  # measurements of regions that a model drew
NOTHING = -1
NO_NAME = ""  # of tissue that is of none of the classes asked for
TUMOUR = ("tumour", "tumor")
Bools: TypeAlias = NDArray[np.bool_]
Places: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Region:
    """One drawn feature; `number` counts the features of its file from 1."""

    name: str  # of its class
    geometry: BaseGeometry
    file: str
    number: int
    from_level0: bool = False  # counted from the corner of level 0, as ASAP does; `in_view` makes them QuPath's

    def __str__(self) -> str:
        return f"{self.file}, feature {self.number} ({self.name})"


@dataclass(frozen=True)
class Meaning:
    """The classes that were drawn, and which of them the name of a region allows."""

    classes: tuple[str, ...]
    allowed: Mapping[str, tuple[bool, ...]]  # by spelling of the name

    @classmethod
    def of(cls, drawn: Mapping[str, Sequence[Region]], positive: str | None = None) -> Meaning:
        """From the regions of all slides. What is meant by "not" or "complete" comes first, the `positive` class last.

        Raises
        ------
        SettingsError : fewer than two classes
        """
        spelled = one_spelling(region.name for regions in drawn.values() for region in regions)
        names = sorted((name for key, name in spelled.items() if not says_nothing(key)), key=str.casefold)
        plain = [name for name in names if not spelling(name).startswith(NOT) and spelling(name) != COMPLETE]
        denied = {name: spelling(name).removeprefix(NOT) for name in names if spelling(name).startswith(NOT)}
        unknown = [name for name, of in denied.items() if of not in map(spelling, plain)]
        if unknown:
            raise SettingsError(f"{unknown[0]!r} is drawn, and {denied[unknown[0]]!r} is not. Draw some of it, too.")
        rest = [name for name in plain if spelling(name).split()[0] in (REST, "rest")]
        if len(denied) + (COMPLETE in spelled) and not rest:
            rest = [f"{NOT}{plain[0]}" if len(plain) == 1 else REST]
        classes = [*rest, *(name for name in plain if name not in rest)]
        if len(classes) < 2:
            found = f"one class, {classes[0]!r}" if classes else "no class"
            raise SettingsError(f"The regions show {found}. Draw two at least, e.g. tumour and other tissue.")
        if positive is not None:
            last = next((name for name in classes if spelling(name) == spelling(positive)), None)
            if last is None:
                raise SettingsError(f"--positive {positive!r} is not a class of the regions: {', '.join(classes)}.")
            classes = [*(name for name in classes if name != last), last]
        allowed = {spelling(name): tuple(other == name for other in classes) for name in classes}
        allowed |= {spelling(name): tuple(spelling(other) != of for other in classes) for name, of in denied.items()}
        return cls(tuple(classes), allowed | {COMPLETE: tuple(name in rest for name in classes)})

    @classmethod
    def for_target(cls, drawn: Mapping[str, Sequence[Region]], names: Sequence[str], negative: str | None, say: Say) -> Meaning:
        """For classes that a table names already: those `names` that tiles can be of, and all other tissue (NO_NAME) before them.

        `negative` is what a table of two classes calls the other one. A name that is none of them is taken for other tissue, and `say` says so. Where there is one class, QuPath's own name
        of it (`Tumor`) will do for another spelling.

        Raises
        ------
        SettingsError : not one region is of the classes
        """
        classes = (NO_NAME, *names)
        spelled = one_spelling(region.name for regions in drawn.values() for region in regions)
        known = {spelling(name): name for name in names}
        if len(names) == 1 and spelling(names[0]) in TUMOUR:
            known |= dict.fromkeys(TUMOUR, names[0])
        allowed = {COMPLETE: tuple(name == NO_NAME for name in classes)}
        others = []
        for key, name in spelled.items():
            plain = key.removeprefix(NOT)
            if says_nothing(key) or key == COMPLETE:
                continue
            if plain != key and (plain in known or plain != spelling(negative or REST)):
                allowed[key] = tuple(
                    other != known.get(plain) for other in classes
                )  # of a class that is not asked for it says nothing
                continue
            if plain != key:
                allowed[key] = tuple(other != NO_NAME for other in classes)
                continue
            meant = known.get(key, NO_NAME)
            allowed[key] = tuple(other == meant for other in classes)
            if meant == NO_NAME and key != spelling(negative or REST):
                others.append(name)
        if not any(name in allowed for name in known):
            raise SettingsError(
                f"No region is of {', '.join(names)}; they are called {some(sorted(spelled.values()))}. Name them as the table does."
            )
        if others:
            say(f"regions called {', '.join(sorted(others))} are taken for tissue without {' or '.join(names)}")
        return cls(classes, allowed)


@dataclass(frozen=True)
class TileLabels:
    """What regions say of the tiles of a slide, in grid order."""

    allowed: Bools  # (N, C) classes that a tile may be of; all, where nothing is known
    region: Places  # (N,) which of the slide's regions says it; NOTHING where none does

    @property
    def known(self) -> Bools:
        return np.asarray(~self.allowed.all(1))


def says_nothing(name: str) -> bool:
    """Whether a class is none: QuPath marks those with a star."""
    return name.endswith("*") or spelling(name) == IGNORE


def read_regions(path: Path, say: Say) -> list[Region]:
    """The regions of one file.

    Raises
    ------
    SettingsError : a file that is none of regions, a feature that is none, or a file without a class; file and feature are named
    """
    named, nameless, ours = [], 0, 0
    for drawn in read_outlines(path):
        if _is_ours(drawn):
            ours += 1
        elif not drawn.name:
            nameless += drawn.kind != "tile"
        elif drawn.geometry.is_empty:
            raise SettingsError(
                f"{path.name}, feature {drawn.number} ({drawn.name}): its geometry is empty. Draw it again, or take it out."
            )
        else:
            named.append(Region(drawn.name, drawn.geometry, path.name, drawn.number, drawn.from_level0))
    if not named:
        raise SettingsError(
            f"{path}: no region with a class. Give regions a class (in QuPath: Set class), and export them again."
        )
    if nameless:
        say(f"{path.name}: {nameless} regions without a class are left out")
    if ours:
        say(f"{path.name}: {ours} regions that a model drew are left out")
    return named


def _is_ours(drawn: Outline) -> bool:
    return drawn.name in MARKED or all(key in drawn.measured for key in OURS)


def in_view(regions: Sequence[Region], bounds: XY) -> list[Region]:
    """Regions as QuPath counts pixels: from the corner of the scanned part, which lies at `bounds`, level-0 pixels."""
    x, y = bounds
    return [
        replace(one, geometry=translate(one.geometry, -x, -y), from_level0=False) if one.from_level0 else one for one in regions
    ]


def find_regions(paths: Sequence[Path], out: OutFolder, say: Say) -> dict[str, list[Region]]:
    """Regions by slide_id, of all files given and in folders given; a file is of the slide it is named after.

    Some files of a folder may be of slides that have no features: these are left out, and said.

    Raises
    ------
    SettingsError : no file; most of a folder, or a file that was named, of no slide with features; a name that two slides have
    """
    known = {out.slide(slide_id).path: names for slide_id, names in out.called_as().items()}
    return {
        at.name: found for at, found in regions_of(paths, known, f"has no features in {out.path}", "with features", say).items()
    }


def regions_of(
    paths: Sequence[Path], known: Mapping[Path, Sequence[str]], lacks: str, which: str, say: Say
) -> dict[Path, list[Region]]:
    """Regions by slide, of all files given and in folders given.

    Parameters
    ----------
    known : slides, and what each may be called
    lacks, which : what is said of a name that is of none of them, and of those slides

    Raises
    ------
    SettingsError : as `find_regions`
    """
    named = [path for path in paths if not path.is_dir()]
    if gone := [path for path in named if not path.exists()]:
        raise SettingsError(f"{gone[0]}: no such file of regions.")
    files = [*named, *(file for path in paths if path.is_dir() for file in files_in(path))]
    others: list[str] = []  # why each of them is left out
    if not files:
        raise SettingsError(
            f"{some([str(path) for path in paths])}: no file of regions (GeoJSON, or XML of ASAP). Give files, or a folder of them."
        )
    names = Names(known)
    found: dict[Path, list[Region]] = {}
    for file in files:
        stem = stem_of(file)
        fitting, exact = names.find(stem)
        if len(fitting) != 1:
            if fitting:
                raise SettingsError(
                    f"{file}: the slide {stem!r} can mean {' and '.join(map(str, fitting[:2]))}. Give one of them."
                )
            why = f"{file}: the slide {stem!r} {lacks}{names.near(stem)}. Name the file after its slide, or slide_id."
            if file in named:
                raise SettingsError(why)
            others.append(why)
            continue
        if not exact:
            say(f"{file.name} is taken for {fitting[0].name}")
        found.setdefault(fitting[0], []).extend(read_regions(file, say))
    if others:
        said = f"{len(others)} of {counted(len(files), 'file')} of regions are of no slide {which}, such as {others[0]}"
        if len(others) > len(files) / 2:
            raise SettingsError(said if len(others) > 1 else others[0])
        say(f"{said} They are left out.")
    return found


def label_tiles(stored: SlideFeatures, regions: Sequence[Region], meaning: Meaning, say: Say) -> TileLabels:
    """What the regions of a slide say of its tiles. A tile that two of them divide up is of neither.

    Raises
    ------
    SettingsError : regions off the tissue, more than a few; two that lie upon each other and contradict each other; the first is named
    """
    return label_squares(tile_squares(stored), ~stored.ok, stored.slide_id, in_view(regions, offset(stored)), meaning, say)


def label_squares(
    squares: NDArray[Any], silent: Bools, called: str, regions: Sequence[Region], meaning: Meaning, say: Say
) -> TileLabels:
    """The same of squares, in pixels of the image that QuPath shows.

    Parameters
    ----------
    silent : (N,) those of which nothing is to be said
    called : the slide, in messages
    """
    tree = STRtree(squares)
    allowed = np.ones((len(squares), len(meaning.classes)), bool)
    region = np.full(len(squares), NOTHING)
    silent, off = silent.copy(), list[Region]()
    last = sorted(range(len(regions)), key=lambda place: spelling(regions[place].name) == COMPLETE)
    for place in last:
        drawn = regions[place]
        tiles = _tiles_in(tree, squares, drawn.geometry)
        if not len(tiles):
            off.append(drawn)
            continue
        if says_nothing(drawn.name):
            silent[tiles] |= spelling(drawn.name).rstrip("*") == IGNORE
            continue
        means = np.array(meaning.allowed[spelling(drawn.name)])
        if spelling(drawn.name) == COMPLETE:
            tiles = tiles[region[tiles] == NOTHING]
        for tile in tiles[~(allowed[tiles] & means).any(1)]:
            _require_apart(regions[region[tile]], drawn, squares[tile])
            silent[tile] = True
        allowed[tiles] &= means
        region[tiles] = np.where(region[tiles] == NOTHING, place, region[tiles])
    allowed[silent], region[silent] = True, NOTHING
    if off:
        said = f"{off[0]}: it lies on no tile of {called}"
        if len(off) > MOST_OFF * len(regions):
            more = f", nor do {len(off) - 1} of {len(regions) - 1} others" if len(off) > 1 else ""
            raise SettingsError(f"{said}{more}. Is it of this slide, on its tissue, and in level-0 pixels?")
        others = f", and so are {len(off) - 1} others of {len(regions)}" if len(off) > 1 else ""
        say(f"{said} and is left out{others}")
    return TileLabels(allowed, region)


def tiles_in(stored: SlideFeatures, regions: Sequence[Region]) -> list[Places]:
    """The tiles, by index, that each region says something of."""
    squares = tile_squares(stored)
    tree = STRtree(squares)
    return [_tiles_in(tree, squares, region.geometry) for region in in_view(regions, offset(stored))]


def _tiles_in(tree: STRtree, squares: NDArray[Any], geometry: BaseGeometry) -> Places:
    """Tiles of which more than half is covered, by a line half their side; of what covers none so far, those it covers most. Points: theirs."""
    touched = np.asarray(tree.query(geometry, predicate="intersects"), np.int64)
    if not len(touched) or not geometry.length:
        return touched
    inside, whole = intersection(squares[touched], geometry), squares[0].area
    share = (
        area(inside) / whole if geometry.area else 1.001 * length(inside) / whole**0.5
    )  # lines mostly end in the middle of tiles
    return np.asarray(touched[share > INSIDE * min(1.0, share.max())])


def _require_apart(a: Region, b: Region, square: BaseGeometry) -> None:
    shared = a.geometry.intersection(b.geometry).intersection(square)
    areal = a.geometry.area and b.geometry.area
    if shared.area > OVERLAP * square.area if areal else not shared.is_empty:
        raise SettingsError(f"{a} and {b} lie upon each other and contradict each other. Correct one of them.")
