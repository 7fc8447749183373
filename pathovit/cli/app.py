"""The Typer app that every command is registered with."""

from __future__ import annotations

import typer

from pathovit import RESEARCH_USE, __version__
from pathovit.machine import quiet_libraries

app = typer.Typer(
    name="pathovit",
    help=f"Whole-slide images to slide-level answers and cancer heatmaps.\n\n{RESEARCH_USE}",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _top(version: bool = typer.Option(False, "--version", "-V", help="Print the version and exit.", is_eager=True)) -> None:
    quiet_libraries()
    if version:
        typer.echo(f"pathovit {__version__}")
        raise typer.Exit
