"""Many slides into one output folder: what `pathovit run` and `pathovit embed` do, to be called from anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pathovit.encoders.check import check_weights, remarks_on
from pathovit.encoders.own import is_folder
from pathovit.encoders.record import parted
from pathovit.errors import InternalError, NoSlidesError, PathovitError, SettingsError, SlideError, StorageError
from pathovit.files import take_retries
from pathovit.model.card import REFERENCE, model_digest, read_card
from pathovit.outputs.folder import OutFolder, Refused
from pathovit.outputs.inventory import holding
from pathovit.outputs.lease import Leases
from pathovit.outputs.names import PRIVATE, Names
from pathovit.outputs.records import SlideRecord, SlideVerdict
from pathovit.outputs.runs import RunLog, RunRecord, SlideOutcome, last_run
from pathovit.run.diary import Diary
from pathovit.run.drive import Listener, run_slides
from pathovit.run.jobs import find_jobs, told
from pathovit.run.match import Matched, match_model
from pathovit.run.plan import SlideJob
from pathovit.run.progress import Progress
from pathovit.run.schedule import SlideState
from pathovit.run.worker import Work
from pathovit.settings import Settings, as_settings
from pathovit.show.report import write_report
from pathovit.show.table import Contents, write_table
from pathovit.tables import Say
from pathovit.text import duration, plain


@dataclass
class Stop:
    """Set to have a run end soon, and with which exit code."""

    event: threading.Event = field(default_factory=threading.Event)
    code: int = 0


@dataclass(frozen=True)
class RunResult:
    """How a run into a folder ended."""

    out: OutFolder
    states: tuple[SlideState, ...]  # in the order in which the slides were given
    refused: tuple[Refused, ...]  # records in the folder that are not read
    record: RunRecord
    exit_code: int
    named: int  # slides of the folder that were stored with their names before, though this run does not keep names

    @property
    def slides(self) -> list[SlideRecord]:
        """Records of the slides that are done, as they lie in the folder."""
        found = [self.out.slide(state.slide_id).record() for state in self.states if state.done]
        return [record for record in found if record]

    @property
    def failures(self) -> dict[Path, PathovitError]:
        """Why the others are not."""
        return {state.job.path: state.error for state in self.states if state.error}


def run_folder(
    slides: Sequence[Path | str] | Path | str,
    out: Path | str = "out",
    *,
    encoder: Path | str | None = None,
    model: Path | str | None = None,
    settings: Settings | Mapping[str, Any] | Path | str | None = None,
    mpp: float | None = None,
    manifest: Path | str | None = None,
    tissue: Path | str | None = None,
    overwrite: bool = False,
    join: bool = False,
    progress: bool = True,
    changed: Listener | None = None,
    say: Say | None = None,
) -> RunResult:
    """Slides to answers, heatmaps and a report in a folder, by worker processes: `pathovit run`, from Python.

    Parameters
    ----------
    slides : files, or folders of them
    encoder : by name, or its folder; None for that of the model. Workers load it themselves, so that it cannot be an object
    model : a folder that `pathovit train` made; None for the bundled one, or for features only where another encoder is named
    settings : a record, tables as in a settings file such as {"embed": {"max_tiles": 500}}, or such a file
    mpp : um per pixel of level 0, for slides that do not say it
    tissue : outlines of tissue, files named after slides in a folder: it is not looked for then
    join : other runs may join in the same folder: each slide is done by one of them
    progress : tell on stderr how it goes, as `pathovit run` does
    changed : called with a slide's state whenever it changes
    say : called with a sentence on what was understood, and on what happens to workers, instead of stderr

    Raises
    ------
    PathovitError : what no slide can get past; slides that fail alone are in `failures` of the result

    Examples
    --------
    >>> result = pathovit.run_folder([path], out, progress=False)
    >>> [record.prediction.answer for record in result.slides], result.failures
    (['tumour'], {})
    """
    given = [slides] if isinstance(slides, Path | str) else slides
    for name, one in (("encoder", encoder), ("model", model)):
        if not isinstance(one, Path | str | None):
            raise SettingsError(
                f"{name}: {type(one).__name__} is an object, and workers are processes of their own. Give its name or its folder."
            )
    settings = as_settings(settings)
    if model is not None:
        settings = replace(settings, heatmap=replace(settings.heatmap, model=str(model)))
    if encoder is not None:
        settings = replace(settings, embed=replace(settings.embed, encoder=str(encoder)))
    told = say or (_to_stderr if progress else _to_nobody)
    matched = match_model(settings, encoder is not None or settings.embed.encoder != REFERENCE, model is not None, told)
    jobs = find_jobs(
        [Path(path) for path in given], mpp, Path(manifest) if manifest else None, told, Path(tissue) if tissue else None
    )
    with holding(Path(out), join) as (folder, leases), Progress(len(jobs)) if progress else nullcontext() as shown:
        told = say or (shown.say if shown else _to_nobody)
        listeners = [one for one in (shown.changed if shown else None, changed) if one]

        def seen(state: SlideState) -> None:
            for listener in listeners:
                listener(state)

        return run_jobs(jobs, folder, matched, overwrite, ("run_folder",), seen, told, Stop(), leases)


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"pathovit: {plain(text)}\n")


def _to_nobody(said: object) -> None:
    """Of what nobody asked for."""


def run_jobs(
    jobs: Sequence[SlideJob], out: OutFolder, matched: Matched, overwrite: bool, command: Sequence[str], changed: Listener, say: Say,
    stop: Stop, leases: Leases | None = None,
) -> RunResult:  # fmt: skip
    """Run all jobs into a folder whose lease is held, and write down what came of it.

    Parameters
    ----------
    leases : of a folder to which other runs may write at the same time

    Raises
    ------
    PathovitError : what no slide can get past; what was finished before is shown, and the record of the run before stays
    """
    leases = leases or Leases(out.path)
    if overwrite and leases.joined:
        raise SettingsError("--overwrite and --join do not go together: one run would replace what another has just made.")
    take_retries()  # of what was done before
    settings, model = _with_whole_paths(matched.settings), matched.model
    weights_sha256 = check_weights(settings)
    for remark in remarks_on(settings):
        say(remark)
    card = read_card(model)[1] if model is not None else None
    work = Work(
        OutFolder(out.path.resolve()), settings, weights_sha256, model, model_digest(card) if card else None, overwrite
    )  # fmt: skip
    began = time.monotonic()
    diary = Diary(out.path, command)
    say, changed = diary.telling(say), diary.following(changed)
    with leases.tables(say):
        names = _names(out, settings, say)
        jobs = told(jobs, names)
        log = RunLog(
            out,
            RunRecord(
                command=tuple(command),
                started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                settings=settings.to_dict(),
                weights_sha256=weights_sha256,
                model=model,
                model_sha256=work.model_sha256,
                demonstration=card is not None and card.demonstration,
                slides=tuple(job.file_id or str(job.path) for job in jobs),
            ),
            names,
        )
    if overwrite and out.begin_replacing(_key(work, jobs)):
        say("the same --overwrite was interrupted: it goes on with the slides that it had not begun")
    try:
        states = run_slides(jobs, work, changed, stop.event, say, leases)
    except StorageError:
        raise  # nothing can be written there
    except PathovitError as error:
        diary.note(f"refused: {error}")
        with leases.tables(say):
            log.refuse(error)
            show_results(out, log.record)
        raise
    with leases.tables(say):
        result = _end(states, work, log, began, say, stop)
    diary.note(f"ends after {duration(time.monotonic() - began)}, exit code {result.exit_code}")
    return result


def _end(states: Sequence[SlideState], work: Work, log: RunLog, began: float, say: Say, stop: Stop) -> RunResult:
    """Write what is made of all slides, and how the run ended; `began` is when, on the monotonic clock."""
    out, names = log.out, log.names
    found = Contents.of(out)
    _require_rows(states, found)
    if work.model is not None and not stop.event.is_set():
        _map_tissue(out, say, stop)
    code = stop.code or exit_code(states)
    outcomes = tuple(SlideOutcome(s.job.called, s.stage, s.slide_id, s.told, s.code) for s in states)
    if names is not None:
        for state in states:
            names.note(state.job.path, names.patient_of(state.job.patient or ""), state.slide_id)
        if not names.are_closed(out.path):
            names.write(out.path)
    retries = take_retries()
    record = log.end(code, time.monotonic() - began, outcomes, retries)
    show_results(out, record)
    if stop.code != 0 and stop.code != code:  # it came while that was written
        code = stop.code
        record = log.end(code, time.monotonic() - began, outcomes, retries)
    if work.overwrite and not stop.event.is_set():
        out.end_replacing()
    named = sum(bool(record.description.file) for record in found.records) if names else 0
    return RunResult(out, tuple(states), found.refused, record, code, named)


def _names(out: OutFolder, settings: Settings, say: Say) -> Names | None:
    """Where it is noted what ids stand for; None where results tell names."""
    if settings.run.keep_names:
        return None
    if Names.are_closed(out.path):
        say(f"{PRIVATE} cannot be written by you: what the ids of this run stand for is noted nowhere")
    return Names.read(out.path)


class _Stopped(Exception):
    """The run was stopped between two slides."""


def _map_tissue(out: OutFolder, say: Say, stop: Stop) -> None:
    """Kinds of tissue are a help to look at slides; without them the answers are the same."""
    from pathovit.run.tissue_map import map_tissue

    def on_slide(done: int, total: int) -> None:
        if stop.event.is_set():
            raise _Stopped

    try:
        map_tissue(out, say, on_slide)
    except _Stopped:
        say("no tissue map: stopped; the next run draws what is missing")
    except (NoSlidesError, SettingsError, SlideError) as error:
        say(f"no tissue map: {error}")


def show_again(out: OutFolder) -> None:
    """The table and the report of a folder, of what lies in it now."""
    show_results(out, last_run(out))


def show_results(out: OutFolder, record: RunRecord) -> None:
    """The table and the report of a folder."""
    found = Contents.of(out)
    write_table(out, found)
    write_report(out, found, record)


def _require_rows(states: Sequence[SlideState], found: Contents) -> None:
    """A slide that counts as done has a row; one that has none was lost, by a fault of ours or another's hand. A twin shares the fate of its first."""
    kept = {record.slide_id for record in found.records}
    for state in states:
        if state.twin_of is not None and state.twin_of.error is not None:
            state.fail(
                SlideError(state.job.path, f"the same slide as {state.twin_of.job.path}, which failed", state.twin_of.error.code)
            )
        elif state.stage == "done" and state.slide_id not in kept:
            state.fail(
                InternalError(
                    f"{state.job.path.name}: it was done, and its record is gone from slides/{state.slide_id}. Run it again."
                )
            )


def _with_whole_paths(settings: Settings) -> Settings:
    """Paths made absolute, for workers that may run in another folder."""
    weights, encoder = settings.embed.weights, settings.embed.encoder
    if weights and weights != "random":
        settings = replace(settings, embed=replace(settings.embed, weights=str(Path(weights).resolve())))
    if is_folder(parted(encoder)[0]):
        settings = replace(settings, embed=replace(settings.embed, encoder=os.path.abspath(encoder)))
    return settings


def _key(work: Work, jobs: Sequence[SlideJob]) -> str:
    """What an --overwrite is known by: settings, weights, model and slides."""
    known = [work.settings.to_dict(), work.weights_sha256, work.model_sha256, sorted(str(job.path) for job in jobs)]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def exit_code(states: Sequence[SlideState]) -> int:
    """0 all done; 1 a fault of ours; 3 some slide failed or is degraded."""
    if any(state.internal for state in states):
        return 1
    bad = any(state.stage != "done" or (state.done and state.done.verdict != SlideVerdict.OK) for state in states)
    return 3 if bad else 0
