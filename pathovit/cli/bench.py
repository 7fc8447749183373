"""pathovit bench: how fast this machine is at every step."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app


@app.command()
@options.takes_slides(*options.OF_SLIDES, *options.OF_THE_MACHINE)
def bench(
    asked: options.Asked,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", help="An installed package that reads the same tiles: fastslide, lazyslide, microtome-wsi or tiatoolbox."
        ),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Each measurement is the median of so many.")] = 5,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", metavar="FILE.png", help="Draw when the device had which slide's tiles.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure every step on slides of yours, and the machine's own limits beside them. Without slides, one is made."""
    from pathovit.bench.steps import bench as measure
    from pathovit.bench.steps import made_slide
    from pathovit.cli.maintenance import slide_maker
    from pathovit.outputs.provenance import versions

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    settings = asked.settings()
    with tempfile.TemporaryDirectory(prefix="pathovit-bench-") as folder:
        if asked.slides or asked.manifest:
            jobs = asked.jobs()
        else:
            sys.stderr.write("no slide given: making one\n")
            jobs = [made_slide(Path(folder), slide_maker())]
        lines = measure(jobs, settings, runs, against, timeline)
    if as_json:
        rows = [{name: None if value != value else value for name, value in asdict(line).items()} for line in lines]
        typer.echo(json.dumps({"versions": versions(), "settings": settings.to_dict(), "runs": runs, "steps": rows}, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("step", "tiles/s", "seconds", "core-s", ""):
        table.add_column(name, justify="left" if name in ("step", "") else "right", overflow="fold")
    for line in lines:
        rate = "" if math.isnan(line.rate) else f"{line.rate:,.1f}" if line.rate < 100 else f"{line.rate:,.0f}"
        core_s = "" if math.isnan(line.core_s) else f"{line.core_s:.2f}"
        table.add_row(line.step, rate, f"{line.seconds:.3f}", core_s, line.remark)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
