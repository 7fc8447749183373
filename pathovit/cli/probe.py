"""pathovit probe: which encoder is best on labelled tiles of one's own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.run.progress import Steps
from pathovit.settings import EmbedSettings

if TYPE_CHECKING:
    from pathovit.study.probe import Probed


@app.command()
def probe(
    tiles: Annotated[
        Path,
        typer.Argument(
            help="A table of picture files and labels, a folder with a folder for each class; with --slides, regions drawn on them."
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(help="More encoders.", show_default=False, metavar="[ENCODERS]...")] = None,
    encoders: Annotated[
        list[str] | None, typer.Option("--encoders", help="By name; NAME=FILE.safetensors or NAME=random for other weights.")
    ] = None,
    slides: Annotated[
        list[Path] | None,
        typer.Option("--slides", help="Slides, or folders of them, that TILES (GeoJSON of QuPath, a file or folder) is of."),
    ] = None,
    mpp: options.Mpp = None,
    manifest: options.ManifestFile = None,
    label: Annotated[str | None, typer.Option("--label", help="Column with the class.  \\[default: label]")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table and the picture.")] = Path("probe"),
    device: options.Device = None,
    precision: options.Precision = None,
    as_json: options.Json = False,
) -> None:
    """Compare encoders on labelled tiles: a linear probe and nearest neighbours on patients left out, beside speed and size.

    pathovit probe tiles.csv --encoders reference uni virchow2
    pathovit probe regions/ --slides slides/ --encoders reference uni virchow2
    """
    from pathovit.encoders import load_encoder
    from pathovit.encoders.names import known_record, with_weights
    from pathovit.encoders.own import OF_PACKAGE, is_folder
    from pathovit.encoders.weights import find_weights
    from pathovit.files import csv_table, storage_errors, to_json, write_atomically
    from pathovit.study.drawn_tiles import find_drawn
    from pathovit.study.figures import probe_picture
    from pathovit.study.labelled_tiles import find_tiles
    from pathovit.study.probe import folds_of, probe
    from pathovit.text import counted

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    if mpp is not None and not (slides or manifest):
        raise SettingsError("--mpp goes with --slides: pictures of tiles are taken as they are.")
    if label is not None and (slides or manifest):
        raise SettingsError("--label names a column of tiles: regions on slides have their classes.")
    EmbedSettings(precision=precision or "auto")
    asked = [*(encoders or ()), *(more or ())] or ["reference"]
    pairs = [with_weights(one) for one in asked]
    records = [known_record(name) for name, _ in pairs]
    for record, (_, weights) in zip(records, pairs, strict=True):
        if weights is None and record.arch != OF_PACKAGE:
            find_weights(record, None)  # before any is tried
    if slides or manifest:
        asked_slides = options.Asked({}, None, slides, mpp, manifest)
        found = find_drawn(asked_slides.jobs(), [tiles], records, asked_slides.settings(), options.note)
    else:
        found = find_tiles(tiles, label or "label", options.note)
    if left := len(found) - sum(len(judge) for _, judge in folds_of(found, 0)):
        options.note(
            f"{counted(left, 'tile')} are not judged: without their {found.unit}s a class would be missing from what is learned"
        )
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    steps, rows = Steps(), []
    for name, weights in pairs:
        encoder = load_encoder(name, weights, device or "auto", precision or "auto")
        pixels = found.pixels(encoder.tile_px, encoder.mpp)
        said = weights if weights in (None, "random") else Path(weights).name
        whose = said or ("one's own" if is_folder(name) else "bundled" if name == "reference" else "published")
        rows.append(probe(encoder, whose, found, pixels, steps))
        del encoder, pixels
    units = None if found.unit == "tile" else len(set(found.groups.tolist()))
    said_of_all = {
        "research_use": RESEARCH_USE, "tiles": len(found), "classes": list(found.classes), "patients": units if found.unit == "patient" else None,
        "slides": units if found.unit == "slide" else None, "encoders": [asdict(row) for row in rows],
    }  # fmt: skip
    write_atomically(out / "probe.json", to_json(said_of_all))
    write_atomically(out / "probe.csv", csv_table(tuple(_row(rows[0])), [_row(row) for row in rows]))
    title = f"{len(found):,} tiles" + (f" of {counted(units, found.unit)}" if units else "")
    title += "" if found.unit == "patient" else ", patients not known"
    probe_picture(out / "probe.png", rows, title)
    if as_json:
        typer.echo(json.dumps(said_of_all, indent=1))
        return
    _print(rows)
    sys.stderr.write(f"Table:    {out / 'probe.csv'}\nPicture:  {out / 'probe.png'}\n")


def _row(row: Probed) -> dict[str, object]:
    """A row of the table: metrics with their intervals apart."""
    values = asdict(row)
    for name in ("linear", "nearest"):
        metric = values.pop(name)
        values |= {f"{name}_auroc": metric["value"], f"{name}_low": metric["low"], f"{name}_high": metric["high"]}
    return values


def _print(rows: list[Probed]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("encoder", "weights", "linear probe", "20 nearest", "tiles/s", "M par.", "features", "licence"):
        table.add_column(name, justify="right" if name in ("tiles/s", "M par.", "features") else "left")
    for row in sorted(rows, key=lambda row: -(row.linear.value or 0)):
        table.add_row(
            row.name, row.weights, str(row.linear), str(row.nearest), f"{row.tiles_per_s:,.0f}", f"{row.millions:,.1f}", str(row.dim), row.licence
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)
