"""pathovit run, pathovit embed: slides to answers and heatmaps, or to features alone."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import app, options
from pathovit.settings import Settings
from pathovit.text import duration, plain

if TYPE_CHECKING:
    from pathovit.cluster import SlideState
    from pathovit.pipeline import SlideJob
    from pathovit.report import Failure

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
REFERENCE = "reference"


@app.command()
def run(
    slides: options.MaybeSlides = None,
    out: options.Out = Path("out"),
    model: Annotated[
        str | None, typer.Option("--model", help="Model folder made by `pathovit train`.  [default: the bundled one]")
    ] = None,
    mpp: options.Mpp = None,
    manifest: options.ManifestFile = None,
    encoder: options.EncoderName = None,
    weights: options.Weights = None,
    tile_px: options.TilePx = None,
    tile_mpp: options.TileMpp = None,
    min_coverage: options.MinCoverage = None,
    max_upsampling: options.MaxUpsampling = None,
    max_tiles: options.MaxTiles = None,
    hot_score: Annotated[
        float | None, typer.Option("--hot-score", help="Outline regions at or above this score.  [default: 0.5]")
    ] = None,
    error_rate: options.ErrorRate = None,
    precision: options.Precision = None,
    engine: options.Engine = None,
    batch_tiles: options.BatchTiles = None,
    reader: options.Reader = None,
    device: options.Device = None,
    workers: options.Workers = None,
    readers: options.Readers = None,
    scheduler: options.Scheduler = None,
    scheduler_file: options.SchedulerFile = None,
    settings_file: options.SettingsFile = None,
    overwrite: options.Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; read no tiles, load no model.")] = False,
    as_json: options.Json = False,
) -> None:
    """Slide files to slide-level answers and heatmaps.

    Run the same command again after an interruption: it goes on where it stopped.
    """
    settings = options.merge_settings(
        settings_file, model=model, encoder=encoder, weights=weights, tile_px=tile_px, tile_mpp=tile_mpp,
        min_coverage=min_coverage, max_upsampling=max_upsampling, max_tiles=max_tiles, hot_score=hot_score, error_rate=error_rate,
        precision=precision, engine=engine, batch_tiles=batch_tiles, reader=reader, device=device, workers=workers, readers=readers,
        scheduler=scheduler, scheduler_file=scheduler_file,
    )  # fmt: skip
    settings, folder = match_model(settings, settings.embed.encoder != REFERENCE or encoder is not None, model is not None)
    jobs = options.find_jobs(slides, mpp, manifest)
    if dry_run:
        from pathovit.cli.info import show_plan

        sys.exit(show_plan(jobs, settings, as_json))
    sys.exit(carry_out(jobs, out, settings, folder, overwrite, as_json))


@app.command()
def embed(
    slides: options.MaybeSlides = None,
    out: options.Out = Path("out"),
    mpp: options.Mpp = None,
    manifest: options.ManifestFile = None,
    encoder: options.EncoderName = None,
    weights: options.Weights = None,
    tile_px: options.TilePx = None,
    tile_mpp: options.TileMpp = None,
    min_coverage: options.MinCoverage = None,
    max_upsampling: options.MaxUpsampling = None,
    max_tiles: options.MaxTiles = None,
    precision: options.Precision = None,
    engine: options.Engine = None,
    batch_tiles: options.BatchTiles = None,
    reader: options.Reader = None,
    device: options.Device = None,
    workers: options.Workers = None,
    readers: options.Readers = None,
    scheduler: options.Scheduler = None,
    scheduler_file: options.SchedulerFile = None,
    settings_file: options.SettingsFile = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Slide files to stored features, without a slide model: what `pathovit train` learns from."""
    settings = options.merge_settings(
        settings_file, encoder=encoder, weights=weights, tile_px=tile_px, tile_mpp=tile_mpp, min_coverage=min_coverage,
        max_upsampling=max_upsampling, max_tiles=max_tiles, precision=precision, engine=engine, batch_tiles=batch_tiles, reader=reader, device=device,
        workers=workers, readers=readers, scheduler=scheduler, scheduler_file=scheduler_file,
    )  # fmt: skip
    sys.exit(carry_out(options.find_jobs(slides, mpp, manifest), out, settings, None, overwrite, as_json))


def match_model(settings: Settings, encoder_given: bool, model_given: bool) -> tuple[Settings, str | None]:
    """Settings and model folder that fit each other.

    A model brings the encoder and the tiles it was trained on, unless others were asked for; an encoder that no model
    was given for is run for its features alone.
    """
    from pathovit.errors import SettingsError
    from pathovit.model_card import NO_EVIDENCE, read_card

    if not model_given and settings.heatmap.model == REFERENCE and settings.embed.encoder != REFERENCE:
        sys.stderr.write(
            f"pathovit: no slide model for encoder {settings.embed.encoder!r} was given: features only. "
            "Train one with `pathovit train LABELS.csv`, then use --model.\n"
        )
        return settings, None
    folder, card = read_card(settings.heatmap.model)
    if card["config"]["kind"] in NO_EVIDENCE:
        raise SettingsError(
            f"{settings.heatmap.model}: a {card['config']['kind']} model says nothing of single tiles, so there is no heatmap to draw. "
            "Use it with predict and evaluate, or train a slide_transformer."
        )
    if settings.heatmap.model != REFERENCE:  # `heatmap` may be called from another folder later
        settings = replace(settings, heatmap=replace(settings.heatmap, model=str(folder)))
    trained = card["encoder"]
    if not encoder_given:
        settings = replace(settings, embed=replace(settings.embed, encoder=trained["encoder"]))
    tiles = settings.tiles
    settings = replace(
        settings, tiles=replace(tiles, tile_px=tiles.tile_px or trained["tile_px"], mpp=tiles.mpp or trained["mpp"])
    )
    _refuse_misfit(settings, trained, settings.heatmap.model)
    return settings, str(folder)


def _refuse_misfit(settings: Settings, trained: dict[str, Any], model: str) -> None:
    """Refuse tiles and encoders that the model was not made for; before workers are started."""
    from pathovit.errors import SettingsError

    asked = {"encoder": settings.embed.encoder, "tile_px": settings.tiles.tile_px, "mpp": settings.tiles.mpp}
    for key, option in (("encoder", "--encoder"), ("tile_px", "--tile-px"), ("mpp", "--tile-mpp")):
        if asked[key] != trained[key]:
            raise SettingsError(
                f"{option} {asked[key]}: the model {Path(model).name!r} was made for {trained[key]}. Leave out {option}; or store features with "
                "`pathovit embed`, train a model on them, and give that with --model."
            )


def carry_out(jobs: Sequence[SlideJob], out: Path, settings: Settings, model: str | None, overwrite: bool, as_json: bool) -> int:
    """Run all jobs into a folder and report; returns the exit code."""
    from pathovit.lease import lease

    with lease(out):
        code = _carry_out(jobs, out, settings, model, overwrite, as_json)
        if code in SIGNALS.values():
            leave(code)
        return code


def _carry_out(jobs: Sequence[SlideJob], out: Path, settings: Settings, model: str | None, overwrite: bool, as_json: bool) -> int:
    from pathovit.cli.progress import Progress
    from pathovit.cluster import Work, run_slides
    from pathovit.encoders.check import check_weights
    from pathovit.errors import PathovitError, StorageError
    from pathovit.model_card import model_digest, read_card
    from pathovit.provenance import run_record
    from pathovit.report import TRAIN_HINT, Failure, Twin, refused_records, write_predictions, write_report
    from pathovit.store import to_json, write_atomically

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    settings = options.weights_path(settings)
    weights_sha256 = check_weights(settings)
    card = read_card(model)[1] if model is not None else {}
    model_sha256 = model_digest(card) if card else None
    started, began = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic()
    record = run_record(
        command=sys.argv[1:],
        started=started,
        settings=settings.to_dict(),
        weights_sha256=weights_sha256,
        model=model,
        model_sha256=model_sha256,
        demonstration=card.get("demonstration", False),
        slides=[str(job.path) for job in jobs],
    )
    write_atomically(out / "run.json", to_json({**record, "exit_code": None}))
    work = Work(out.resolve(), settings, weights_sha256, model, model_sha256, overwrite)
    try:
        with stoppable() as stop, Progress(len(jobs)) as progress:
            states = run_slides(jobs, work, progress.changed, stop.event, progress.say)
    except StorageError:
        raise  # nothing can be written there
    except PathovitError as error:
        write_atomically(out / "run.json", to_json({**record, "exit_code": error.exit_code, "error": str(error)}))
        write_predictions(out, [])
        write_report(out, [], record)  # what was finished before is shown
        raise
    failures = [
        Failure(state.job.path.name, state.reason.splitlines()[0], state.plan.slide_id if state.plan else "")
        for state in states
        if state.stage == "failed"
    ]
    for slide_id, fault in refused_records(out).items():
        options.note(f"{slide_id}: {fault}")
    twins = [Twin(state.job.path.name, state.plan.slide_id, state.job.patient) for state in states if state.twin and state.plan]
    write_predictions(out, failures, twins)
    code = stop.code or exit_code(states)
    finished = {"seconds": round(time.monotonic() - began, 1), "exit_code": code}
    outcomes = [
        {"file": s.job.path.name, "stage": s.stage, "slide_id": s.plan.slide_id if s.plan else "", "reason": s.reason}
        for s in states
    ]
    record |= {"finished": finished, "outcomes": outcomes}
    write_atomically(out / "run.json", to_json({**record, "exit_code": code}))
    report = write_report(out, failures, record, twins)
    _say_goodbye(states, failures, out, report, code, time.monotonic() - began)
    if card.get("demonstration") and any(state.done for state in states):
        sys.stderr.write(f"\n{TRAIN_HINT}\n")
    if as_json:
        typer.echo(json.dumps({"exit_code": code, "out": str(out), "slides": [_as_json(state) for state in states]}, indent=1))
    return code


def exit_code(states: Sequence[SlideState]) -> int:
    """0 all done; 1 a fault of ours; 3 some slide failed or is degraded."""
    if any(state.internal for state in states):
        return 1
    bad = any(state.stage != "done" or (state.done and state.done["verdict"] != "ok") for state in states)
    return 3 if bad else 0


def _as_json(state: SlideState) -> dict[str, Any]:
    found: dict[str, Any] = {"file": state.job.path.name, "stage": state.stage, "skipped": state.skipped, "reason": state.reason}
    if state.plan:
        found |= {"slide_id": state.plan.slide_id, "tiles": state.plan.tiles, "mpp": state.plan.mpp}
    if state.done:
        found |= {"verdict": state.done["verdict"], "prediction": state.done["prediction"], "reason": state.done["reason"]}
    return found


def _said_unsure(states: Sequence[SlideState]) -> str:
    """One sentence for all slides that got no answer, and why; nothing if all have one."""
    answers = [state.done["prediction"] for state in states if state.done and state.done["prediction"]]
    unsure = [answer for answer in answers if answer["answer"] == "unsure"]
    if not unsure:
        return ""
    strange = sum(answer["strange"] for answer in unsure)
    why = [f"{strange} unlike the slides the model knows"] if strange else []
    why += [f"{len(unsure) - strange} between its classes"] if len(unsure) > strange else []
    return f"{len(unsure)} of {len(answers)} answers are unsure: {', '.join(why)}.\n"


def _say_goodbye(
    states: Sequence[SlideState], failures: Sequence[Failure], out: Path, report: Path, code: int, seconds: float
) -> None:
    done = sum(state.stage == "done" for state in states)
    sys.stderr.write(f"\n{done} of {len(states)} slides done in {duration(seconds)}.\n")
    for failure in failures:
        sys.stderr.write(f"  failed  {plain(failure.file)}: {plain(failure.reason)}\n")
    for state in states:
        if state.internal:
            sys.stderr.write(state.reason + "\n")
    sys.stderr.write(_said_unsure(states))
    if code in SIGNALS.values():
        sys.stderr.write("Interrupted. The same command goes on where it stopped.\n")
    sys.stderr.write(f"Report:       {report}\nPredictions:  {out / 'predictions.csv'}\nPer slide:    {out / 'slides'}\n")


def leave(code: int) -> NoReturn:
    """End at once, without closing what was interrupted in order: on a busy machine that takes long, and complains."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Stop:
    """Set by a signal; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.code = 0

    def __call__(self, number: int, frame: object) -> None:
        if self.event.is_set():
            leave(SIGNALS[signal.Signals(number)])
        self.code = SIGNALS[signal.Signals(number)]
        self.event.set()
        sys.stderr.write("\npathovit: stopping; what is stored stays.\n")


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Catch the signals of a terminal and of batch systems for as long as this lasts."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
