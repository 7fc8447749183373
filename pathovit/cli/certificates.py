"""pathovit certificates: for a cluster on several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathovit.cli.app import app


@app.command()
def certificates(folder: Annotated[Path, typer.Argument(help="A folder that all machines see; made for you alone.")]) -> None:
    """Make certificates for a Dask cluster of yours, and print the variables by which `dask scheduler`, `dask worker` and `pathovit run` take them.

    eval "$(pathovit certificates FOLDER)"
    """
    from pathovit.run.certificates import as_shell, make_certificates

    typer.echo(as_shell(make_certificates(folder)))
