"""The command line: one thin file per command. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from pathovit.cli.app import app
from pathovit.errors import PathovitError

__all__ = ["app", "main"]


ALONE = {"run": "run", "embed": "run"}  # commands that begin at once, without the others


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def main() -> None:
    """Entry point: errors become one line on stderr and the exit code of the design."""
    from pathovit.text import plain

    alone = ALONE.get(sys.argv[1] if sys.argv[1:] else "")
    import_module(f"pathovit.cli.{alone or 'commands'}")  # which registers itself

    os.environ.pop("MPLBACKEND", None)  # of a notebook around us: our pictures are files
    try:
        app()
    except SystemExit as ended:
        if alone and isinstance(ended.code, int):
            from pathovit.cli.run import leave

            leave(ended.code)
        raise
    except PathovitError as error:
        sys.stderr.write(f"pathovit: {plain(str(error))}\n")
        sys.exit(error.exit_code)
    except FileNotFoundError:
        if not _folder_is_gone():
            raise
        sys.stderr.write("pathovit: the folder you are in has been deleted. Change to another one, or give whole paths.\n")
        sys.exit(2)
