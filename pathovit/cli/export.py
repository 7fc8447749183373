"""pathovit export: stored features and maps in the layouts of other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.text import counted


@app.command()
def export(
    features: Annotated[Path, typer.Argument(help="Folder that `pathovit embed` or `run` wrote.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="trident, clam, h5 (both), stamp, anndata, csv, parquet, ome-zarr (0.5), ome-zarr-0.4 (for QuPath), wsinfer, dicom or spatialdata.",
        ),
    ] = "h5",
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to.  \\[default: FEATURES/export]")] = None,
    names: Annotated[
        str, typer.Option("--names", help="Of files: id, or stem for the names of slide files, which may name patients.")
    ] = "id",
) -> None:
    """Write features and maps as other programs read them; slides.csv says which file is which slide.

    pathovit export out --to trident --names stem
    """
    from pathovit.manifest import some
    from pathovit.outputs.folder import OutFolder
    from pathovit.run.progress import Steps
    from pathovit.show.export.formats import FORMATS, MAPPING, export

    out = OutFolder(features)
    damaged = options.refused_slides(out)
    target, steps = folder or features / "export", Steps()
    done = export(out, to, target, names, lambda at, of: steps(f"slides as {to}", at, of))
    for error in done.failed:
        options.note(str(error))
    for why, left in done.left_out.items():
        called = [out.name_of(slide_id) or slide_id for slide_id in left]
        options.note(f"left out {counted(len(left), 'slide')} ({some(called)}): {why}")
    for remark in done.remarks:
        options.note(remark)
    if not done.written:
        sys.stderr.write("Nothing was written.\n")
        sys.exit(3)
    which = "" if FORMATS[to].whole else f"; {MAPPING} says which is which"
    sys.stderr.write(f"{counted(done.written, 'slide')} written to {target}, for {FORMATS[to].readers}{which}.\n")
    if damaged or done.failed:
        sys.exit(3)
