"""pathovit export: stored features in the layouts of other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError


@app.command()
def export(
    features: Annotated[Path, typer.Argument(help="Folder that `pathovit embed` or `run` wrote.")],
    to: Annotated[str, typer.Option("--to", help="h5: the layouts of TRIDENT and CLAM.")] = "h5",
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to.  \\[default: FEATURES/export]")] = None,
) -> None:
    """Write features as .h5 files that tools made for TRIDENT or CLAM read."""
    from pathovit.show.h5 import write_clam, write_trident

    if to != "h5":
        raise SettingsError(f"--to {to!r} is unknown. Use h5.")
    target = folder or features / "export"
    damaged: list[str] = []
    written = 0
    for _, slide in options.stored_slides(features, damaged):
        write_trident(target, slide)
        write_clam(target, slide)
        written += 1
    sys.stderr.write(f"{written} slides written to {target} (features_<encoder>/ for TRIDENT, h5_files/ for CLAM).\n")
    if damaged:
        sys.exit(3)
