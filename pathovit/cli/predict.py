"""pathovit predict, pathovit heatmap: answers and pictures from features that are stored already."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import NoSlidesError, SettingsError
from pathovit.machine import threads_for, wait_passively
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import RecordError
from pathovit.outputs.runs import RUN, all_runs, last_run
from pathovit.run.progress import Steps
from pathovit.settings import Settings, on_this_machine, settings_from_dict

Row: TypeAlias = dict[str, object]
Features = Annotated[Path, typer.Argument(help="Folder that `pathovit embed` or `run` wrote.")]
ModelFolder = Annotated[str, typer.Option("--model", help="Model folder; the bundled one by default.")]


@app.command()
def predict(
    features: Features, model: ModelFolder = "reference", error_rate: options.ErrorRate = None, as_json: options.Json = False
) -> None:
    """Slide-level answers from stored features, as CSV on stdout; slides themselves are not needed."""
    from pathovit.files import csv_table
    from pathovit.model.slide_model import load_model
    from pathovit.show.table import in_order

    wait_passively()
    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    settings = options.merge_settings(None, error_rate=error_rate)
    loaded = load_model(model)
    rows: list[Row] = []
    damaged: list[str] = []
    unfit: list[SettingsError] = []
    steps, total = Steps(), len(OutFolder(features).slides())
    for record, slide in options.stored_slides(features, damaged):
        steps("slides answered", len(rows), total)
        try:
            with threads_for(len(slide.xy)):
                prediction = loaded.predict(slide, settings.answer.error_rate)
        except SettingsError as error:  # made for another model, among others that were made for this one
            unfit.append(error)
            options.note(f"{slide.slide_id}: {error}")
            continue
        answer = prediction.to_answer(loaded.name)
        numbers: Row = {name: None if value is None else float(f"{value:.7g}") for name, value in answer.columns.items()}
        said = filter(None, [prediction.remark, slide.trial, *record.survey.remarks, *loaded.remarks(slide)])
        who: Row = {"slide_id": slide.slide_id, "file": record.description.file, "patient": record.patient or ""}
        told: Row = {"novelty": answer.novelty, "tiles": int(slide.ok.sum()), "trial": slide.trial, "reason": "; ".join(said)}
        rows.append({**who, "answer": answer.answer, **numbers, **told})
    if unfit and not rows:
        raise unfit[0]
    rows = in_order(rows)  # as in predictions.csv
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in told]
        sys.stdout.write(csv_table([*names, *told], rows).decode())
    if damaged or unfit:
        sys.exit(3)


def last_settings(out: Path) -> Settings:
    """The settings of the last run into a folder that did anything there, as far as they hold for another one here."""
    try:
        folder = OutFolder(out)
        last = last_run(folder)
        record = next((run for run in all_runs(folder) if run.did_something), last).with_names(folder.names())
    except RecordError as error:
        raise NoSlidesError(f"{out}: no run was made into it ({error}). Use `pathovit run`.") from error
    return on_this_machine(settings_from_dict(dict(record.settings), f"{out / RUN}"))


@app.command()
@options.takes_slides("tissue", "model", "hot_score", "error_rate", "check", default="as in the last run")
def heatmap(
    asked: options.Asked,
    features: Annotated[Path, typer.Option("--out", "-o", help="Folder with their features.")] = Path("out"),
) -> None:
    """Draw heatmaps and the report anew from stored features, e.g. with another model or threshold.

    What is not given is as in the last run into the folder, the model too; a file of --settings stands for all of that. --tissue is given as it
    was then.
    """
    from pathovit.cli.run import carry_out
    from pathovit.run.match import match_model

    jobs = asked.jobs()
    settings = asked.settings(last_settings(features))
    matched = match_model(settings, encoder_given=True, model_given="model" in asked.given, say=options.note)
    sys.exit(carry_out(jobs, features, matched, False, False))
