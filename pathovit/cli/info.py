"""pathovit info: what each slide is and what it would cost; no model is loaded, no torch imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.encoders.names import known_record
from pathovit.errors import SlideError
from pathovit.geometry import XY
from pathovit.reasons import Code
from pathovit.settings import Settings
from pathovit.text import duration, plain, say_left_out, size

if TYPE_CHECKING:
    from pathovit.run.plan import SlideJob

TILES_PER_S = {"reference": 200.0}  # on two CPU cores, docs/benchmarks.md; others are guessed at the speed of a ViT-S
OTHER_TILES_PER_S = 20.0


@app.command()
@options.takes_slides(*options.OF_SLIDES)
def info(asked: options.Asked, as_json: options.Json = False) -> None:
    """Preflight: size, pixel size and its source, tissue, tiles, estimated time and bytes of every slide."""
    sys.exit(show_plan(asked.jobs(), asked.settings(), as_json))


@dataclass(frozen=True)
class Preflight:
    """What a slide is and what it would cost."""

    file: str
    vendor: str
    size: tuple[int, int]
    mpp: XY
    mpp_source: str
    reader: str
    tissue_mm2: float
    left_out_mm2: Mapping[str, float]
    remarks: tuple[str, ...]
    tiles: int
    upsampled: float
    estimated_seconds: float
    estimated_bytes: int


@dataclass(frozen=True)
class CannotBeDone:
    """A slide that cannot be done, and why."""

    file: str
    code: str
    reason: str


def show_plan(jobs: Sequence[SlideJob], settings: Settings, as_json: bool) -> int:
    """Print the plan of every slide; 3 if one cannot be done."""
    rows = [describe(job, settings) for job in jobs]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _print(rows)
    return 3 if any(isinstance(row, CannotBeDone) for row in rows) else 0


def describe(job: SlideJob, settings: Settings) -> Preflight | CannotBeDone:
    """The plan of one slide, or the reason why there is none. Its content is not read: identity costs every byte."""
    import numpy as np

    from pathovit.outputs.features import trial_of
    from pathovit.outputs.recipe import feature_dtype
    from pathovit.run.plan import survey_slide

    record = known_record(settings.embed.encoder)
    try:
        found = survey_slide(job, settings, record)
    except SlideError as error:
        return CannotBeDone(job.path.name, error.code, error.reason)
    except MemoryError as error:
        return CannotBeDone(
            job.path.name, Code.OUT_OF_MEMORY, f"it needs more memory than there is ({error}). Look whether its pixel size is true."
        )  # fmt: skip
    with found.slide as slide:
        about, survey, total = slide.description, found.survey, found.grid.total
    return Preflight(
        **{name: getattr(about, name) for name in ("file", "vendor", "size", "mpp", "mpp_source", "reader")},
        tissue_mm2=round(survey.tissue_mm2, 3),
        left_out_mm2=survey.left_out_mm2,
        remarks=(*survey.remarks, *([trial_of(survey.tiles, total)] if total > survey.tiles else [])),
        tiles=survey.tiles,
        upsampled=survey.upsampled,
        estimated_seconds=round(survey.tiles / TILES_PER_S.get(record.name, OTHER_TILES_PER_S), 1),
        estimated_bytes=survey.tiles * (np.dtype(feature_dtype(settings, record)).itemsize * record.dim + 16 + 4 + 1),
    )


def _print(rows: Sequence[Preflight | CannotBeDone]) -> None:
    table = Table(box=None, pad_edge=False)
    for name, justify in (("slide", "left"), ("size px", "right"), ("µm/px", "right"), ("source", "left"), ("tissue mm²", "right"),
                          ("tiles", "right"), ("time", "right"), ("stored", "right")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # rich's literals
    good = [row for row in rows if isinstance(row, Preflight)]
    for row in good:
        mpp = f"{row.mpp[0]:.4f}" + ("" if row.mpp[0] == row.mpp[1] else f" × {row.mpp[1]:.4f}")
        table.add_row(
            Text(plain(row.file)), f"{row.size[0]:,} × {row.size[1]:,}", mpp, row.mpp_source.split(" ")[0], f"{row.tissue_mm2:.1f}",
            f"{row.tiles:,}", duration(row.estimated_seconds), size(row.estimated_bytes),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 160)
    if table.row_count:
        console.print(table)
    for bad in rows:
        if isinstance(bad, CannotBeDone):
            console.print(Text(f"{plain(bad.file)}: {plain(bad.reason)}", "red"), soft_wrap=True)
    for row in good:
        for said in [*row.remarks, *([f"left out: {say_left_out(row.left_out_mm2)}"] if row.left_out_mm2 else [])]:
            console.print(Text(f"{plain(row.file)}: {plain(said)}", "yellow"), soft_wrap=True)
    seconds, stored = sum(row.estimated_seconds for row in good), sum(row.estimated_bytes for row in good)
    console.print(
        f"{len(good)} of {len(rows)} slides can be done: {sum(row.tiles for row in good):,} tiles, "
        f"about {duration(seconds)} on two CPU cores, {size(stored)} of features."
    )
