"""pathovit import: features that other programs stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.text import counted


@app.command("import")
def import_(
    features: Annotated[
        list[Path], typer.Argument(help="Files (.h5) of TRIDENT, CLAM, STAMP or AtlasPatch, or folders of them.")
    ],
    out: options.Out = Path("out"),
    mpp: options.Mpp = None,
    manifest: options.ManifestFile = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Which encoder made them (pathovit encoders), where no file says it.")
    ] = None,
    patches: Annotated[
        Path | None, typer.Option("--patches", help="CLAM's folder `patches`, which says how large tiles are.")
    ] = None,
    keep_names: options.KeepNames = None,
) -> None:
    """Take over features that another program stored, for train, evaluate, predict and teach.

    pathovit import trident/20x_256px_0px_overlap/features_uni_v1 --out features
    pathovit import clam/h5_files --patches patches --encoder resnet50 --mpp 0.25
    """
    from pathovit.run.import_features import import_features
    from pathovit.run.progress import Steps

    steps = Steps()
    done = import_features(
        features, out, mpp=mpp, manifest=manifest, encoder=encoder, patches=patches, keep_names=bool(keep_names), say=options.note,
        on_step=lambda at, of: steps("features taken over", at, of),
    )  # fmt: skip
    for error in done.failed:
        options.note(f"failed: {error}")
    before = f", {done.there} lay there already" if done.there else ""
    sys.stderr.write(
        f"{counted(done.imported, 'slide')} taken over into {out}{before}. Next: pathovit train LABELS.csv --features {out}\n"
    )
    if done.failed:
        sys.exit(3)
