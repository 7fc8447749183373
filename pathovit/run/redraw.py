"""Stored slides answered and drawn anew by another model: no encoder is loaded, and slides need not be at hand."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathovit.errors import NoSlidesError, PathovitError, SlideError
from pathovit.machine import allowed_cores, quiet_libraries, threads_for
from pathovit.model.card import model_digest, read_card
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.names import Names, without_names
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.runs import RunLog, RunRecord, SlideOutcome, files_at_hand
from pathovit.outputs.store import FeatureStore
from pathovit.reasons import Code
from pathovit.run.finish import redraw_slide
from pathovit.run.folder import Stop, show_results
from pathovit.run.worker import Failed, Ok, guarded
from pathovit.settings import Settings

if TYPE_CHECKING:
    from pathovit.model.prediction import Answered
    from pathovit.model.slide_model import SlideModel

MOST_PROCESSES = 8
DRAWN_HERE = 2  # slides that somebody is waiting for: other processes take seconds to begin
Listener = Callable[[int, int], None]  # slides that are drawn, and how many there are


def redraw_folder(
    out: OutFolder, model: Path, settings: Settings, command: Sequence[str], on_slide: Listener, stop: Stop,
    first: Collection[str] = (),
) -> RunRecord:  # fmt: skip
    """Draw all slides of a folder, whose lease is held, by a model; table and report are written anew.

    Parameters
    ----------
    settings : of the run that stored the features
    first : slide_ids of those that somebody is waiting for

    Raises
    ------
    NoSlidesError : there is none
    """
    from pathovit.model.slide_model import load_model

    records = sorted(out.embedded(), key=lambda record: record.slide_id not in first)
    if not records:
        raise NoSlidesError(f"{out.path}: no slide with features in it. Make some with: pathovit embed SLIDES --out {out.path}")
    folder, card = read_card(model)
    answerer = load_model(folder)
    settings = replace(settings, heatmap=replace(settings.heatmap, model=str(folder), check=False))
    files = files_at_hand(out)
    began = time.monotonic()
    asked = RunRecord(
        command=tuple(command),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        settings=settings.to_dict(),
        weights_sha256=card.trained.weights_sha256,
        model=str(folder),
        model_sha256=model_digest(card),
        demonstration=card.demonstration,
        slides=tuple(record.shown for record in records),
    )
    names = None if settings.run.keep_names else Names.read(out.path)
    log = RunLog(out, asked, names)
    outcomes: dict[str, SlideOutcome] = {}
    over: list[object] = []
    with ProcessPoolExecutor(_processes(len(records)), multiprocessing.get_context("spawn"), initializer=_begin) as pool:
        drawn: dict[Future[Ok | Failed], SlideRecord] = {}
        here = [record.slide_id for record in records if record.slide_id in first][:DRAWN_HERE]
        if len(records) > len(here):
            pool.submit(quiet_libraries)  # processes begin meanwhile
        for record, answered in _answers(records, out, answerer, settings):
            if stop.event.is_set():
                break
            asked_for = (record, out, settings, answered, files.get(record.sha256))
            future = _done(_redraw(*asked_for)) if record.slide_id in here else _handed(pool, *asked_for)
            drawn[future] = record
            future.add_done_callback(over.append)
            on_slide(len(over), len(records))
        for future in as_completed(drawn):
            record = drawn[future]
            found = _result(future, out.called(record))
            stage, reason, word = (
                ("failed", _told(found.error, files.get(record.sha256), out, names), found.error.code)
                if isinstance(found, Failed)
                else ("done", found.value.reason, found.value.code)
            )
            outcomes[record.slide_id] = SlideOutcome(record.description.file, stage, record.slide_id, reason, word)
            on_slide(len(over), len(records))
            if stop.event.is_set():
                pool.shutdown(cancel_futures=True)
                break
    bad = len(outcomes) < len(records) or any(outcome.stage != "done" for outcome in outcomes.values())
    code = stop.code or (3 if bad else 0)
    told = tuple(outcomes[record.slide_id] for record in records if record.slide_id in outcomes)
    ended = log.end(code, time.monotonic() - began, told)
    show_results(out, ended)
    return ended


def _told(error: PathovitError, path: Path | None, out: OutFolder, names: Names | None) -> str:
    """What an error says, as results tell it: without a name, unless names are kept."""
    said = error.reason if isinstance(error, SlideError) else str(error).splitlines()[0]
    return said if names is None else without_names(said, path or out.path, out.path)


def _begin() -> None:
    """In each process that draws: Ctrl+C is for the one that has them, which ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_libraries()


def _handed(pool: ProcessPoolExecutor, *asked_for: Any) -> Future[Ok | Failed]:
    try:
        return pool.submit(_redraw, *asked_for)
    except BrokenProcessPool as error:
        future: Future[Ok | Failed] = Future()
        future.set_exception(error)
        return future


def _result(future: Future[Ok | Failed], path: Path) -> Ok | Failed:
    """What became of a slide. Where one process dies all end, and slides that are not drawn fail with it."""
    try:
        return future.result()
    except BrokenProcessPool:
        said = "a process that draws was killed, and the others ended with it. Look at the machine's memory, and run the command again."
        return Failed(SlideError(path, said, Code.KILLED))


def _done(found: Ok | Failed) -> Future[Ok | Failed]:
    """What was done in this process."""
    future: Future[Ok | Failed] = Future()
    future.set_result(found)
    return future


def _processes(slides: int) -> int:
    return min(allowed_cores(), MOST_PROCESSES, slides)


def _answers(
    records: Sequence[SlideRecord], out: OutFolder, model: SlideModel, settings: Settings
) -> Iterator[tuple[SlideRecord, Ok | Failed]]:
    """What the model says of each slide. In this process: those that draw need no torch."""

    def answer(record: SlideRecord) -> Answered:
        stored = FeatureStore(out.slide(record.slide_id), out.called(record)).read()
        with threads_for(len(stored.xy)):
            return model.answer(stored, settings.answer.error_rate)

    for record in records:
        yield record, guarded(answer, out.called(record), record)


def _redraw(record: SlideRecord, out: OutFolder, settings: Settings, answered: Ok | Failed, path: Path | None) -> Ok | Failed:
    if isinstance(answered, Failed):
        return answered
    return guarded(redraw_slide, path or out.called(record), record, out, settings, answered.value, path)
