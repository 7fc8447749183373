"""pathovit predict, pathovit heatmap: answers and pictures from features that are stored already."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import app, options
from pathovit.cli.progress import Steps
from pathovit.device import threads_for, wait_passively
from pathovit.errors import NoSlidesError
from pathovit.settings import Settings, settings_from_dict

Features = Annotated[Path, typer.Argument(help="Folder that `pathovit embed` or `run` wrote.")]
ModelFolder = Annotated[str, typer.Option("--model", help="Model folder; the bundled one by default.")]


@app.command()
def predict(
    features: Features, model: ModelFolder = "reference", error_rate: options.ErrorRate = None, as_json: options.Json = False
) -> None:
    """Slide-level answers from stored features, as CSV on stdout; slides themselves are not needed."""
    from pathovit.report import cell
    from pathovit.slide_model import load_model

    wait_passively()
    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    settings = options.merge_settings(None, error_rate=error_rate)
    loaded = load_model(model)
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    steps, total = Steps(), len(list((features / "slides").glob("*")))
    for done, slide in options.stored_slides(features, damaged):
        steps("slides answered", len(rows), total)
        with threads_for(len(slide.xy)):
            answer = loaded.predict(slide, settings.answer.error_rate)
        numbers = {name: float(f"{value:.7g}") for name, value in answer.columns().items()}
        novelty = answer.to_dict()["novelty"]
        strange = f"unlike the slides the model knows (novelty {answer.novelty:.2f})" if answer.strange else ""
        said = filter(None, [strange, slide.trial, *done["slide"]["remarks"], *loaded.remarks(slide)])
        who = {"slide_id": slide.slide_id, "file": done["slide"]["file"], "patient": done["slide"]["patient"] or ""}
        told = {"novelty": novelty, "tiles": int(slide.ok.sum()), "trial": slide.trial, "reason": "; ".join(said)}
        rows.append({**who, "answer": answer.answer, **numbers, **told})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in told]
        writer = csv.DictWriter(sys.stdout, [*names, *told], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    if damaged:
        sys.exit(3)


def last_settings(out: Path) -> Settings:
    """The settings of the last run into a folder."""
    try:
        record = json.loads((out / "run.json").read_bytes())
    except (OSError, ValueError) as error:
        raise NoSlidesError(f"{out}: no run was made into it (run.json is missing or damaged). Use `pathovit run`.") from error
    return settings_from_dict(record["settings"], f"{out / 'run.json'}")


@app.command()
def heatmap(
    slides: options.Slides,
    features: Annotated[Path, typer.Option("--out", "-o", help="Folder with their features.")] = Path("out"),
    model: Annotated[str | None, typer.Option("--model", help="Model folder.")] = None,
    manifest: options.ManifestFile = None,
    mpp: options.Mpp = None,
    settings_file: options.SettingsFile = None,
    hot_score: Annotated[float | None, typer.Option("--hot-score", help="Outline regions at or above this score.")] = None,
    error_rate: options.ErrorRate = None,
    check: Annotated[
        bool | None, typer.Option("--check", help="Measure whether the heatmap shows what the answer rests on (minutes a slide).")
    ] = None,
) -> None:
    """Draw heatmaps and the report anew from stored features, e.g. with another model or threshold.

    Tiles and encoder are those of the run that stored them, unless --settings says otherwise.
    """
    from pathovit.cli.run import carry_out, match_model

    settings = options.merge_settings(
        settings_file, last_settings(features), model=model, hot_score=hot_score, error_rate=error_rate, check=check
    )
    settings, folder = match_model(settings, encoder_given=True, model_given=model is not None)
    sys.exit(carry_out(options.find_jobs(slides, mpp, manifest), features, settings, folder, False, False))
