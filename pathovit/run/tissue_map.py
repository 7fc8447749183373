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
from pathlib import Path
from typing import TypeAlias

import numpy as np

from pathovit.errors import NoSlidesError, PathovitError, SettingsError, SlideError
from pathovit.files import csv_table, to_json, write_atomically
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.runs import files_at_hand
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
OnSlide = Callable[[int, int], None]
Mapped: TypeAlias = tuple[SlideRecord, list[float]]  # and the mm2 of each kind on it; of none, last


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
    if before is not None and not stale and (folder / "kinds.png").is_file():
        return kinds
    kinds.save(folder)
    for number, record in enumerate(stale, start=1):
        try:
            _draw(out, record, kinds, folder, say)
        except (SlideError, SettingsError) as error:
            say(f"{record.description.file}: no tissue map ({error})")
        on_slide(number, len(stale))
    mapped = [(record, mm2) for record in records if (mm2 := _noted(folder, record))]
    _write_areas(folder, mapped, kinds)
    _show_kinds(out, folder, mapped, kinds, say)
    return kinds


def _read(out: OutFolder, record: SlideRecord) -> SlideFeatures:
    return FeatureStore(out.slide(record.slide_id), Path(record.description.file)).read()


def _found(out: OutFolder, records: Sequence[SlideRecord], before: TissueKinds | None) -> TissueKinds:
    """The kinds of before, with new ones for slides that are new; or all of them, found now."""
    if before is None:
        return TissueKinds.fit([_read(out, record) for record in _evenly(records)])
    added = [record for record in records if record.slide_id not in before.slides][:FITTED_SLIDES]
    return before.grown([_read(out, record) for record in added]) if added else before


def _map(out: OutFolder, record: SlideRecord, kinds: TissueKinds) -> TissueMap:
    stored = _read(out, record)
    kind, unlike = kinds.tell(stored)
    return TissueMap(stored, kind, unlike, _names(kinds))


def _names(kinds: TissueKinds) -> tuple[str, ...]:
    return tuple(kinds.said(place) for place in range(len(kinds.centres)))


def _draw(out: OutFolder, record: SlideRecord, kinds: TissueKinds, folder: Path, say: Say) -> None:
    """Picture and areas of one slide; the note comes last."""
    found = _map(out, record, kinds)
    areas = found.areas()
    if views := load_views(out.slide(record.slide_id).path, record.views):
        draw_tissue_map(folder / f"{record.slide_id}.jpg", views, found, areas)
    else:
        say(f"{record.description.file}: no picture of it is stored, so that its tissue map is in numbers alone")
    write_tissue_areas(folder / f"{record.slide_id}.geojson", found, areas)
    note = {"mark": _mark(out, record, kinds), "mm2": found.areas_mm2()}
    write_atomically(folder / ".drawn" / f"{record.slide_id}.json", to_json(note))


def _mark(out: OutFolder, record: SlideRecord, kinds: TissueKinds) -> str:
    """What a map is drawn from."""
    sealed = out.slide(record.slide_id).features_record()
    files = dict(sorted(sealed.files.items())) if sealed else {}
    return hashlib.sha256(json.dumps([files, kinds.digest]).encode()).hexdigest()


def _note(folder: Path, record: SlideRecord) -> dict[str, object]:
    """What is known of a map that was drawn; nothing where there is none, or it is damaged."""
    try:
        found = json.loads((folder / ".drawn" / f"{record.slide_id}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _noted(folder: Path, record: SlideRecord) -> list[float]:
    mm2 = _note(folder, record).get("mm2")
    return [float(area) for area in mm2] if isinstance(mm2, list) else []


def _is_drawn(out: OutFolder, record: SlideRecord, kinds: TissueKinds, folder: Path) -> bool:
    """Whether its map is there, of these features and kinds; nothing of the slide is read for that."""
    pictures = [folder / f"{record.slide_id}.geojson", *([folder / f"{record.slide_id}.jpg"] if record.views else [])]
    return all(file.is_file() for file in pictures) and _note(folder, record).get("mark") == _mark(out, record, kinds)


def _write_areas(folder: Path, mapped: Sequence[Mapped], kinds: TissueKinds) -> None:
    columns = [*(f"{name} mm2" for name in _names(kinds)), "none of these mm2"]
    rows: list[dict[str, object]] = []
    for record, mm2 in mapped:
        known = {column: round(area, 4) for column, area in zip(columns, mm2, strict=True)}
        rows.append({"slide_id": record.slide_id, "file": record.description.file, **known})
    write_atomically(folder / "areas.csv", csv_table(["slide_id", "file", *columns], rows))


def _show_kinds(out: OutFolder, folder: Path, mapped: Sequence[Mapped], kinds: TissueKinds, say: Say) -> None:
    """kinds.png, with tiles from slides that are at hand."""
    files = files_at_hand(out)
    at_hand = _evenly([record for record, _ in mapped if record.sha256 in files])
    maps = [_map(out, record, kinds) for record in at_hand]
    pictures: dict[int, dict[int, RGB]] = {}
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    for place, tiles in _examples(kinds, maps).items():
        for rank, (number, index) in enumerate(tiles):
            wanted.setdefault(number, []).append((place, rank, index))
    for number, places in wanted.items():
        record, description = at_hand[number], at_hand[number].description
        try:
            with open_slide(files[record.sha256], description.mpp, description.mpp_source, record.sha256) as slide:
                for place, rank, index in places:
                    if (tile := read_tile(slide, maps[number].stored.grid, index)) is not None:
                        pictures.setdefault(place, {})[rank] = tile
        except PathovitError as error:
            say(f"{description.file}: no example tiles of it ({error})")
    if not pictures:
        say("no slide is where it was, so that kinds.png is as it was drawn before, or missing")
        return
    total = np.sum([mm2 for _, mm2 in mapped], axis=0)
    shown = {place: [tiles[rank] for rank in sorted(tiles)] for place, tiles in pictures.items()}
    draw_kinds(folder / "kinds.png", _names(kinds), list(total), shown)


def _evenly(records: Sequence[SlideRecord]) -> list[SlideRecord]:
    """At most as many as kinds are found on."""
    if not records:
        return []
    places = np.linspace(0, len(records) - 1, min(FITTED_SLIDES, len(records))).round().astype(int)
    return [records[place] for place in np.unique(places)]


def _examples(kinds: TissueKinds, maps: Sequence[TissueMap]) -> dict[int, list[tuple[int, int]]]:
    """Of each kind the tiles that are most like it, as (number of the map, tile), from different slides where there are some."""
    found = {}
    for place in range(len(kinds.centres)):
        near = []
        for number, one in enumerate(maps):
            tiles = np.flatnonzero(one.kind == place)
            best = tiles[np.argsort(one.unlike[tiles], kind="stable")][:EXAMPLES]
            near += [(rank // FROM_ONE_SLIDE, float(one.unlike[tile]), number, int(tile)) for rank, tile in enumerate(best)]
        found[place] = [(number, tile) for _, _, number, tile in sorted(near)[:EXAMPLES]]
    return found
