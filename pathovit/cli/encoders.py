"""pathovit encoders: the table; fetch and convert weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pathovit.cli import options
from pathovit.cli.app import app

encoders = typer.Typer(help="List encoders; fetch or convert their weights.", invoke_without_command=True, no_args_is_help=False)
app.add_typer(encoders, name="encoders")


@encoders.callback()
def table(context: typer.Context, as_json: options.Json = False) -> None:
    """List the encoders known by name; any timm architecture works too."""
    from dataclasses import asdict

    from pathovit.encoders.own import names_brought
    from pathovit.encoders.records import RECORDS
    from pathovit.encoders.weights import find_weights
    from pathovit.errors import WeightsError

    if context.invoked_subcommand is not None:
        return
    if as_json:
        typer.echo(json.dumps([asdict(record) for record in RECORDS.values()], indent=1))
        return
    shown = Table(box=None, pad_edge=False)
    for name in ("encoder", "features", "M par.", "tile", "licence", "weights"):
        shown.add_column(name, justify="right" if name in ("features", "M par.") else "left")
    for record in RECORDS.values():
        try:
            find_weights(record, None)
            state = "here"
        except WeightsError:
            state = ("fetch, after a click" if record.gated else "fetch") if record.hub else "--weights"
        tile = f"{record.tile_px} px at {record.mpp:g} µm"
        shown.add_row(record.name, str(record.dim), f"{record.millions:,.0f}", tile, record.licence, state)
    for name in names_brought():
        shown.add_row(name, "", "", "", "", "of a package")
    Console(width=None if sys.stdout.isatty() else 140).print(shown)
    typer.echo(
        "\nAny name of timm, and any folder with an encoder, works too. Weights: pathovit encoders fetch NAME (a click: on its page, to accept its licence).\n"
        "NAME:cls, NAME:mean and NAME:cls_mean pool tokens otherwise; NAME:native, NAME:crop and NAME:resample take tiles of other sizes otherwise."
    )


@encoders.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Encoders of the table; with --from all that lie there.", show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="A folder to carry them to a machine without a network.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Such a folder: no network is used.")] = None,
) -> None:
    """Download encoders' weights once; the only command that uses the network."""
    from pathovit.encoders.cache import cache_folder, carry, names_in, origin_in
    from pathovit.encoders.names import known_record
    from pathovit.errors import SettingsError

    if from_ is not None and to is not None:
        raise SettingsError("--from and --to do not go together. Copy the folder.")
    if from_ is not None and not names and not (names := names_in(from_)):
        raise SettingsError(f"{from_}: there are no weights in it. Make some with: pathovit encoders fetch NAME --to {from_}")
    if not names:
        raise SettingsError("Say which encoders: pathovit encoders lists them.")
    records = [known_record(name) for name in names]
    where = cache_folder()
    if from_ is not None:
        carry([record.base for record in records], from_, where, lambda name: None)
    for record in records:
        if from_ is None:
            from pathovit.encoders.fetch import fetch_weights

            fetch_weights(record)
        origin = origin_in(where, record.base)
        assert origin
        come = f"{origin.hub} ({origin.file}, revision {origin.revision[:12]})"
        typer.echo(f"{where / f'{record.base}.safetensors'}  sha256 {origin.sha256}\n  from {come}, licence {origin.licence}")
    if to is not None:
        carry([record.base for record in records], where, to, lambda name: typer.echo(f"{to / f'{name}.safetensors'}"))


@encoders.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .pt, .pth or .bin file with tensors.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Turn foreign weights into safetensors; files that would run code are refused."""
    from pathovit.encoders.weights import convert_weights

    typer.echo(f"{target}: {convert_weights(source, target)} tensors")
