"""Features that other programs stored, into an output folder: `train`, `evaluate`, `predict` and `teach` then read them as our own."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import NoSlidesError, SettingsError, SlideError, StoreError
from pathovit.files import file_sha256
from pathovit.geometry import Box
from pathovit.manifest import ManifestRow, read_manifest
from pathovit.manifest import Names as TableNames
from pathovit.outputs.features import FeatureAttributes, TileVerdict
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.foreign_features import NOMINAL, Asked, ForeignFeatures, read_foreign
from pathovit.outputs.inventory import holding
from pathovit.outputs.names import Names
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import EmbedRecipe, finish_recipe
from pathovit.outputs.records import SlideRecord, SlideVerdict, TileCounts
from pathovit.outputs.runs import RunLog, RunRecord, SlideOutcome
from pathovit.outputs.store import FeatureStore
from pathovit.settings import EmbedSettings, Settings, TileSpec
from pathovit.show.table import Contents, write_table
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.identity import slide_id
from pathovit.slides.tiling import TileGrid
from pathovit.study.cohort import OnStep
from pathovit.tables import Say
from pathovit.text import counted

IMPORTED = "imported"  # in place of the digest of weights, which other programs do not tell
LARGEST_FLOAT16 = 65_000.0


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
    mpp : um per level-0 pixel, where no file says it
    manifest : a table with a row a slide, of which mpp, patient and label are taken
    encoder : which made them, where no file says it
    patches : CLAM's folder of that name

    Raises
    ------
    NoSlidesError : there is no .h5 file
    SettingsError : something that must be known is not; nothing more is taken over
    """
    files = _files(features)
    rows = _rows(files, read_manifest(manifest, say) if manifest else [])
    settings = Settings(embed=EmbedSettings(encoder=encoder or "reference"))
    imported, there, failed, nominal, twins = 0, 0, [], 0, 0
    with holding(out) as (folder, _):
        names = None if keep_names else Names.read(folder.path)
        began = time.monotonic()
        outcomes = []
        for place, file in enumerate(files):
            on_step(place, len(files))
            row = rows.get(file)
            asked = (
                Asked(row.mpp, "manifest", encoder, patches)
                if row and row.mpp
                else Asked((mpp, mpp) if mpp else None, encoder=encoder, patches=patches)
            )
            digest = file_sha256(file)
            known = slide_id(file.stem if keep_names else "", digest)
            patient = row.patient if row else None
            if names is not None:
                names.note(file.with_suffix(""), patient, known)
                patient = names.patient_id(patient) if patient else None
            try:
                if folder.slide(known).record():
                    there += 1
                else:
                    found = read_foreign(file, asked)
                    twins += _put(
                        folder, known, digest, file, found, patient, row.label("label") if row else None, settings, keep_names
                    )
                    nominal += found.mpp_source.startswith(NOMINAL)
                    imported += 1
            except SlideError as error:
                failed.append(error)
                continue
            outcomes.append(SlideOutcome("" if names else file.stem, "done", known, ""))
        log = RunLog(
            folder,
            RunRecord(
                command=("import",), started=time.strftime("%Y-%m-%dT%H:%M:%S%z"), settings=settings.to_dict(), weights_sha256=IMPORTED,
                model=None, model_sha256=None, demonstration=False, slides=tuple(outcome.slide_id for outcome in outcomes),
            ),
            names,
        )  # fmt: skip
        log.end(3 if failed else 0, time.monotonic() - began, tuple(outcomes))
        write_table(folder, Contents.of(folder))
    if nominal:
        say(
            f"{counted(nominal, 'slide')}: the pixel size is that of the objective they name ({NOMINAL}), which can be a tenth off. Give the true one with --mpp or --manifest"
        )
    if twins:
        say(
            f"{counted(twins, 'tile')} have the features of another tile to the last bit: white squares in place of what could not be read. They count as unreadable"
        )
    return ImportResult(OutFolder(out), imported, there, tuple(failed))


def _files(given: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in given:
        if not path.exists():
            raise NoSlidesError(f"{path}: there is no such file or folder.")
        inside = sorted(path.rglob("*.h5")) if path.is_dir() else [path]
        found |= dict.fromkeys(
            one for one in inside if not one.name.startswith(".") and one.parent.name not in ("patches", "slide_features")
        )
    if not found:
        pt = any(next(path.rglob("*.pt"), None) for path in given if path.is_dir())
        raise NoSlidesError(
            f"{given[0]}: there is no .h5 file in it."
            + (" CLAM's .pt files hold no positions: give the folder h5_files beside them." if pt else "")
        )
    return list(found)


def _rows(files: Sequence[Path], rows: Sequence[ManifestRow]) -> Mapping[Path, ManifestRow]:
    """The row of each file, by its name without the ending."""
    names = TableNames({file: [file.stem] for file in files})
    found: dict[Path, ManifestRow] = {}
    for row in rows:
        fitting, _ = names.find(row.slide.name)
        if len(fitting) > 1:
            raise SettingsError(
                f"Line {row.line}: {row.slide.name} can mean {' and '.join(map(str, fitting[:2]))}. Import one folder at a time."
            )
        for file in fitting:
            found[file] = row
    return found


def _put(
    out: OutFolder, known: str, digest: str, file: Path, found: ForeignFeatures, patient: str | None, label: str | None, settings: Settings,
    keep_names: bool,
) -> int:  # fmt: skip
    """Write the features of a slide, and last its record; returns how many tiles are taken for unreadable."""
    order = np.lexsort((found.xy[:, 0], found.xy[:, 1]))  # as our grids have them
    values, xy = found.features[order], found.xy[order]
    verdict = np.where(np.isfinite(values).all(1), np.uint8(TileVerdict.OK), np.uint8(TileVerdict.REJECTED))
    twins = twin_rows(values)
    verdict[twins] = TileVerdict.UNREADABLE
    if not (verdict == TileVerdict.OK).any():
        raise StoreError(file, "not one of its tiles has features of its own.")
    spec = TileSpec(found.tile_px, round(found.tile_mpp, 6), max(1, round(found.tile_px * found.stride_l0 / found.tile_l0)))
    grid = TileGrid(
        spec, xy, np.ones(len(xy), np.float32), (found.tile_l0,) * 2, (found.stride_l0,) * 2, (int(xy[:, 0].min()), int(xy[:, 1].min())),
        0, (round(found.tile_l0),) * 2, 1, 1.0, len(xy),
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
            "slide_sha256": digest, "mpp": list(found.mpp), "reader": IMPORTED, "tissue": {"program": found.program},
            "tiles": asdict(spec), "encoder": encoder, "embed": {"chunk_tiles": settings.embed.chunk_tiles, "max_tiles": None}, "steps": {},
        }
    )  # fmt: skip
    attributes = FeatureAttributes(
        found.mpp, found.mpp_source, found.size, Box(0, 0, *found.size), False, IMPORTED, recipe, (1.0, 1.0)
    )
    large = float(np.abs(values[verdict == TileVerdict.OK]).max()) > LARGEST_FLOAT16
    dtype = "float32" if large else "float16"
    store = FeatureStore(out.slide(known), file)
    chunk = settings.embed.chunk_tiles
    store.create(grid, values.shape[1], chunk, attributes, np.zeros((1, 1), np.uint8), dtype)
    values = np.where((verdict == TileVerdict.OK)[:, None], values, np.nan).astype(dtype)
    for index in range(-(-len(xy) // chunk)):
        part = slice(index * chunk, (index + 1) * chunk)
        store.write_chunk(index, values[part], verdict[part])
    sealed = store.seal()
    counts = TileCounts(**{one.name.lower(): int((verdict == one).sum()) for one in TileVerdict})
    remarks = [] if found.size_known else ["its size is as far as its tiles reach"]
    if len(np.unique(grid.lattice(), axis=0)) < len(xy):
        remarks.append("its tiles lie on several grids: on a map some share a cell")
    degraded = counts.unread > settings.run.max_unreadable * counts.all
    record = SlideRecord(
        slide_id=known, sha256=digest, description=SlideDescription(
            file.stem if keep_names else "", f"features of {found.program}", found.size, found.mpp, found.mpp_source, IMPORTED
        ),
        survey=Survey(float(len(xy) * (found.stride_l0 * found.mpp[0] / 1000) ** 2), len(xy), remarks=tuple(remarks)),
        patient=patient, label=label, verdict=SlideVerdict.DEGRADED if degraded else SlideVerdict.OK,
        reason="; ".join([*([f"{counts.unread} of {counts.all} tiles could not be read"] if counts.unread else []), *remarks]),
        trial="", tiles=counts, prediction=None, heatmap_check=None, seconds=sealed.seconds, recipe=recipe,
        finish_recipe=finish_recipe(settings, None, patient, label), versions=versions(),
    )  # fmt: skip
    out.slide(known).write(record, [])
    return len(twins)


def twin_rows(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Rows that are those of another tile to the last bit: TRIDENT puts a white square in the place of a tile that it cannot read."""
    rows = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values]
    times = Counter(rows)
    return np.flatnonzero([times[row] > 1 for row in rows])
