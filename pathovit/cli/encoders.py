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

    from pathovit.encoders.records import RECORDS
    from pathovit.encoders.weights import find_weights
    from pathovit.errors import WeightsError

    if context.invoked_subcommand is not None:
        return
    if as_json:
        typer.echo(json.dumps([asdict(record) for record in RECORDS.values()], indent=1))
        return
    shown = Table(box=None, pad_edge=False)
    for name in ("encoder", "features", "tile", "licence", "weights"):
        shown.add_column(name)
    for record in RECORDS.values():
        try:
            find_weights(record, None)
            state = "here"
        except WeightsError:
            state = f"fetch from {record.hub}" + (" (gated)" if record.gated else "")
        shown.add_row(record.name, str(record.dim), f"{record.tile_px} px at {record.mpp:g} µm", record.licence, state)
    Console(width=None if sys.stdout.isatty() else 140).print(shown)


@encoders.command()
def fetch(name: Annotated[str, typer.Argument(help="Encoder of the table.")]) -> None:
    """Download an encoder's weights once; the only command that uses the network."""
    from pathovit.encoders.load import find_record
    from pathovit.encoders.weights import fetch_weights
    from pathovit.files import file_sha256

    path = fetch_weights(find_record(name))
    typer.echo(f"{path}  sha256 {file_sha256(path)}")


@encoders.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .pt, .pth or .bin file with tensors.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Turn foreign weights into safetensors; files that would run code are refused."""
    from pathovit.encoders.weights import convert_weights

    typer.echo(f"{target}: {convert_weights(source, target)} tensors")
