"""A whole run of all slides, as `pathovit run` does it: its start, what lies between the batches, and its end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from pathovit.bench.timing import NAN, Measured, median
from pathovit.bench.usage import Usage, watched
from pathovit.errors import InternalError, PathovitError, SettingsError
from pathovit.outputs.folder import OutFolder
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide
from pathovit.settings import Settings

if TYPE_CHECKING:
    from pathovit.encoders.spec import EncoderSpec
    from pathovit.run.device import Span
    from pathovit.run.match import Matched


@dataclass(frozen=True)
class Run:
    """What one run has taken."""

    tiles: int
    wall_s: float
    start_s: float  # command to first batch
    spans: list[list[Span]]  # of each slide, in which a device had a batch; seconds since the first began
    usage: Usage

    @property
    def embedding_s(self) -> float:
        return max(end for spans in self.spans for _, end in spans)

    @property
    def after_s(self) -> float:
        return self.wall_s - self.start_s - self.embedding_s


def matched_model(settings: Settings) -> Matched:
    """The settings, with the bundled model where its encoder and its tiles are asked for; else features only."""
    from pathovit.model.card import REFERENCE
    from pathovit.run.match import Matched, match_model

    try:
        return match_model(settings, settings.embed.encoder != REFERENCE, False)
    except SettingsError:  # other tiles than the model was made for: their features can be measured
        return Matched(settings, None)


def one_run(jobs: Sequence[SlideJob], matched: Matched, out: Path) -> Run:
    """Into a folder that is empty yet, by a process of its own: what is loaded here already would be missing from its start."""
    context = get_context("spawn")
    answers, told = context.Pipe(duplex=False)
    began = time.time()
    child = context.Process(target=_run_as_child, args=(jobs, matched, out, told))
    child.start()
    told.close()
    with watched(child.pid) as usage:
        try:
            found = answers.recv()
        except EOFError:
            found = InternalError("internal error: the run that was to be measured ended without a word.")
        child.join()
        wall = time.time() - began
    if isinstance(found, PathovitError):
        raise found
    tiles, spans = found
    first = min((begun for one in spans for begun, _ in one), default=None)
    if first is None:
        raise SettingsError("No tile was embedded.")
    moved = [sorted((begun - first, ended - first) for begun, ended in one) for one in spans]
    return Run(tiles, wall, first - began, moved, usage)


def _run_as_child(jobs: Sequence[SlideJob], matched: Matched, out: Path, told: Connection) -> None:
    """What the command does. Tells how many tiles there were, and when the devices had batches of each slide; or what is wrong."""
    from pathovit.outputs.lease import lease
    from pathovit.run.folder import Stop, run_jobs

    try:
        with lease(out):
            states = run_jobs(
                jobs, OutFolder(out), matched, False, ("bench",), lambda state: None, lambda text: None, Stop()
            ).states
    except PathovitError as error:
        told.send(error)
        return
    failed = [f"{state.job.path.name}: {state.reason}" for state in states if state.stage == "failed"]
    if failed:
        told.send(SettingsError(f"{failed[0]} Bench with slides that can be embedded."))
        return
    told.send((sum(state.tiles for state in states), [list(state.spans) for state in states]))


def lines_of(runs: Sequence[Run], alone: float) -> list[Measured]:
    """Medians; `alone` is how many tiles per second the encoder does when nothing is beside it."""
    embedding = statistics.median(run.embedding_s for run in runs)
    busy, pause = (statistics.median(found) for found in zip(*(device_use(run.spans) for run in runs), strict=True))
    start, after, wall, core_s = (
        statistics.median(values)
        for values in zip(*((run.start_s, run.after_s, run.wall_s, run.usage.core_s) for run in runs), strict=True)
    )
    tiles, slides = runs[0].tiles, sum(bool(spans) for spans in runs[0].spans)
    peak_mb = max(run.usage.peak_bytes for run in runs) / 2**20
    encoding = f"the encoder alone needs {tiles / alone:.1f} s, {tiles / alone / wall:.0%} of it"
    return [
        Measured("start", NAN, start, "command to first batch"),
        Measured("end to end", tiles / embedding, embedding, f"{tiles:,} tiles of {slides} slides, first batch to last"),
        Measured("  share of the encoder", NAN, tiles / alone, f"{tiles / alone / embedding:.1%} of what it does alone"),
        Measured("  device busy", NAN, busy, f"{busy / embedding:.1%} of that time it had a batch; longest pause {pause:.2f} s"),
        Measured("after the last batch", NAN, after, "what is finished last, tissue map, table and report"),
        Measured(
            "whole run", tiles / wall, wall, f"{encoding}; peak memory of all processes {peak_mb:,.0f} MB, the most of {len(runs)} runs",
            core_s,
        ),
    ]  # fmt: skip


def measure_finishing(jobs: Sequence[SlideJob], matched: Matched, encoder: EncoderSpec, out: Path, runs: int) -> list[Measured]:
    """Answer, pictures and exports of all slides of a run, once more."""
    from pathovit.model.slide_model import load_model
    from pathovit.run.finish import finish_slide

    folder = OutFolder(out)
    model = load_model(matched.model) if matched.model else None
    plans = [plan_slide(job, folder, matched.settings, encoder, model, overwrite=False) for job in jobs]

    def finish() -> int:
        done = [plan for plan in plans if isinstance(plan, SlidePlan)]
        for plan in done:
            finish_slide(plan, folder, matched.settings, model)
        return sum(plan.survey.tiles for plan in done)

    said = "answer, pictures and exports" if model else "pictures; no model fits, so there is no answer to draw"
    return [median(finish, runs).line("finish", f"{said} of {len(plans)} slides")]


def device_use(spans_of_slides: Sequence[Sequence[Span]]) -> tuple[float, float]:
    """Seconds in which at least one batch was on a device, and the longest pause between."""
    spans = sorted(span for spans in spans_of_slides for span in spans)
    busy, pause, end = 0.0, 0.0, spans[0][0]
    for begun, ended in spans:
        pause = max(pause, begun - end)
        busy += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return busy, pause


def draw_timeline(path: Path, jobs: Sequence[SlideJob], run: Run, settings: Settings) -> None:
    from pathovit.study.figures import device_timeline

    busy, pause = device_use(run.spans)
    said = f"{settings.embed.encoder}, {run.tiles:,} tiles, {run.tiles / run.embedding_s:,.1f} tiles/s"
    title = f"{said}; device busy {busy / run.embedding_s:.1%} of the time, longest pause {pause * 1000:.0f} ms"
    device_timeline(path, {job.path.name: spans for job, spans in zip(jobs, run.spans, strict=True)}, title)
