"""pathovit train: stored features and a table of labels to a slide model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import app, options


@app.command()
def train(
    labels: Annotated[
        Path, typer.Argument(help="CSV with columns slide, label; patient and split (train, validation, test) if known.")
    ],
    features: Annotated[Path, typer.Option("--features", help="Folder that `pathovit embed` or `run` wrote.")] = Path("out"),
    model: Annotated[Path, typer.Option("--model", "-o", help="Folder to write the model to.")] = Path("model"),
    target: Annotated[str, typer.Option("--target", help="Column with the truth.")] = "label",
    positive: Annotated[str | None, typer.Option("--positive", help="The positive label.  [default: last in order]")] = None,
    kind: Annotated[str, typer.Option("--kind", help="slide_transformer, abmil or mean.")] = "slide_transformer",
    epochs: Annotated[int | None, typer.Option("--epochs", help="At most so many.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the folder.")] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    as_json: options.Json = False,
) -> None:
    """Fit a slide model on stored features: patient-level split, early stopping, metrics on the held-out part."""
    from pathovit.errors import SettingsError
    from pathovit.manifest import read_manifest
    from pathovit.training import TrainSettings
    from pathovit.training import train as fit

    if kind not in ("slide_transformer", "abmil", "mean"):
        raise SettingsError(f"--kind {kind!r} is unknown. Use slide_transformer, abmil or mean.")
    if (model / "model.json").exists() and not overwrite:
        raise SettingsError(f"{model}: there is a model here already. Choose another --model, or replace it with --overwrite.")
    settings = TrainSettings(kind=kind, seed=seed)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")

    def show(line: dict[str, float]) -> None:
        sys.stderr.write(
            f"epoch {line['epoch']:3.0f}  train loss {line['train_loss']:.4f}  validation loss {line['loss']:.4f}  AUROC {line['auroc']:.4f}\n"
        )

    card = fit(read_manifest(labels), features, model, target, positive, settings, show)
    if as_json:
        typer.echo(json.dumps(card, indent=1))
    for part, found in card["metrics"].items():
        m = found["auroc"]
        between = f"95 % interval {m['low']} to {m['high']}" if m["low"] is not None else "too few for an interval, or to rely on"
        sys.stderr.write(f"{part}: AUROC {m['value']}, {found['patients']} patients ({between})\n")
    sys.stderr.write(f"Model: {model}   (use it with: pathovit run --model {model})\n")
