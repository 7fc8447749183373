"""pathovit explain: what a reason code stands for, and what to do."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.reasons import EXPLAINED, Code


@app.command()
def explain(
    code: Annotated[str | None, typer.Argument(help="As in predictions.csv or slide.json; none: all of them.")] = None,
) -> None:
    """Cause and remedy of a reason code."""
    if code is None:
        for each, known in EXPLAINED.items():
            typer.echo(f"{each:14} {known.cause}")
        return
    if code not in list(Code):
        near = difflib.get_close_matches(code, list(Code), n=1)
        raise SettingsError(
            f"{code!r} is no code of pathovit. " + (f"Did you mean {near[0]}?" if near else "pathovit explain lists them.")
        )
    known = EXPLAINED[Code(code)]
    typer.echo(f"{code}\n\nCause:  {known.cause}\nRemedy: {known.remedy}")
