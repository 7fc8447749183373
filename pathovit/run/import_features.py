"""Features that other programs stored, into an output folder: `train`, `evaluate`, `predict` and `teach` then read them as our own."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.elsewhere import IN_TRIDENT, our_name
from pathovit.encoders.records import RECORDS
from pathovit.errors import NoSlidesError, SettingsError, SlideError, StoreError
from pathovit.files import file_sha256, slide_stem
from pathovit.geometry import XY, Box
from pathovit.manifest import ManifestRow, read_manifest, rows_of_slides
from pathovit.outputs.features import FeatureAttributes, TileVerdict, trial_of
from pathovit.outputs.folder import OutFolder, SlideFolder
from pathovit.outputs.foreign_features import NOMINAL, Asked, ForeignFeatures, read_foreign
from pathovit.outputs.inventory import holding
from pathovit.outputs.names import Names, without_names
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import IMPORTED, EmbedRecipe, finish_recipe
from pathovit.outputs.records import Outcome, SlideRecord, SlideVerdict, TileCounts
from pathovit.outputs.runs import RUN, RunLog, RunRecord, SlideOutcome, last_run
from pathovit.outputs.store import FeatureStore
from pathovit.run.jobs import check_mpp
from pathovit.settings import Settings, TileSpec
from pathovit.show.table import Contents, write_table
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.identity import slide_id
from pathovit.slides.tiling import TileGrid
from pathovit.study.cohort import OnStep
from pathovit.tables import Say
from pathovit.text import counted

LARGEST_FLOAT16 = 65_000.0
OF_FEATURES, GRID = "features_", re.compile(r"h5_files|\d+x_\d+px_\d+px_overlap")  # folders of CLAM and TRIDENT
OTHER_FOLDERS = ("patches", "slide_features")  # of these programs, which hold no features of tiles


@dataclass(frozen=True)
class ImportResult:
    """What came of it."""

    out: OutFolder
    imported: int
    there: int  # that lay in the folder already
    failed: tuple[SlideError, ...]


def import_features(
    features: Sequence[Path], out: Path, *, mpp: float | None = None, manifest: Path | None = None, encoder: str | None = None,
    patches: Path | None = None, keep_names: bool = False, say: Say = lambda text: None, on_step: OnStep = lambda done, total: None,
) -> ImportResult:  # fmt: skip
    """Take over features of TRIDENT, CLAM, STAMP or AtlasPatch.

    Parameters
    ----------
    features : .h5 files, or folders of them
    mpp : um per level-0 pixel; where a file says something else, that is said
    manifest : a table with a row a slide, of which mpp, patient and label are taken
    encoder : which made them, by our name; where a file says something else, that is said
    patches : CLAM's folder of that name

    Raises
    ------
    NoSlidesError : there is no .h5 file
    SettingsError : something that must be known is not, and nothing more is taken over; or the folder holds results of runs
    """
    if mpp is not None:
        check_mpp(mpp)
    files = _files(features)
    rows = _rows(files, manifest, say) if manifest else {}
    settings = Settings()
    imported, there, failed, nominal, twins = 0, 0, [], 0, 0
    said: list[str] = []
    with holding(out) as (folder, _):
        _refuse_runs(folder)
        names = None if keep_names else Names.read(folder.path)
        began = time.monotonic()
        todo = [_given(file, rows.get(file), names) for file in files]
        if names is not None:
            names.write(folder.path)  # what ids stand for is known before there is one
        outcomes, encoders = [], []
        for place, one in enumerate(todo):
            on_step(place, len(todo))
            slide = folder.slide(one.slide_id)
            asked = Asked((mpp, mpp) if mpp else None, encoder=encoder, patches=patches)
            if one.mpp:
                asked = replace(asked, mpp=one.mpp, mpp_source="manifest")
            try:
                record = slide.record() if slide.features.is_dir() else None
                if record and not (other := _otherwise(record, one, asked) or _damage(slide, record)):
                    there += 1
                    encoders.append(str(record.recipe.encoder["encoder"]))
                elif record and record.prediction is not None:
                    raise StoreError(
                        one.file, f"it lies there with {other}, and with an answer. Import it into another folder (--out)."
                    )
                else:
                    if record:
                        one = replace(one, patient=one.patient or record.patient, label=one.label or record.label)
                        said.append(f"taken over anew: what lay there had {other}")
                    found = read_foreign(one.file, asked)
                    twins += _put(folder, one, found, settings)
                    nominal += found.mpp_source.startswith(NOMINAL)
                    said += found.remarks
                    encoders.append(found.encoder)
                    imported += 1
            except SlideError as error:
                failed.append(error)
                reason = error.reason if names is None else without_names(error.reason, one.file, out)
                told = Outcome(
                    one.called, reason, one.slide_id, patient=one.patient, when=time.strftime("%Y-%m-%d"), code=error.code.value
                )
                folder.settle(one.file, one.slide_id, told)
                outcomes.append(SlideOutcome(one.called, "failed", one.slide_id, reason, error.code.value))
                continue
            folder.settle(one.file, one.slide_id, None)
            outcomes.append(SlideOutcome(one.called, "done", one.slide_id, ""))
        if encoders:
            settings = replace(settings, embed=replace(settings.embed, encoder=encoders[0]))
        log = RunLog(
            folder,
            RunRecord(
                command=("import",), started=time.strftime("%Y-%m-%dT%H:%M:%S%z"), settings=settings.to_dict(), weights_sha256=IMPORTED,
                model=None, model_sha256=None, demonstration=False, slides=tuple(one.slide_id for one in todo),
            ),
            names,
        )  # fmt: skip
        log.end(3 if failed else 0, time.monotonic() - began, tuple(outcomes))
        write_table(folder, Contents.of(folder))
    for remark, times in Counter(said).items():
        say(f"{counted(times, 'slide')}: {remark}")
    if nominal:
        say(
            f"{counted(nominal, 'slide')}: the pixel size is that of the objective they name ({NOMINAL}), which can be a tenth off. Give the true one with --mpp or --manifest"
        )
    if twins:
        say(
            f"{counted(twins, 'tile')} have the features of another tile to the last bit: white squares in place of what could not be read. They count as unreadable"
        )
    return ImportResult(OutFolder(out), imported, there, tuple(failed))


def _otherwise(record: SlideRecord, one: _Given, asked: Asked) -> str:
    """What lies there of a slide and is asked for otherwise now; nothing of what is not said."""
    lies = {
        "pixel size": (record.description.mpp, asked.mpp),
        "encoder": (record.recipe.encoder["encoder"], asked.encoder and our_name(asked.encoder, IN_TRIDENT)),
        "patient": (record.patient, one.patient),
        "label": (record.label, one.label),
    }
    return ", ".join(f"another {name}" for name, (there, now) in lies.items() if now is not None and now != there)


def _damage(slide: SlideFolder, record: SlideRecord) -> str:
    """What lies there and is not as it was written."""
    damaged = slide.look(record, None).damaged
    return f"{', '.join(damaged[:3])} missing or changed" if damaged else ""


def _files(given: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    among: dict[Path, None] = {}  # others in a folder: what is named is meant
    for path in given:
        if not path.exists():
            raise NoSlidesError(f"{path}: there is no such file or folder.")
        inside = [path] if path.is_file() else [one for one in sorted(path.rglob("*.h5")) if not one.name.startswith(".")]
        inside = [one for one in inside if one == path or not one.parent.name.startswith(OTHER_FOLDERS)]
        found |= dict.fromkeys(inside)
        among |= dict.fromkeys(one for one in inside if one != path)
    _refuse_twice(list(among))
    if not found:
        pt = any(next(path.rglob("*.pt"), None) for path in given if path.is_dir())
        raise NoSlidesError(
            f"{given[0]}: there is no .h5 file in it."
            + (" CLAM's .pt files hold no positions: give the folder h5_files beside them." if pt else "")
        )
    return list(found)


def _refuse_twice(files: Sequence[Path]) -> None:
    """Features of one slide by several encoders, or for several programs, side by side: they would be several slides."""
    there: dict[tuple[Path, str], Path] = {}
    for file in files:
        if _is_of_layout(file.parent):
            at = next(one for one in file.parents if not _is_of_layout(one))
            other = there.setdefault((at, file.name), file)
            if other != file:
                raise SettingsError(
                    f"{other} and {file} have one name, and would be two slides. Give the folder of one of them: {other.parent}, or "
                    f"{file.parent}."
                )


def _is_of_layout(folder: Path) -> bool:
    """Whether a folder says how features were made, and not of which slides: TRIDENT's of an encoder or a resolution, and CLAM's."""
    encoder = our_name(folder.name.removeprefix(OF_FEATURES), IN_TRIDENT).partition(":")[0]
    is_encoders = folder.name.startswith(OF_FEATURES) and (encoder in RECORDS or GRID.fullmatch(folder.parent.name))
    return bool(is_encoders or GRID.fullmatch(folder.name))


def _rows(files: Sequence[Path], manifest: Path, say: Say) -> Mapping[Path, ManifestRow]:
    """The row of each file. Tables name slides, with their endings, and files of features are named after these."""
    rows = [
        replace(row, slide=row.slide.with_name(slide_stem(row.slide.name)), in_folder=False)
        for row in read_manifest(manifest, say)
    ]
    slides = {file.with_suffix(""): file for file in files}
    return {slides[slide]: row for slide, row in rows_of_slides(rows, list(slides), manifest, say).items()}


def _refuse_runs(folder: OutFolder) -> None:
    """Records of runs say how their slides were made: those of an import would take their place."""
    if (folder.path / RUN).exists() and last_run(folder).weights_sha256 != IMPORTED:
        raise SettingsError(f"{folder.path}: it holds results of a run. Import into a folder of its own (--out).")


@dataclass(frozen=True)
class _Given:
    """A file to be taken over, and what is known of its slide."""

    file: Path
    sha256: str
    slide_id: str
    name: str  # of the slide, if it may be told
    called: str  # by results
    mpp: XY | None
    patient: str | None  # or what stands for them
    label: str | None


def _given(file: Path, row: ManifestRow | None, names: Names | None) -> _Given:
    digest = file_sha256(file)
    known = slide_id("" if names else file.stem, digest)
    patient = row.patient if row else None
    called = file.stem
    if names is not None:
        called = names.note(file.with_suffix(""), patient, known)
        patient = names.patient_id(patient) if patient else None
    return _Given(
        file,
        digest,
        known,
        "" if names else file.stem,
        called,
        row.mpp if row else None,
        patient,
        row.label("label") if row else None,
    )


def _put(out: OutFolder, given: _Given, found: ForeignFeatures, settings: Settings) -> int:
    """Write the features of a slide, and last its record; returns how many tiles are taken for unreadable."""
    order = np.lexsort((found.xy[:, 0], found.xy[:, 1]))  # as our grids have them
    values, xy, known = found.features[order], found.xy[order], given.slide_id
    verdict = np.where(np.isfinite(values).all(1), np.uint8(TileVerdict.OK), np.uint8(TileVerdict.REJECTED))
    twins = twin_rows(values)
    verdict[twins] = TileVerdict.UNREADABLE
    if not (verdict == TileVerdict.OK).any():
        raise StoreError(given.file, "not one of its tiles has features of its own.")
    spec = TileSpec(found.tile_px, round(found.tile_mpp, 6), max(1, round(found.tile_px * found.stride_l0 / found.tile_l0)))
    grid = TileGrid(
        spec, xy, np.ones(len(xy), np.float32), (found.tile_l0,) * 2, (found.stride_l0,) * 2, (int(xy[:, 0].min()), int(xy[:, 1].min())),
        0, (round(found.tile_l0),) * 2, 1, 1.0, max(len(xy), found.tiles or 0),
    )  # fmt: skip
    encoder = {
        "encoder": found.encoder,
        "weights_sha256": IMPORTED,
        "dim": values.shape[1],
        "tile_px": found.tile_px,
        "program": found.program,
    }
    recipe = EmbedRecipe(
        {
            "slide_sha256": given.sha256, "mpp": list(found.mpp), "reader": IMPORTED, "tissue": {"program": found.program},
            "tiles": asdict(spec), "encoder": encoder, "embed": {"chunk_tiles": settings.embed.chunk_tiles, "max_tiles": len(xy) if found.tiles else None}, "steps": {},
        }
    )  # fmt: skip
    attributes = FeatureAttributes(
        found.mpp, found.mpp_source, found.size, Box(0, 0, *found.size), False, IMPORTED, recipe, (1.0, 1.0)
    )
    large = float(np.abs(values[verdict == TileVerdict.OK]).max()) > LARGEST_FLOAT16
    dtype = "float32" if large else "float16"
    store = FeatureStore(out.slide(known), given.file)
    chunk = settings.embed.chunk_tiles
    store.create(grid, values.shape[1], chunk, attributes, np.zeros((1, 1), np.uint8), dtype)
    for index in range(-(-len(xy) // chunk)):
        part = slice(index * chunk, (index + 1) * chunk)
        read = (verdict[part] == TileVerdict.OK)[:, None]
        store.write_chunk(index, np.where(read, values[part], np.nan).astype(dtype), verdict[part])
    sealed = store.seal()
    counts = TileCounts(**{one.name.lower(): int((verdict == one).sum()) for one in TileVerdict})
    remarks = [*found.remarks, *([] if found.size_known else ["its size is as far as its tiles reach"])]
    if len(np.unique(grid.lattice(), axis=0)) < len(xy):
        remarks.append("its tiles lie on several grids: on a map some share a cell")
    degraded = counts.unread > settings.run.max_unreadable * counts.all
    record = SlideRecord(
        slide_id=known, sha256=given.sha256, description=SlideDescription(
            given.name, f"features of {found.program}", found.size, found.mpp, found.mpp_source, IMPORTED
        ),
        survey=Survey(float(len(xy) * (found.stride_l0 * found.mpp[0] / 1000) ** 2), len(xy), remarks=tuple(remarks)),
        patient=given.patient, label=given.label, verdict=SlideVerdict.DEGRADED if degraded else SlideVerdict.OK,
        reason="; ".join([*([f"{counts.unread} of {counts.all} tiles could not be read"] if counts.unread else []), *remarks]),
        trial=trial_of(len(xy), found.tiles) if found.tiles else "", tiles=counts, prediction=None, heatmap_check=None, seconds=sealed.seconds, recipe=recipe,
        finish_recipe=finish_recipe(settings, None, given.patient, given.label), versions=versions(),
    )  # fmt: skip
    out.slide(known).write(record, [])
    return len(twins)


def twin_rows(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Rows that are those of another tile to the last bit: TRIDENT puts a white square in the place of a tile that it cannot read."""
    rows = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values]
    times = Counter(rows)
    return np.flatnonzero([times[row] > 1 for row in rows])
