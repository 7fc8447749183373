"""Stored slides answered and drawn anew by another model: no encoder is loaded, and slides need not be at hand."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pathovit.errors import NoSlidesError
from pathovit.machine import allowed_cores, quiet_libraries, use_threads
from pathovit.model.card import model_digest, read_card
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.runs import RunLog, RunRecord, SlideOutcome, files_at_hand
from pathovit.run.finish import redraw_slide
from pathovit.run.folder import Stop, show_results
from pathovit.run.worker import Failed, Ok, guarded
from pathovit.settings import Settings

if TYPE_CHECKING:
    from pathovit.model.slide_model import SlideModel

MOST_PROCESSES = 8
Listener = Callable[[int, int], None]  # slides that are drawn, and how many there are


def redraw_folder(
    out: OutFolder, model: Path, settings: Settings, command: Sequence[str], on_slide: Listener, stop: Stop
) -> RunRecord:
    """Draw all slides of a folder, whose lease is held, by a model; table and report are written anew.

    Parameters
    ----------
    settings : of the run that stored the features

    Raises
    ------
    NoSlidesError : there is none
    """
    records = out.embedded()
    if not records:
        raise NoSlidesError(f"{out.path}: no slide with features in it. Make some with: pathovit embed SLIDES --out {out.path}")
    folder, card = read_card(model)
    settings = replace(settings, heatmap=replace(settings.heatmap, model=str(folder)))
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
        slides=tuple(str(files.get(record.sha256, record.description.file)) for record in records),
    )
    log = RunLog(out, asked)
    outcomes: dict[str, SlideOutcome] = {}
    context = multiprocessing.get_context("spawn")
    processes = min(allowed_cores(), MOST_PROCESSES, len(records))
    with ProcessPoolExecutor(processes, context, initializer=_prepare) as pool:
        futures: dict[Future[Ok | Failed], SlideRecord] = {
            pool.submit(_redraw, record, out, settings, folder, files.get(record.sha256)): record for record in records
        }
        for future in as_completed(futures):
            record, found = futures[future], future.result()
            stage, reason = ("failed", str(found.error)) if isinstance(found, Failed) else ("done", found.value.reason)
            outcomes[record.slide_id] = SlideOutcome(record.description.file, stage, record.slide_id, reason)
            on_slide(len(outcomes), len(records))
            if stop.event.is_set():
                pool.shutdown(cancel_futures=True)
                break
    bad = len(outcomes) < len(records) or any(outcome.stage != "done" for outcome in outcomes.values())
    code = stop.code or (3 if bad else 0)
    told = tuple(outcomes[record.slide_id] for record in records if record.slide_id in outcomes)
    ended = log.end(code, time.monotonic() - began, told)
    show_results(out, ended)
    return ended


def _prepare() -> None:
    quiet_libraries()
    use_threads(1)


def _redraw(record: SlideRecord, out: OutFolder, settings: Settings, model: Path, path: Path | None) -> Ok | Failed:
    file = path or Path(record.description.file)
    return guarded(lambda: redraw_slide(record, out, settings, _model(model), path), file)


@cache
def _model(folder: Path) -> SlideModel:
    from pathovit.model.slide_model import load_model

    return load_model(folder)
