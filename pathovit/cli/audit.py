"""pathovit audit: whether the record of a review is whole, and what is in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit import RESEARCH_USE
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.text import counted, plain

audit = typer.Typer(help="The record of a review: whether it is whole, and what is in it.", no_args_is_help=True)
app.add_typer(audit, name="audit")
Out = Annotated[Path, typer.Argument(help="Folder that was reviewed.")]


@audit.command()
def verify(
    out: Out,
    head: Annotated[str | None, typer.Option("--head", help="A digest that was noted before: it must be in the record.")] = None,
) -> None:
    """Find every line that was changed, swapped or taken out. Exit code 3 if there is one."""
    from pathovit.outputs.folder import OutFolder
    from pathovit.review.audit import verify as check
    from pathovit.review.record import Record

    if head is not None and not head.strip():
        raise SettingsError("--head is empty: give the digest that was noted, or leave it out.")
    found = check(Record(OutFolder(_there(out))), head or "")
    for remark in found.remarks:
        sys.stderr.write(f"  {remark}\n")
    for broken in found.broken:
        sys.stderr.write(f"  CHANGED  {broken}\n")
    if found.broken:
        sys.stderr.write(f"The record of {out} is not whole: {counted(len(found.broken), 'place')}.\n")
        sys.exit(3)
    if not found.events:
        sys.stderr.write(f"{out}: nothing was reviewed yet.\n")
        return
    sys.stderr.write(
        f"{counted(len(found.events), 'event')}, whole. Whoever may write here could write another record: note the newest digest elsewhere.\n"
    )
    typer.echo(found.head.digest)


@audit.command("print")
def print_(out: Out, form: Annotated[str, typer.Option("--to", help="text, json or csv.")] = "text") -> None:
    """The record, to be read or kept."""
    from pathovit.files import csv_table
    from pathovit.outputs.folder import OutFolder
    from pathovit.review.audit import to_rows, to_text
    from pathovit.review.audit import verify as check
    from pathovit.review.record import Record

    if form not in ("text", "json", "csv"):
        raise SettingsError(f"--to {form!r} is unknown. Use text, json or csv.")
    found = check(Record(OutFolder(_there(out))))
    if form == "json":
        whole = {
            "research_use": RESEARCH_USE,
            "head": found.head.digest,
            "broken": list(found.broken),
            "events": [e.to_json() for e in found.events],
        }
        typer.echo(json.dumps(whole, indent=1, ensure_ascii=False))
    elif form == "csv":
        rows = to_rows(found.events)
        typer.echo(csv_table(list(rows[0]) if rows else ["number"], rows).decode(), nl=False)
    else:
        typer.echo(plain_lines(to_text(found)))
    if found.broken:
        sys.stderr.write(f"The record is not whole: pathovit audit verify {out}\n")
        sys.exit(3)


def plain_lines(text: str) -> str:
    return "\n".join(plain(line) for line in text.splitlines())


def _there(out: Path) -> Path:
    if not out.is_dir():
        raise SettingsError(f"{out}: there is no such folder. Give one that was reviewed.")
    return out
