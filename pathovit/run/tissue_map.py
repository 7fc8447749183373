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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pathovit.errors import NoSlidesError, PathovitError, SettingsError, SlideError
from pathovit.files import csv_table, write_atomically
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
    kinds.save(folder)
    maps = _draw_all(out, records, kinds, folder, say, on_slide)
    _write_areas(folder, records, maps, kinds)
    _show_kinds(out, folder, records, kinds, maps, say)
    return kinds


def _read(out: OutFolder, record: SlideRecord) -> SlideFeatures:
    return FeatureStore(out.slide(record.slide_id), Path(record.description.file)).read()


def _found(out: OutFolder, records: Sequence[SlideRecord], before: TissueKinds | None) -> TissueKinds:
    """The kinds of before, with new ones for slides that are new; or all of them, found now."""
    if before is None:
        chosen = np.unique(np.linspace(0, len(records) - 1, min(FITTED_SLIDES, len(records))).round().astype(int))
        return TissueKinds.fit([_read(out, records[place]) for place in chosen])
    added = [record for record in records if record.slide_id not in before.slides][:FITTED_SLIDES]
    return before.grown([_read(out, record) for record in added]) if added else before


def _draw_all(
    out: OutFolder, records: Sequence[SlideRecord], kinds: TissueKinds, folder: Path, say: Say, on_slide: OnSlide
) -> dict[str, TissueMap]:
    """Maps by slide_id; pictures that are there already, of these kinds and features, stay."""
    maps = {}
    for number, record in enumerate(records, start=1):
        try:
            stored = _read(out, record)
            kind, unlike = kinds.tell(stored)
        except (SlideError, SettingsError) as error:
            say(f"{record.description.file}: no tissue map ({error})")
            continue
        found = TissueMap(stored, kind, unlike, tuple(kinds.said(place) for place in range(len(kinds.centres))))
        maps[record.slide_id] = found
        mark = _mark(found)
        if not _is_drawn(folder, record.slide_id, mark):
            areas = found.areas()
            if views := load_views(out.slide(record.slide_id).path, record.views):
                draw_tissue_map(folder / f"{record.slide_id}.jpg", views, found, areas)
            else:
                say(f"{record.description.file}: no picture of it is stored, so that its tissue map is in numbers alone")
            write_tissue_areas(folder / f"{record.slide_id}.geojson", found, areas)
            write_atomically(folder / ".drawn" / record.slide_id, mark.encode())
        on_slide(number, len(records))
    return maps


def _mark(found: TissueMap) -> str:
    """What a picture was drawn from."""
    return hashlib.sha256(found.kind.tobytes() + "\n".join(found.names).encode()).hexdigest()


def _is_drawn(folder: Path, slide_id: str, mark: str) -> bool:
    files = [folder / f"{slide_id}.jpg", folder / f"{slide_id}.geojson", folder / ".drawn" / slide_id]
    return all(file.is_file() for file in files) and files[-1].read_text() == mark


def _write_areas(folder: Path, records: Sequence[SlideRecord], maps: Mapping[str, TissueMap], kinds: TissueKinds) -> None:
    rows: list[dict[str, object]] = []
    columns = [*(f"{kinds.said(place)} mm2" for place in range(len(kinds.centres))), "none of these mm2"]
    for record in records:
        if found := maps.get(record.slide_id):
            areas = {column: round(area, 4) for column, area in zip(columns, found.areas_mm2(), strict=True)}
            rows.append({"slide_id": record.slide_id, "file": record.description.file, **areas})
    write_atomically(folder / "areas.csv", csv_table(["slide_id", "file", *columns], rows))


def _show_kinds(
    out: OutFolder, folder: Path, records: Sequence[SlideRecord], kinds: TissueKinds, maps: Mapping[str, TissueMap], say: Say
) -> None:
    """kinds.png, with tiles from slides that are at hand."""
    files = files_at_hand(out)
    by_id = {record.slide_id: record for record in records}
    chosen = _examples(kinds, {name: found for name, found in maps.items() if by_id[name].sha256 in files})
    pictures: dict[int, dict[int, RGB]] = {}
    wanted: dict[str, list[tuple[int, int, int]]] = {}
    for place, tiles in chosen.items():
        for rank, (slide_id, index) in enumerate(tiles):
            wanted.setdefault(slide_id, []).append((place, rank, index))
    for slide_id, places in wanted.items():
        record = by_id[slide_id]
        description = record.description
        try:
            with open_slide(files[record.sha256], description.mpp, description.mpp_source, record.sha256) as slide:
                for place, rank, index in places:
                    if (tile := read_tile(slide, maps[slide_id].stored.grid, index)) is not None:
                        pictures.setdefault(place, {})[rank] = tile
        except PathovitError as error:
            say(f"{description.file}: no example tiles of it ({error})")
    if not pictures:
        say("no slide is where it was, so that kinds.png is as it was drawn before, or missing")
        return
    total = np.sum([found.areas_mm2() for found in maps.values()], axis=0)
    shown = {place: [tiles[rank] for rank in sorted(tiles)] for place, tiles in pictures.items()}
    draw_kinds(folder / "kinds.png", [kinds.said(place) for place in range(len(kinds.centres))], list(total), shown)


def _examples(kinds: TissueKinds, maps: Mapping[str, TissueMap]) -> dict[int, list[tuple[str, int]]]:
    """Of each kind the tiles that are most like it, from different slides where there are some."""
    found = {}
    for place in range(len(kinds.centres)):
        near = []
        for slide_id, one in maps.items():
            tiles = np.flatnonzero(one.kind == place)
            best = tiles[np.argsort(one.unlike[tiles], kind="stable")]
            near += [
                (rank // FROM_ONE_SLIDE, float(one.unlike[tile]), slide_id, int(tile))
                for rank, tile in enumerate(best[:EXAMPLES])
            ]
        found[place] = [(slide_id, tile) for _, _, slide_id, tile in sorted(near)[:EXAMPLES]]
    return found
