"""pathovit verify: whether an output folder is as it was written, and mending it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import NoSlidesError
from pathovit.text import counted, plain

if TYPE_CHECKING:
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.verify import Verified


@app.command()
def verify(
    out: Annotated[Path, typer.Argument(help="Output folder.")] = Path("out"),
    repair: Annotated[bool, typer.Option("--repair", help="Make again what is missing or damaged, and nothing else.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check every stored byte against the digests that were written with it: slides, tables, report, records of runs; what is gone, and what was put there."""
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.verify import verify as look

    folder = OutFolder(out)
    if not out.is_dir():
        raise NoSlidesError(f"{out}: no slide in it, for there is no such folder. Give the --out folder of a run.")
    found = look(folder)
    if repair and found.faults:
        _say(found, as_json)
        found = _repaired(folder, found)
    review = _broken_review(folder)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"review": review}, indent=1))
    else:
        _say(found, False)
    for line in review:
        typer.echo(f"review: {plain(line)}", err=as_json)
    if not found.slides and not found.faults:
        raise NoSlidesError(f"{out}: no slide in it. Give the --out folder of a run.")
    sys.exit(3 if found.faults or review else 0)


def _say(found: Verified, beside_json: bool) -> None:
    for fault in found.faults:
        typer.echo(f"{plain(fault.where)}: {plain(fault.what)}", err=beside_json)
    for remark in found.remarks:
        sys.stderr.write(f"{plain(remark)}\n")
    typer.echo(
        f"{counted(found.slides, 'slide')}, {counted(found.files, 'file')} checked, {counted(len(found.faults), 'fault')}.",
        err=beside_json,
    )


def _repaired(out: OutFolder, found: Verified) -> Verified:
    from pathovit.cli.run import leave, stoppable
    from pathovit.outputs.inventory import writing
    from pathovit.outputs.verify import verify as look
    from pathovit.run.progress import Progress
    from pathovit.run.repair import repair

    with (
        writing(out.path) as folder,
        stoppable() as stop,
        Progress(len({f.slide_id for f in found.faults if f.slide_id})) as progress,
    ):
        repair(folder, found, sys.argv[1:], progress.changed, progress.say, stop)
    if stop.code:
        leave(stop.code)
    return look(out)


def _broken_review(out: OutFolder) -> list[str]:
    """What is not whole in the record of a review, if there is one."""
    if not (out.path / "review").is_dir():
        return []
    from pathovit.review.audit import verify as audit
    from pathovit.review.record import Record

    return list(audit(Record(out)).broken)
