"""pathovit run, pathovit embed: slides to answers and heatmaps, or to features alone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.util import get_temp_dir
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.signals import CODES
from pathovit.text import counted, duration, plain

if TYPE_CHECKING:
    from pathovit.run.folder import RunResult, Stop
    from pathovit.run.match import Matched
    from pathovit.run.plan import SlideJob
    from pathovit.run.schedule import SlideState


@app.command()
@options.takes_slides(*options.OF_SLIDES, *options.OF_THE_MACHINE, *options.OF_A_CLUSTER, *options.OF_ANSWERS)
def run(
    asked: options.Asked,
    out: options.Out = Path("out"),
    overwrite: options.Overwrite = False,
    join: options.Join = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; read no tiles, load no model.")] = False,
    as_json: options.Json = False,
) -> None:
    """Slide files to slide-level answers and heatmaps.

    Run the same command again after an interruption: it goes on where it stopped.
    """
    from pathovit.run.match import match_model

    settings = asked.settings()
    encoder_given = "encoder" in asked.given or settings.embed.encoder != "reference"
    matched = match_model(settings, encoder_given, "model" in asked.given, options.note)
    jobs = asked.jobs()
    if dry_run:
        from pathovit.cli.info import show_plan

        sys.exit(show_plan(jobs, matched.settings, as_json))
    sys.exit(carry_out(jobs, out, matched, overwrite, as_json, join))


@app.command()
@options.takes_slides(*options.OF_SLIDES, *options.OF_THE_MACHINE, *options.OF_A_CLUSTER)
def embed(
    asked: options.Asked,
    out: options.Out = Path("out"),
    overwrite: options.Overwrite = False,
    join: options.Join = False,
    as_json: options.Json = False,
) -> None:
    """Slide files to stored features, without a slide model: what `pathovit train` learns from."""
    from pathovit.run.match import Matched

    sys.exit(carry_out(asked.jobs(), out, Matched(asked.settings(), None), overwrite, as_json, join))


def carry_out(jobs: Sequence[SlideJob], out: Path, matched: Matched, overwrite: bool, as_json: bool, join: bool = False) -> int:
    """Run all jobs into a folder with progress on stderr, and say what came of it; returns the exit code."""
    from pathovit.outputs.inventory import holding
    from pathovit.run.folder import run_jobs
    from pathovit.run.progress import Progress

    with holding(out, join) as (folder, leases):
        sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
        with stoppable() as stop, Progress(len(jobs)) as progress:
            result = run_jobs(
                jobs, folder, matched, overwrite, sys.argv[1:], progress.changed, progress.say, stop, leases
            )  # fmt: skip
        _say_goodbye(result)
        if as_json:
            slides = [_as_json(state) for state in result.states]
            typer.echo(json.dumps({"exit_code": result.exit_code, "out": str(out), "slides": slides}, indent=1))
    if result.exit_code in CODES.values():
        leave(result.exit_code)
    return result.exit_code


def _as_json(state: SlideState) -> dict[str, object]:
    found: dict[str, object] = {
        "file": state.job.path.name, "stage": state.stage, "skipped": state.skipped, "code": state.code, "reason": state.reason
    }  # fmt: skip
    if state.slide_id:
        found["slide_id"] = state.slide_id
    if state.plan:
        found |= {"tiles": state.tiles, "mpp": state.plan.description.mpp}
    if state.done:
        answer = state.done.prediction
        found |= {"verdict": state.done.verdict, "prediction": answer and dataclasses.asdict(answer), "reason": state.done.reason}
    return found


def _said_unsure(states: Sequence[SlideState]) -> str:
    """What there is to say of slides that got no answer; nothing if all have one."""
    answers = [state.done.prediction for state in states if state.done and state.done.prediction]
    unsure, outside = sum(answer.unsure for answer in answers), sum(answer.strange for answer in answers)
    said = f"{unsure} of {len(answers)} answers are unsure, between the model's classes.\n" if unsure else ""
    if outside:
        said += f"Outside what the model was made for: {outside} of {counted(len(answers), 'slide')}. Paint some of their tissue, and use: pathovit teach\n"
    return said


def _say_goodbye(result: RunResult) -> None:
    from pathovit.outputs.names import PRIVATE
    from pathovit.show.report import TRAIN_HINT

    states, say = result.states, sys.stderr.write
    done = sum(state.stage == "done" for state in states)
    say(f"\n{done} of {len(states)} slides done in {duration(result.record.seconds or 0.0)}.\n")
    for state in states:
        if state.stage == "failed":
            say(f"  failed  {plain(state.job.path.name)}: {plain(state.reason.splitlines()[0])}\n")
    if retries := result.record.retries:
        say(f"  {counted(retries, 'read')} failed and had to be tried again: look at the drive that slides or results lie on.\n")
    for refused in result.refused:
        say(f"  not read  {refused.slide_id}: {refused.reason}\n")
    if glanced := sum(state.plan.unread > 0 for state in states if state.plan and state.skipped):
        say(
            f"Of {counted(glanced, 'slide')} that were done already not every byte was looked at (--full-check, or: pathovit verify {result.out.path}).\n"
        )
    for state in states:
        if state.internal:
            say(state.reason + "\n")
    say(_said_unsure(states))
    if result.exit_code in CODES.values():
        say("Interrupted. The same command goes on where it stopped.\n")
    table = "Predictions" if any(state.done and state.done.prediction for state in states) else "Table"
    out = result.out
    say(f"Report:       {out.report}\n{f'{table}:':13} {out.predictions}\nPer slide:    {out.path / 'slides'}\n")
    if (kinds := out.path / "tissue" / "kinds.png").is_file():
        say(f"Tissue:       {kinds}\n")
    if result.named:
        say(
            f"Names:        {counted(result.named, 'slide')} of this folder were stored with names before, and keep them. For results without: another --out\n"
        )
    if (out.path / PRIVATE).is_file():
        say(
            f"Names:        {out.path / PRIVATE} (for you alone: results speak of ids; pathovit names {quote(str(out.path))}, or --keep-names)\n"
        )
    if any(state.done for state in states):
        say(f"Review:       pathovit review {quote(str(out.path))}\n")
    if result.record.demonstration and any(state.done for state in states):
        say(f"\n{TRAIN_HINT}\n")


def leave(code: int) -> NoReturn:
    """End at once: all is on disk, and to take apart what is left of workers in order takes a second, and complains where it was interrupted."""
    sys.stdout.flush()
    sys.stderr.flush()
    shutil.rmtree(get_temp_dir(), ignore_errors=True)  # of the process that workers are forked from
    os._exit(code)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Catch the signals of a terminal and of batch systems for as long as this lasts. A second one ends the process at once."""
    from pathovit.run.folder import Stop

    stop = Stop()

    def caught(number: int, frame: object) -> None:
        code = CODES[signal.Signals(number)]
        if stop.event.is_set():
            leave(code)
        stop.code = code
        stop.event.set()
        sys.stderr.write("\npathovit: stopping; what is stored stays.\n")

    before = {number: signal.signal(number, caught) for number in CODES}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
