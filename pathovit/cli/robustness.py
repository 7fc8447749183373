"""pathovit robustness: how far a model's answers and maps move when slides are stained and scanned otherwise."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.machine import wait_passively
from pathovit.run.progress import Steps
from pathovit.text import counted, plain


@app.command()
@options.takes_slides("max_upsampling", "reader", "weights", "precision", "engine", "device", "keep_names")
def robustness(
    asked: options.Asked,
    model: Annotated[str, typer.Argument(help="Model folder, or `reference` for the bundled model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for robustness.json and robustness.png.")] = Path("robustness"),
    most_tiles: Annotated[
        int, typer.Option("--max-tiles", min=1, help="Of larger slides so many tiles around the middle are looked at.")
    ] = 1000,
    as_json: options.Json = False,
) -> None:
    """Look at slides as other laboratories and scanners would have shown them, and say how far answers and maps move.

    Stains weaker and stronger, colour, sharpness, JPEG, 5 % of resolution, tiles half a tile aside: 16 ways, so that a slide
    takes as long as 16.
    """
    wait_passively()
    from pathovit.encoders.load import load_encoder
    from pathovit.model.slide_model import load_model
    from pathovit.outputs.names import Names
    from pathovit.run.match import match_model
    from pathovit.run.robustness import keep_on_card, measure_robustness
    from pathovit.slides.alter import FAMILIES

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    settings = asked.settings()
    settings = replace(settings, heatmap=replace(settings.heatmap, model=model))
    settings = match_model(settings, False, True, options.note).settings
    jobs, loaded, embed = asked.jobs(), load_model(model), settings.embed
    encoder = load_encoder(
        embed.encoder, embed.weights, settings.run.device, embed.precision, settings.tiles.tile_px, embed.engine
    )
    found = measure_robustness(jobs, encoder, loaded, settings, out, most_tiles, Steps())
    kept = keep_on_card(model, found)
    names = Names.read(out).by_id()

    def called(place: str) -> str:
        known, comma, way = place.partition(", ")
        return plain(names.get(known, known)) + comma + way

    for place, reason in found.failed.items():
        sys.stderr.write(f"  failed  {called(place)}: {plain(reason.splitlines()[0])}\n")
    for place, tiles in found.unread.items():
        sys.stderr.write(
            f"  {called(place)}: {counted(tiles, 'tile')} could not be read and {'is' if tiles == 1 else 'are'} left out\n"
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        typer.echo(f"{counted(found.slides, 'slide')}, model {found.model}")
        typer.echo(f"{'':22}{'answers':>9}{'flip':>8}{'are lost':>10}{'number moves':>14}{'map crosses':>13}{'map agrees':>12}")
        for family, name in FAMILIES.items():
            line = found.of(family)
            flipped, lost, crossed = (
                "" if line[key] is None else f"{line[key]:.1%}" for key in ("flipped", "lost", "map_crossed")
            )
            change, agrees = ("" if line[key] is None else f"{line[key]:.3f}" for key in ("change", "map_correlation"))
            typer.echo(f"{name:22}{line['answers']:>9}{flipped:>8}{lost:>10}{change:>14}{crossed:>13}{agrees:>12}")
    sys.stderr.write(f"Figures: {out / 'robustness.json'}   Picture: {out / 'robustness.png'}\n")
    if kept:
        sys.stderr.write(f"Noted on the model's card: {kept}\n")
    sys.exit(3 if found.failed else 0)
