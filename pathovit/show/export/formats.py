"""The layouts that `pathovit export` knows, and all slides of a folder in one of them."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pathovit.errors import SettingsError, SlideError
from pathovit.files import csv_table, write_atomically
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.runs import files_at_hand
from pathovit.show.export.dicom import cannot_be_dicom, write_dicom
from pathovit.show.export.hdf5 import nominal_magnification, write_clam, write_stamp, write_trident
from pathovit.show.export.ome_zarr import write_ome_zarr
from pathovit.show.export.slides import ExportedSlide, lacks_map, named
from pathovit.show.export.spatialdata import write_spatialdata
from pathovit.show.export.tiles import write_anndata, write_csv, write_parquet
from pathovit.show.export.wsinfer import write_wsinfer
from pathovit.tables import table_text
from pathovit.text import counted

MAPPING = "slides.csv"
MOST_ROUNDED = 0.15  # of a resolution, when it is called by an objective
Write = Callable[[Path, ExportedSlide], None]


@dataclass(frozen=True)
class Format:
    """A layout: who reads it, what it says beside the features, and how a slide is written."""

    readers: str
    writes: tuple[Write, ...] = ()
    whole: Callable[[Path, Sequence[ExportedSlide]], tuple[list[str], list[SlideError]]] | None = None  # of all slides at once
    by_objective: bool = False  # it knows resolutions as objectives alone
    lacks: Callable[[ExportedSlide], str] = lambda slide: ""  # why nothing can be written of a slide
    of_files: bool = False  # it needs the slides themselves


FORMATS = {
    "trident": Format("TRIDENT", (write_trident,), by_objective=True),
    "clam": Format("CLAM", (write_clam,)),
    "h5": Format("TRIDENT and CLAM", (write_trident, write_clam), by_objective=True),
    "stamp": Format("STAMP 2.1 and later", (write_stamp,)),
    "anndata": Format("scanpy, squidpy (.h5ad)", (write_anndata,)),
    "csv": Format("anything that reads tables: positions and scores", (write_csv,)),
    "parquet": Format("the same, with features", (write_parquet,)),
    "wsinfer": Format("WSInfer and QuPath, which run it on tiles", whole=write_wsinfer, lacks=lacks_map),
    "ome-zarr": Format("napari, Vitessce, neuroglancer (0.5)", (partial(write_ome_zarr, version="0.5"),), lacks=lacks_map),
    "ome-zarr-0.4": Format("QuPath, Bio-Formats, OMERO (0.4)", (partial(write_ome_zarr, version="0.4"),), lacks=lacks_map),
    "spatialdata": Format("LazySlide and spatialdata", (write_spatialdata,)),
    "dicom": Format("DICOM archives and Slim, beside DICOM slides", (write_dicom,), lacks=cannot_be_dicom, of_files=True),
}


@dataclass(frozen=True)
class Exported:
    """What was written, what could not be, and what must be said of it."""

    written: int
    failed: tuple[SlideError, ...]
    left_out: Mapping[str, Sequence[str]]  # why -> slide_ids
    remarks: tuple[str, ...]


def export(
    out: OutFolder, to: str, folder: Path, naming: str = "id", on_step: Callable[[int, int], None] | None = None
) -> Exported:
    """Write every finished slide of a folder as another program reads it: each file whole or not at all, and slides.csv, which says what is what.

    Parameters
    ----------
    naming : of files: `id`, or `stem` for the names of slide files

    Raises
    ------
    SettingsError : the format is unknown, what it needs is not installed, or two slides would share a name; nothing is written
    """
    if to not in FORMATS:
        raise SettingsError(f"--to {to!r} is unknown. Use {', '.join(FORMATS)}.")
    if FORMATS[to].whole is None:
        _refuse_other_tables(folder / MAPPING)
    records, _ = out.finished()
    fit, left_out = [], defaultdict(list)
    at_hand = files_at_hand(out) if FORMATS[to].of_files else {}
    for known in named(out, records, naming):
        slide = replace(known, file=at_hand.get(known.record.sha256))
        if lacks := FORMATS[to].lacks(slide):
            left_out[lacks].append(slide.slide_id)
        else:
            fit.append(slide)
    if whole := FORMATS[to].whole:
        said, damaged = whole(folder, fit)
        return Exported(len(fit) - len(damaged), tuple(damaged), left_out, tuple(said))
    written: list[Mapping[str, object]] = []
    failed, remarks = [], set()
    for place, known in enumerate(fit):
        if on_step:
            on_step(place, len(fit))
        slide = replace(known)  # what it reads goes with it
        try:
            for write in FORMATS[to].writes:
                write(folder, slide)
        except SlideError as error:
            failed.append(error)
            continue
        written.append(_row(slide, naming))
        remarks |= set(_remarks(FORMATS[to], slide))
    if written:
        earlier = _earlier(folder / MAPPING, list(written[0]), {str(row["name"]) for row in written})
        if earlier:
            remarks.add(
                f"{folder} holds {counted(len(earlier), 'slide')} of an earlier export, too, which readers of a whole folder take along"
            )
        write_atomically(folder / MAPPING, csv_table(list(written[0]), [*earlier, *written]))
    return Exported(len(written), tuple(failed), left_out, tuple(sorted(remarks)))


def _earlier(path: Path, columns: Sequence[str], names: Collection[str]) -> list[Mapping[str, object]]:
    """Rows of an export that was made into the same folder before, of files that were not written again."""
    if not path.is_file():
        return []
    table = csv.DictReader(io.StringIO(table_text(path), newline=""))
    rows = [{name: row.get(name) or "" for name in columns} for row in table]
    return [row for row in rows if row["name"] not in names and row["name"].removeprefix("'") not in names]


def _refuse_other_tables(path: Path) -> None:
    """Before anything is written: a table of somebody else would be overwritten."""
    if path.is_file() and not table_text(path).startswith("name,slide_id,"):
        raise SettingsError(f"{path}: it is not of an export. Choose another --folder.")


def _remarks(format: Format, slide: ExportedSlide) -> list[str]:
    stored, found = slide.features, []
    if format.of_files:
        found.append("DICOM objects name the patient as their slide does, or no archive would find them: they are private")
    if format.by_objective:
        for mpp in (stored.grid.spec.mpp, stored.mpp[0]):
            power = nominal_magnification(mpp or 1)
            if abs(power * (mpp or 1) / 10 - 1) > MOST_ROUNDED:
                found.append(
                    f"{mpp:.4g} um/px is called {power}x there, which stands for {10 / power:.4g}: their readers know objectives alone"
                )
    if stored.mpp[0] != stored.mpp[1] and abs(stored.mpp[0] / stored.mpp[1] - 1) > 0.01:
        found.append(f"{slide.slide_id}: its pixels are not square; tiles of other programs are")
    return found


def _row(slide: ExportedSlide, naming: str) -> Mapping[str, object]:
    """What slides.csv says of a slide."""
    record, stored = slide.record, slide.features
    (mpp_x, mpp_y), (width, height) = stored.mpp, stored.attributes.level0_size
    return {
        "name": slide.name,
        "slide_id": slide.slide_id,
        "file": slide.out.name_of(slide.slide_id) if naming == "stem" else record.description.file,
        "patient": record.patient or "",
        "label": record.label or "",
        "sha256": record.sha256,
        "mpp_x": mpp_x,
        "mpp_y": mpp_y,
        "mpp_source": stored.attributes.mpp_source,
        "width": width,
        "height": height,
        "encoder": stored.recipe.encoder["encoder"],
        "trial": stored.trial,
    }
