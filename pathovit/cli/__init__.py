"""The command line: one thin file per command. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys

import typer

from pathovit import RESEARCH_USE, __version__
from pathovit.errors import PathovitError
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
def _top(version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True)) -> None:
    quiet_libraries()
    if version:
        typer.echo(f"pathovit {__version__}")
        raise typer.Exit


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def main() -> None:
    """Entry point: errors become one line on stderr and the exit code of the design."""
    from pathovit.cli import commands  # noqa: F401  # registers them
    from pathovit.text import plain

    os.environ.pop("MPLBACKEND", None)  # of a notebook around us: our pictures are files
    try:
        app()
    except PathovitError as error:
        sys.stderr.write(f"pathovit: {plain(str(error))}\n")
        sys.exit(error.exit_code)
    except FileNotFoundError:
        if not _folder_is_gone():
            raise
        sys.stderr.write("pathovit: the folder you are in has been deleted. Change to another one, or give whole paths.\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
