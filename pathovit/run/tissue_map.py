"""The tissue map of an output folder: kinds are found or taken from before, and drawn for every slide that has no picture of them.

OUT/tissue/
  kinds.json, kinds.safetensors    the kinds
  names.csv                        their names, to be filled in by a person
  kinds.png                        what each looks like
  areas.csv                        mm2 of each kind on each slide
  <slide_id>.jpg, .geojson         the map
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

import numpy as np

from pathovit.errors import NoSlidesError, PathovitError, SettingsError, SlideError
from pathovit.files import csv_table, write_atomically
from pathovit.machine import allowed_cores
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.runs import files_at_hand
from pathovit.outputs.sealed import read_sealed, write_sealed
from pathovit.outputs.store import FeatureStore
from pathovit.show.tissue_map import TissueMap, draw_kinds, draw_tissue_map, write_tissue_areas
from pathovit.show.views import load_views
from pathovit.slides.readers import RGB
from pathovit.slides.slide import open_slide
from pathovit.slides.tiling import read_tile
from pathovit.study.kinds import TissueKinds
from pathovit.tables import Say

FOLDER = "tissue"
FITTED_SLIDES = 200  # that kinds are found on, at most
EXAMPLES, FROM_ONE_SLIDE = 6, 2  # tiles shown of each kind
MOST_AT_ONCE = 4  # maps that are drawn side by side: each holds the features of a slide
NOTE_VERSION = 2
T = TypeVar("T")
OnSlide = Callable[[int, int], None]


@dataclass(frozen=True)
class Note:
    """What is known of a map that was drawn."""

    mark: str  # what it was drawn from
    mm2: list[float]  # of each kind; of none, last
    nearest: list[list[tuple[int, float]]]  # of each kind the tiles most like it, and how unlike they are

    @classmethod
    def of(cls, folder: Path, record: SlideRecord) -> Note | None:
        """None where there is none, or it is damaged."""
        try:
            found = read_sealed(folder / ".drawn" / f"{record.slide_id}.json")
            nearest = [[(int(tile), float(unlike)) for tile, unlike in tiles] for tiles in found["nearest"]]
            return cls(str(found["mark"]), [float(area) for area in found["mm2"]], nearest)
        except (OSError, ValueError, KeyError, TypeError):
            return None


Mapped: TypeAlias = tuple[SlideRecord, Note]


def map_tissue(
    out: OutFolder, say: Say, on_slide: OnSlide = lambda done, total: None, names: Mapping[str, str] | None = None,
    afresh: bool = False,
) -> TissueKinds:  # fmt: skip
    """Draw the tissue map of all slides of a folder.

    Parameters
    ----------
    names : of kinds, by letter; those given before stay
    afresh : find kinds anew, though there are some

    Raises
    ------
    NoSlidesError : no slide with features
    SettingsError : features made in different ways, hardly any tiles, a name for a letter that is none
    """
    records = out.embedded()
    if not records:
        raise NoSlidesError(f"{out.path}: no slide with features in it. Make some with: pathovit embed SLIDES --out {out.path}")
    folder = out.path / FOLDER
    before = None if afresh else TissueKinds.load(folder, say)
    kinds = _found(out, records, before).named(names or {})
    stale = [record for record in records if not _is_drawn(out, record, kinds, folder)]
    if before is None or stale or kinds.slides != before.slides:
        kinds.save(folder)
    if before is not None and not stale and (folder / "kinds.png").is_file():
        return kinds
    with ThreadPoolExecutor(min(MOST_AT_ONCE, allowed_cores()), thread_name_prefix="tissue") as pool:
        try:
            for number, said in enumerate(pool.map(lambda record: _drawn(out, record, kinds, folder), stale), start=1):
                if said:
                    say(said)
                on_slide(number, len(stale))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that are being drawn are waited for
            raise
    mapped = [(record, note) for record in records if (note := Note.of(folder, record))]
    _write_areas(folder, mapped, kinds)
    _show_kinds(out, folder, mapped, kinds, say)
    return kinds


def _read(out: OutFolder, record: SlideRecord) -> SlideFeatures:
    return FeatureStore(out.slide(record.slide_id), out.called(record)).read()


@dataclass(frozen=True)
class _OneByOne(Sequence[SlideFeatures]):
    """Features of slides, read when they are asked for: together they can be more than the memory."""

    out: OutFolder
    records: Sequence[SlideRecord]

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, place: int) -> SlideFeatures: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[SlideFeatures]: ...
    def __getitem__(self, place: int | slice) -> SlideFeatures | Sequence[SlideFeatures]:
        return _OneByOne(self.out, self.records[place]) if isinstance(place, slice) else _read(self.out, self.records[place])


def _found(out: OutFolder, records: Sequence[SlideRecord], before: TissueKinds | None) -> TissueKinds:
    """The kinds of before, with new ones for slides that are new; or all of them, found now."""
    new = [record for record in records if before is None or record.slide_id not in before.slides]
    if before is not None and not new:
        return before
    looked_at = _evenly(new)
    read = _OneByOne(out, looked_at)
    found = TissueKinds.fit(read) if before is None else before.grown(read)
    return replace(found, slides=tuple(sorted({*(before.slides if before else ()), *(record.slide_id for record in new)})))


def _names(kinds: TissueKinds) -> tuple[str, ...]:
    return tuple(kinds.said(place) for place in range(len(kinds.centres)))


def _drawn(out: OutFolder, record: SlideRecord, kinds: TissueKinds, folder: Path) -> str:
    """Draw one slide; returns what must be said of it."""
    try:
        return _draw(out, record, kinds, folder)
    except (SlideError, SettingsError) as error:
        for old in (f".drawn/{record.slide_id}.json", f"{record.slide_id}.jpg", f"{record.slide_id}.geojson"):
            (folder / old).unlink(missing_ok=True)  # of other kinds, or other features: no map is better than a wrong one
        return f"{out.called(record).name}: no tissue map ({error})"


def _draw(out: OutFolder, record: SlideRecord, kinds: TissueKinds, folder: Path) -> str:
    """Picture and areas of one slide; the note comes last."""
    stored = _read(out, record)
    found = TissueMap(stored, *kinds.tell(stored), _names(kinds))
    areas = found.areas()
    views = load_views(out.slide(record.slide_id).path, record.views)
    if views:
        draw_tissue_map(folder / f"{record.slide_id}.jpg", views, found, areas)
    write_tissue_areas(folder / f"{record.slide_id}.geojson", found, areas)
    note = Note(
        _mark(out, record, kinds), found.areas_mm2(), [found.nearest(place, EXAMPLES) for place in range(len(found.names))]
    )
    write_sealed(folder / ".drawn" / f"{record.slide_id}.json", asdict(note))
    return "" if views else f"{out.called(record).name}: no picture of it is stored, so that its tissue map is in numbers alone"


def _mark(out: OutFolder, record: SlideRecord, kinds: TissueKinds) -> str:
    """What a map is drawn from."""
    sealed = out.slide(record.slide_id).features_record()
    files = dict(sorted(sealed.files.items())) if sealed else {}
    return hashlib.sha256(json.dumps([files, kinds.digest, NOTE_VERSION]).encode()).hexdigest()


def _is_drawn(out: OutFolder, record: SlideRecord, kinds: TissueKinds, folder: Path) -> bool:
    """Whether its map is there, of these features and kinds; nothing of the slide is read for that."""
    pictures = [folder / f"{record.slide_id}.geojson", *([folder / f"{record.slide_id}.jpg"] if record.views else [])]
    note = Note.of(folder, record)
    return all(file.is_file() for file in pictures) and note is not None and note.mark == _mark(out, record, kinds)


def _write_areas(folder: Path, mapped: Sequence[Mapped], kinds: TissueKinds) -> None:
    columns = [*(f"{name} mm2" for name in _names(kinds)), "none of these mm2"]
    rows: list[dict[str, object]] = []
    for record, note in mapped:
        known = {column: round(area, 4) for column, area in zip(columns, note.mm2, strict=True)}
        rows.append({"slide_id": record.slide_id, "file": record.description.file, **known})
    write_atomically(folder / "areas.csv", csv_table(["slide_id", "file", *columns], rows))


def _show_kinds(out: OutFolder, folder: Path, mapped: Sequence[Mapped], kinds: TissueKinds, say: Say) -> None:
    """kinds.png, with tiles from slides that are at hand."""
    files = files_at_hand(out)
    at_hand = _evenly([one for one in mapped if one[0].sha256 in files])
    pictures: dict[int, dict[int, RGB]] = {}
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    for place, tiles in _examples(len(kinds.centres), [note for _, note in at_hand]).items():
        for rank, (number, index) in enumerate(tiles):
            wanted.setdefault(number, []).append((place, rank, index))
    for number, places in wanted.items():
        record, _ = at_hand[number]
        description = record.description
        try:
            grid = FeatureStore(out.slide(record.slide_id), out.called(record)).grid()
            with open_slide(files[record.sha256], description.mpp, description.mpp_source, record.sha256) as slide:
                for place, rank, index in places:
                    if (tile := read_tile(slide, grid, index)) is not None:
                        pictures.setdefault(place, {})[rank] = tile
        except PathovitError as error:
            say(f"{out.called(record).name}: no example tiles of it ({error})")
    if not pictures:
        say("no slide is where it was, so that kinds.png is as it was drawn before, or missing")
        return
    total = np.sum([note.mm2 for _, note in mapped], axis=0)
    shown = {place: [tiles[rank] for rank in sorted(tiles)] for place, tiles in pictures.items()}
    draw_kinds(folder / "kinds.png", _names(kinds), list(total), shown)


def _evenly(some: Sequence[T]) -> list[T]:
    """At most as many as kinds are found on."""
    if not some:
        return []
    places = np.linspace(0, len(some) - 1, min(FITTED_SLIDES, len(some))).round().astype(int)
    return [some[place] for place in np.unique(places)]


def _examples(kinds: int, notes: Sequence[Note]) -> dict[int, list[tuple[int, int]]]:
    """Of each kind the tiles that are most like it, as (number of the note, tile), from different slides where there are some."""
    found = {}
    for place in range(kinds):
        near = [
            (rank // FROM_ONE_SLIDE, unlike, number, tile)
            for number, note in enumerate(notes)
            for rank, (tile, unlike) in enumerate(note.nearest[place])
        ]
        found[place] = [(number, tile) for _, _, number, tile in sorted(near)[:EXAMPLES]]
    return found
