"""pathovit encoders: the table; fetch and convert weights; export for machines without torch."""

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

encoders = typer.Typer(help="List encoders; fetch, convert or export them.", invoke_without_command=True, no_args_is_help=False)
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
    if own := next((record for record in records if record.folder), None):
        raise SettingsError(
            f"{own.folder}: it is an encoder in a folder, with its weights: there is nothing to fetch. Copy the folder."
        )
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
        if record.revision and origin.revision != record.revision:
            options.note(
                f"{record.base}: these are of revision {origin.revision[:12]}, and {record.revision[:12]} is the one that is known; "
                "with a network, take them out of the hub's cache and of ours, and fetch again"
            )
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


@encoders.command()
def export(
    name: Annotated[str, typer.Argument(help="An encoder of the table, a timm name or a folder.")],
    to: Annotated[str, typer.Option("--to", help="Its form: onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.  \\[default: NAME-PRECISION.onnx]")] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or int8.")] = "fp32",
    tiles: Annotated[
        Path | None, typer.Option("--tiles", help="Folder of pictures of tiles: what int8 is fitted to, and all are checked on.")
    ] = None,
    weights: options.Weights = None,
    tile_px: Annotated[int | None, typer.Option("--tile-px", help="Tile side.  \\[default: the encoder's own]")] = None,
) -> None:
    """Write an encoder as a graph for ONNX Runtime, TensorRT or OpenVINO, checked against torch."""
    import numpy as np

    from pathovit.encoders import load_encoder
    from pathovit.encoders.onnx_graph import ALIKE, MOST_TILES, export_onnx
    from pathovit.errors import SettingsError
    from pathovit.study.labelled_tiles import pictures_in, read_pictures

    if to != "onnx":
        raise SettingsError(f"--to {to!r}, expected onnx.")
    encoder = load_encoder(name, weights, "cpu", "fp32", tile_px)
    seen = None
    if tiles is not None:
        if not (paths := pictures_in(tiles)):
            raise SettingsError(f"--tiles {tiles}: there is no picture in it.")
        some = np.linspace(0, len(paths) - 1, min(len(paths), MOST_TILES)).astype(int)
        seen = read_pictures([paths[place] for place in some], encoder.tile_px, options.note)
    path = out or Path(f"{encoder.name.replace(':', '-')}-{precision}.onnx")
    checked = export_onnx(encoder, path, precision, seen)
    typer.echo(
        f"{path}: {path.stat().st_size / 1e6:,.1f} MB, licence {encoder.record.licence}\n  beside torch in fp32, on {checked.tiles} tiles of {checked.of}: "
        f"worst cosine {checked.cosine_worst:.5f}, largest difference {checked.difference:.2%} of the largest feature"
    )
    if checked.cosine_worst < ALIKE:
        options.note("these are other features than those in fp32: train and predict with features of one and the same graph")
