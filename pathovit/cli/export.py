"""pathovit export: stored features in the layouts of other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit.cli import app
from pathovit.errors import NoSlidesError, SettingsError


@app.command()
def export(
    features: Annotated[Path, typer.Argument(help="Folder that `pathovit embed` or `run` wrote.")],
    to: Annotated[str, typer.Option("--to", help="h5: the layouts of TRIDENT and CLAM.")] = "h5",
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to.  [default: FEATURES/export]")] = None,
) -> None:
    """Write features as .h5 files that tools made for TRIDENT or CLAM read."""
    from pathovit.export.h5 import write_clam, write_trident
    from pathovit.report import done_slides
    from pathovit.store import FeatureStore

    if to != "h5":
        raise SettingsError(f"--to {to!r} is unknown. Use h5.")
    target = folder or features / "export"
    done = done_slides(features)
    if not done:
        raise NoSlidesError(f"{features}: no finished slide in it. Make some with: pathovit embed SLIDES --out {features}")
    for entry in done:
        slide_id = entry["slide"]["slide_id"]
        slide = FeatureStore(features / "slides" / slide_id, Path(entry["slide"]["file"])).read(slide_id)
        write_trident(target, slide)
        write_clam(target, slide)
    sys.stderr.write(f"{len(done)} slides written to {target} (features_<encoder>/ for TRIDENT, h5_files/ for CLAM).\n")
