"""pathovit info: what each slide is and what it would cost; no model is loaded, no torch imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pathovit.cli import app, options
from pathovit.encoders.records import known_record
from pathovit.errors import SlideError
from pathovit.features import trial_of
from pathovit.settings import Settings
from pathovit.text import duration, plain, say_left_out, size

if TYPE_CHECKING:
    from pathovit.pipeline import SlideJob

TILES_PER_S = {"reference": 200.0}  # on two CPU cores, docs/benchmarks.md; others are guessed at the speed of a ViT-S
OTHER_TILES_PER_S = 20.0


@app.command()
def info(
    slides: options.MaybeSlides = None,
    mpp: options.Mpp = None,
    manifest: options.ManifestFile = None,
    encoder: options.EncoderName = None,
    tile_px: options.TilePx = None,
    tile_mpp: options.TileMpp = None,
    min_coverage: options.MinCoverage = None,
    max_upsampling: options.MaxUpsampling = None,
    max_tiles: options.MaxTiles = None,
    reader: options.Reader = None,
    settings_file: options.SettingsFile = None,
    as_json: options.Json = False,
) -> None:
    """Preflight: size, pixel size and its source, tissue, tiles, estimated time and bytes of every slide."""
    settings = options.merge_settings(
        settings_file, encoder=encoder, tile_px=tile_px, tile_mpp=tile_mpp, min_coverage=min_coverage,
        max_upsampling=max_upsampling, max_tiles=max_tiles, reader=reader,
    )  # fmt: skip
    sys.exit(show_plan(options.find_jobs(slides, mpp, manifest), settings, as_json))


def show_plan(jobs: Sequence[SlideJob], settings: Settings, as_json: bool) -> int:
    """Print the plan of every slide; 3 if one cannot be done."""
    rows = [describe(job, settings) for job in jobs]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        _print(rows)
    return 3 if any("reason" in row for row in rows) else 0


def describe(job: SlideJob, settings: Settings) -> dict[str, Any]:
    """The plan of one slide, or the reason why there is none."""
    from pathovit.pipeline import plan_slide

    record = known_record(settings.embed.encoder)
    try:
        plan, slide, grid, _ = plan_slide(job, settings, record)
        slide.close()
    except SlideError as error:
        return {"file": job.path.name, "reason": error.reason}
    except MemoryError as error:
        return {
            "file": job.path.name,
            "reason": f"it needs more memory than there is ({error}). Look whether its pixel size is true.",
        }
    return {
        "file": job.path.name,
        "slide_id": plan.slide_id,
        "vendor": plan.vendor,
        "size": list(plan.size),
        "mpp": list(plan.mpp),
        "mpp_source": plan.mpp_source,
        "reader": plan.reader,
        "tissue_mm2": round(plan.tissue_mm2, 3),
        "left_out_mm2": plan.left_out_mm2,
        "remarks": [*plan.remarks, *([trial_of(plan.tiles, grid.total)] if grid.total > plan.tiles else [])],
        "tiles": plan.tiles,
        "upsampled": plan.upsampled,
        "estimated_seconds": round(plan.tiles / TILES_PER_S.get(record.name, OTHER_TILES_PER_S), 1),
        "estimated_bytes": plan.feature_bytes(record.dim),
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name, justify in (("slide", "left"), ("size px", "right"), ("µm/px", "right"), ("source", "left"), ("tissue mm²", "right"),
                          ("tiles", "right"), ("time", "right"), ("stored", "right")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # rich's literals
    for row in rows:
        file = Text(plain(row["file"]))
        if "reason" in row:
            continue
        mpp = f"{row['mpp'][0]:.4f}" + ("" if row["mpp"][0] == row["mpp"][1] else f" × {row['mpp'][1]:.4f}")
        table.add_row(
            file, f"{row['size'][0]:,} × {row['size'][1]:,}", mpp, row["mpp_source"].split(" ")[0], f"{row['tissue_mm2']:.1f}",
            f"{row['tiles']:,}", duration(row["estimated_seconds"]), size(row["estimated_bytes"]),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 160)
    if table.row_count:
        console.print(table)
    for row in rows:
        if "reason" in row:
            console.print(Text(f"{plain(row['file'])}: {plain(row['reason'])}", "red"), soft_wrap=True)
    good = [row for row in rows if "reason" not in row]
    for row in good:
        for said in [*row["remarks"], *([f"left out: {say_left_out(row['left_out_mm2'])}"] if row["left_out_mm2"] else [])]:
            console.print(Text(f"{plain(row['file'])}: {plain(said)}", "yellow"), soft_wrap=True)
    seconds, stored = sum(row["estimated_seconds"] for row in good), sum(row["estimated_bytes"] for row in good)
    console.print(
        f"{len(good)} of {len(rows)} slides can be done: {sum(row['tiles'] for row in good):,} tiles, "
        f"about {duration(seconds)} on two CPU cores, {size(stored)} of features."
    )
