"""pathovit clean: what an output folder can do without."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit.cli.app import app
from pathovit.text import counted, size


@app.command()
def clean(
    out: Annotated[Path, typer.Argument(help="Folder that `pathovit run` wrote.")],
    older: Annotated[bool, typer.Option("--older", help="Results of slide files that have other content now.")] = False,
    features: Annotated[
        bool, typer.Option("--features", help="Features of all slides; answers, maps and pictures stay.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only listed.")] = False,
) -> None:
    """List what a folder can do without, and with --yes remove it.

    pathovit clean out --features --yes
    """
    from pathovit.errors import NoSlidesError
    from pathovit.outputs.clean import remove, spare
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.inventory import writing
    from pathovit.outputs.runs import RUN, last_run
    from pathovit.run.folder import show_again

    if not (out / RUN).is_file():
        raise NoSlidesError(f"{out}: no run of pathovit wrote into it.")
    found = spare(OutFolder(out), older=older, features=features)
    for one in found:
        lost = f"; lost with it: {one.lost}" if one.paths else ""
        typer.echo(f"{size(one.size):>9}  {one.what}: {counted(len(one.paths), 'item')}{lost}")
    if not yes:
        sys.stderr.write("Nothing was removed: say --yes.\n")
        return
    last_run(OutFolder(out))  # what cannot be shown again is not begun
    with writing(out) as folder:
        for one in found:
            remove(one)
        show_again(folder)
    sys.stderr.write("Removed.\n")
