"""pathovit tissue: what the tissue of all slides is made of, without a label."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import NoSlidesError, SettingsError
from pathovit.machine import wait_passively
from pathovit.run.progress import Steps


@app.command()
def tissue(
    features: Annotated[Path, typer.Argument(help="Folder that `pathovit run` or `embed` wrote.")],
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Give a kind a name, as A=tumour; names.csv will do as well.")
    ] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="Find kinds anew; letters and names change.")] = False,
) -> None:
    """Tiles of all slides in a few kinds that look alike: a map for every slide, areas, and what each kind looks like.

    `pathovit run` does this, too. Kinds stay the same when slides are added. Those with a name can be taught from:
    pathovit teach OUT OUT/tissue/names.csv
    """
    wait_passively()
    from pathovit.outputs.inventory import writing
    from pathovit.run.folder import show_again
    from pathovit.run.tissue_map import FOLDER, map_tissue

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    if not features.is_dir():
        raise NoSlidesError(f"{features}: there is no such folder. Give one that `pathovit run` or `embed` wrote.")
    steps = Steps()
    with writing(features) as out:
        kinds = map_tissue(out, options.note, lambda done, total: steps("tissue maps", done, total), _names(name or ()), afresh)
        show_again(out)
    named = ", ".join(kinds.said(place) for place in range(len(kinds.centres)))
    sys.stderr.write(f"Kinds of tissue: {named}\nPicture: {features / FOLDER / 'kinds.png'}   Maps: {features / FOLDER}\n")


def _names(given: list[str] | tuple[()]) -> dict[str, str]:
    found = {}
    for text in given:
        letter, equals, name = text.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"--name {text!r}: expected a letter and a name, as A=tumour.")
        found[letter.strip().upper()] = name.strip()
    return found
