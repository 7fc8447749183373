"""pathovit names: which file and which patient the ids of a folder stand for."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError


@app.command()
def names(
    folder: Annotated[Path, typer.Argument(help="Folder that a run, a training or an evaluation wrote.")],
    as_json: options.Json = False,
) -> None:
    """Which slide file and which patient the ids in tables, reports and pictures stand for, as CSV on stdout."""
    from pathovit.files import csv_table
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.names import PRIVATE, Names

    if not (folder / PRIVATE).is_file():
        raise SettingsError(
            f"{folder}: there is no {PRIVATE} here. Results of --keep-names tell names themselves; others need that file."
        )
    if not os.access(folder / PRIVATE, os.R_OK):
        raise SettingsError(f"{folder / PRIVATE}: you may not read it: it is for its owner alone.")
    Names.read(folder)  # raises, where it is damaged
    found = OutFolder(folder).names()
    patients = {name: known for known, name in found.patients.items()}
    files = [
        {
            "slide_id": about.slide_id or known,
            "file": about.path,
            "patient_id": patients.get(about.patient, ""),
            "patient": about.patient,
        }
        for known, about in found.files.items()
    ]
    given = {str(row["patient"]) for row in files}
    others = [{"patient_id": known, "patient": name} for known, name in found.patients.items() if name not in given]
    if as_json:
        typer.echo(
            json.dumps(
                {"files": {known: asdict(about) for known, about in found.files.items()}, "patients": found.patients}, indent=1
            )
        )
        return
    rows = sorted(files, key=lambda row: str(row["file"])) + sorted(others, key=lambda row: str(row["patient"]))
    sys.stdout.write(csv_table(["slide_id", "file", "patient_id", "patient"], rows).decode())
