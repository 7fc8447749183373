"""pathovit train, evaluate, compare: a table of labels and stored features to a slide model, and how good it is."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.files import read_bytes
from pathovit.machine import wait_passively
from pathovit.model.judged import SAID, Abstention, Metrics, OfSize, Pooling
from pathovit.run.progress import Steps
from pathovit.text import counted

Labels = Annotated[
    Path,
    typer.Argument(help="CSV with a column slide and those of the target; patient and split (train, validation, test) if known."),
]
Regions = Annotated[
    list[Path] | None,
    typer.Option("--regions", help="GeoJSON of QuPath, named after slides, or a folder of it: classes of single tiles."),
]
FeatureFolder = Annotated[Path, typer.Option("--features", help="Folder that `pathovit embed` or `run` wrote.")]


@app.command()
def train(
    labels: Labels,
    features: FeatureFolder = Path("out"),
    model: Annotated[Path, typer.Option("--model", "-o", help="Folder to write the model to.")] = Path("model"),
    target: Annotated[
        str, typer.Option("--target", help="Column with the truth; several, separated by commas: labels, or time and event.")
    ] = "label",
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="binary, multiclass, multilabel, regression or survival.  \\[default: what the columns look like]"
        ),
    ] = None,
    positive: Annotated[str | None, typer.Option("--positive", help="The positive label.  \\[default: last in order]")] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            help="Cross-validate in so many folds, then fit on all patients; 0: do not.  \\[default: 5 below 50 patients]",
        ),
    ] = None,
    regions: Regions = None,
    group: Annotated[str | None, typer.Option("--group", help="Column, e.g. the site, whose members stay in one part.")] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="slide_transformer, or a yardstick: mean, abmil, clam_sb, transformer, transmil.")
    ] = "slide_transformer",
    epochs: Annotated[int | None, typer.Option("--epochs", help="At most so many.")] = None,
    domain: Annotated[
        str, typer.Option("--domain", help="What it is made for, in words: tissue, stain, scanner. It stands on its card.")
    ] = "",
    precision: options.Precision = None,
    device: options.Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the folder.")] = False,
    keep_names: options.TellNames = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    as_json: options.Json = False,
) -> None:
    """Fit a slide model on stored features: parts by patient, early stopping, calibration, metrics on patients held out.

    Run the same command again after an interruption: it goes on at the epoch where it stopped.
    """
    wait_passively()
    from pathovit.manifest import read_manifest
    from pathovit.model.targets import read_target, said_of_classes
    from pathovit.outputs.lease import lease
    from pathovit.settings import TrainSettings
    from pathovit.study.cohort import load_cohort
    from pathovit.study.study import train_model

    given: dict[str, Any] = {"epochs": epochs, "precision": precision, "device": device}
    settings = replace(TrainSettings(kind=kind, seed=seed), **{key: value for key, value in given.items() if value is not None})
    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    _refuse_existing(model, overwrite)
    columns = [name.strip() for name in target.split(",")]
    rows = read_manifest(labels, options.note, [*columns, *([group] if group else [])])
    asked = read_target(rows, columns, task, positive)
    for said in said_of_classes(rows, asked):
        options.note(said)
    steps = Steps()
    cohort = load_cohort(
        rows, asked, features, group, options.note, lambda done, total: steps("reading features", done, total), regions or ()
    )
    sys.stderr.write(f"{asked.task} target: {', '.join(asked.classes)}; {len(cohort.bags)} patients\n")
    with lease(model, "--model"):
        _refuse_existing(model, overwrite)  # another training may have ended meanwhile
        if overwrite:
            _forget_folds(model)
        card = train_model(cohort, model, settings, folds, show_epoch, options.note, steps, domain, keep_names).values
    if as_json:
        typer.echo(json.dumps(card, indent=1))
    if crossed := card["cross_validation"]:
        _show_metrics(f"{crossed['folds']}-fold cross-validation", Metrics.from_json(crossed), as_json)
        if crossed["abstention"]:
            sys.stderr.write(f"  {Abstention.from_json(crossed['abstention'])}\n")
    for part, found in card["metrics"].items():
        _show_metrics(part, Metrics.from_json(found), as_json)
    if (shown := card["regions"]) and shown["localisation"]:
        _show_metrics(f"map on regions, {shown['part']} part", Metrics.from_json(shown["localisation"]), as_json)
    if card["abstention"]:
        sys.stderr.write(f"  {Abstention.from_json(card['abstention'])}\n")
    for one in card["by_size"]:
        sys.stderr.write(f"  {OfSize(**one)}\n")
    if card["plain_pooling"]:
        sys.stderr.write(f"  {Pooling(**card['plain_pooling'])}\n")
    for text in card["few"]:
        sys.stderr.write(f"  {text}\n")
    sys.stderr.write(f"Model card: {model / 'MODEL_CARD.md'}   (use the model with: pathovit run --model {model})\n")


def _refuse_existing(model: Path, overwrite: bool) -> None:
    if (model / "model.json").exists() and not overwrite:
        raise SettingsError(f"{model}: there is a model here already. Choose another --model, or replace it with --overwrite.")


def _forget_folds(model: Path) -> None:
    """Of the model that is replaced. Those that are younger than it are of an --overwrite that was interrupted, which goes on with them."""
    card, folds = model / "model.json", model / "folds"
    made = card.stat().st_mtime_ns if card.exists() else 0
    there = [path for path in folds.glob("*") if path.is_dir()]
    old = [path for path in there if (card := path / "model.json").exists() and card.stat().st_mtime_ns <= made]
    for fold in old if len(old) < len(there) else [folds]:  # one without a card was being fitted
        shutil.rmtree(fold, ignore_errors=True)


def show_epoch(line: dict[str, float]) -> None:
    """One line of progress."""
    name, value = next((name, value) for name, value in line.items() if name in SAID)
    sys.stderr.write(
        f"epoch {line['epoch']:3.0f}  train loss {line['train_loss']:.4f}  validation loss {line['loss']:.4f}  {SAID[name]} {value:.4f}\n"
    )


def _show_metrics(part: str, found: Metrics, beside_json: bool) -> None:
    """A table on stdout; on stderr where stdout carries JSON."""
    typer.echo(f"\n{part}, {found.patients} patients (95 % interval)", err=beside_json)
    for name, metric in found.found.items():
        typer.echo(f"  {SAID[name]:32} {metric}", err=beside_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    labels: Labels,
    features: FeatureFolder = Path("out"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for predictions.csv, evaluation.json, evaluation.png.")] = Path(
        "evaluation"
    ),
    regions: Regions = None,
    split: Annotated[str | None, typer.Option("--split", help="Only patients of this part of the table's split column.")] = None,
    keep_names: options.TellNames = False,
    as_json: options.Json = False,
) -> None:
    """Judge a slide model on patients with known labels: metrics with intervals, pictures, predictions."""
    wait_passively()
    from pathovit.manifest import read_manifest
    from pathovit.model.card import read_card
    from pathovit.model.targets import said_of_classes
    from pathovit.study.cohort import load_cohort
    from pathovit.study.evaluate import evaluate_model

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    asked = read_card(model)[1].target
    rows = read_manifest(labels, options.note, asked.columns)
    steps = Steps()
    cohort = load_cohort(
        rows, asked, features, None, options.note, lambda done, total: steps("reading features", done, total), regions or ()
    )
    for said in said_of_classes(rows, asked):
        options.note(said)
    found = evaluate_model(model, cohort, out, split, on_step=steps, keep_names=keep_names)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    _show_metrics(found.model, found.metrics, as_json)
    if found.localisation:
        _show_metrics("map on regions", found.localisation, as_json)
    for one in found.sizes:
        sys.stderr.write(f"  {one}\n")
    if found.abstention:
        sys.stderr.write(f"  {found.abstention}\n")
    for remark in found.remarks:
        options.note(remark)
    if found.patients_it_learned_from:
        test = split is None and "test" in cohort.fixed.values()
        sys.stderr.write(
            f"pathovit: the model learned from {found.patients_it_learned_from} of these patients; its figures on them say little. "
            + ("Use --split test.\n" if test else f"What it knows of others stands in {Path(model) / 'MODEL_CARD.md'}.\n")
        )
    if found.patients_named_alike:
        options.note(
            f"{counted(found.patients_named_alike, 'patient')} of other slides are called like some that the model learned from; if they "
            "are these, figures on them say little"
        )
    if not (found.patients_it_learned_from or found.patients_named_alike) and found.patients_known_by != "names and slides":
        options.note(f"whether the model learned from these patients was looked up by {found.patients_known_by}")
    sys.stderr.write(f"Pictures and predictions: {out}\n")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder that `pathovit evaluate` wrote.")],
    b: Annotated[Path, typer.Argument(help="Another one, of the same patients.")],
    as_json: options.Json = False,
) -> None:
    """Two models on the same patients: the difference of every metric with its interval and p-value (paired bootstrap)."""
    from pathovit.model.targets import Target
    from pathovit.study.evaluation import compare as compare_answers
    from pathovit.study.evaluation import read_answers
    from pathovit.study.localisation import compare_maps, read_maps

    cards, answers = [], []
    for folder in (a, b):
        try:
            cards.append(json.loads(read_bytes(folder / "evaluation.json")))
            answers.append(read_answers(folder / "predictions.csv", Target.from_json(cards[-1]["target"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"{folder}: not a folder that `pathovit evaluate` wrote ({error}).") from error
    found = compare_answers(answers[0], answers[1])
    learned = [int(card.get("patients_it_learned_from", 0)) for card in cards]
    for card, count in zip(cards, learned, strict=True):
        for remark in card.get("remarks", ()):
            options.note(f"{card['model']}: {remark}")
        alike = int(card.get("patients_named_alike", 0))
        if count or alike:
            what = f"learned from {count}" + (f", and from {alike} more if it is names that tell them" if alike else "")
            options.note(
                f"{card['model']} {what} of the {counted(card['patients'], 'patient')} of its evaluation: it may know them by heart"
            )
    if all(card.get("localisation") for card in cards):
        found |= compare_maps(read_maps(a / "localisation.csv"), read_maps(b / "localisation.csv"))
    if as_json:
        shown: dict[str, object] = {name: asdict(line) for name, line in found.items()}
        named = {side: int(card.get("patients_named_alike", 0)) for side, card in zip("ab", cards, strict=True)}
        more = {"patients_learned_from": dict(zip("ab", learned, strict=True)), "patients_named_alike": named}
        typer.echo(json.dumps(shown | more, indent=1))
        return
    typer.echo(f"{next(iter(found.values())).patients} patients; a = {cards[0]['model']}, b = {cards[1]['model']}")
    for name, line in found.items():
        typer.echo(
            f"{SAID[name]:34} a {line.a}  b {line.b}  b - a {line.difference} ({line.low} to {line.high})  p = {line.p_value}"
        )
