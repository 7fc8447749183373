"""Many slides over many workers: steps, retries, progress.

A worker has three slots: two parts of slides are embedded at a time, so that the device finds the next part read when
one ends, and beside them a slide is planned or finished. When a worker dies, every step it was at is under suspicion
and is tried again with the whole worker to itself; the one that kills it again fails alone, and the others go on. No step
is suspect where the worker was killed from outside: by the system's guard of its memory, or by a person.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathovit.dask_cluster import SLOTS, Death, death_of, open_client, slots_of
from pathovit.device import give_back_memory, keep_freed_memory, worker_cores
from pathovit.errors import PathovitError, SettingsError, SlideError, StorageError
from pathovit.pipeline import SlideJob, SlidePlan, batch_tiles, embed_part, finish_slide, make_embedder, start_slide
from pathovit.preflight import check_kind
from pathovit.settings import Settings
from pathovit.watchdog import Watchdog

if TYPE_CHECKING:
    from pathovit.embedding import Embedder, Span

TOPIC = "pathovit-progress"
REPORT_EVERY_S = 0.5
RESULT_S = 2.0  # to fetch a result of a few bytes, before it is looked whether its worker is still there
STEP_READS = 15  # a step that reads a whole slide may take as long as so many tiles
MOST_KILLS = 5  # of workers that a slide's steps were at, from outside and one after the other, before it is given up


@dataclass(frozen=True)
class Work:
    """What every step needs to know; sent along with it."""

    out: Path
    settings: Settings
    weights_sha256: str  # of the encoder; with the model's, it keys what workers keep loaded
    model: str | None  # a model folder; None: features only
    model_sha256: str | None
    overwrite: bool


@dataclass(frozen=True)
class Step:
    """A thing to do for a slide, and the slots that it takes of a worker."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    slots: dict[str, int]


@dataclass
class SlideState:
    """How far a slide has come, as the scheduler's side sees it."""

    index: int
    job: SlideJob
    stage: str = "waiting"  # waiting, planning, embedding, finishing, done, failed
    plan: SlidePlan | None = None
    parts_left: deque[int] = field(default_factory=deque)
    suspects: list[Step] = field(default_factory=list)  # steps that were running when their worker died
    kills: set[str] = field(default_factory=set)  # workers that were killed from outside at its steps, since one ended well
    began: float = 0.0  # when its first part was handed out
    spans: list[Span] = field(default_factory=list)  # when a device was at work for it
    parts_running: int = 0
    tiles_done: int = 0
    seconds: float = 0.0
    done: dict[str, Any] | None = None
    reason: str = ""
    skipped: bool = False
    twin: bool = False  # the same slide as one given before, under another name
    internal: bool = False  # failed by a fault of our own

    @property
    def over(self) -> bool:
        return self.stage in ("done", "failed")

    @cached_property
    def likeness(self) -> tuple[str, int]:
        """Equal for two that might be the same slide given twice, which would write to the same folder."""
        path = self.job.path
        return path.stem, os.path.getsize(path) if os.path.isfile(path) else 0


Listener = Callable[[SlideState], None]
Say = Callable[[str], None]


# Steps, as they run inside a worker ------------------------------------------------------------------------------


_loading = threading.Lock()  # steps run side by side, and a cache alone would load twice


@lru_cache(maxsize=1)
def _load_embedder(settings: Settings, weights_sha256: str) -> Embedder:
    from pathovit.encoders import load_encoder

    keep_freed_memory()
    embed = settings.embed
    encoder = load_encoder(
        embed.encoder, embed.weights, settings.run.device, embed.precision, settings.tiles.tile_px, embed.engine
    )
    if encoder.weights_sha256 != weights_sha256:
        raise SettingsError(
            f"The weights of {embed.encoder!r} on a worker are not those of this machine. Give all machines the same files."
        )
    batch_tiles(settings, encoder)  # which a GPU has to find out, and not while it is at work
    return make_embedder(encoder, settings)


def _embedder(work: Work) -> Embedder:
    with _loading:
        return _load_embedder(work.settings, work.weights_sha256)


@lru_cache(maxsize=1)
def _load_model(folder: str | None, model_sha256: str | None) -> Any:
    from pathovit.slide_model import load_model

    if folder is None:
        return None
    model = load_model(folder)
    if model.sha256 != model_sha256:
        raise SettingsError(f"{folder} on a worker is not the model of this machine. Give all machines the same files.")
    return model


def _model(work: Work) -> Any:
    with _loading:
        return _load_model(work.model, work.model_sha256)


def _report(slide: int, tiles: int, pending: dict[str, float]) -> None:
    """Tell the scheduler's side about progress, a few times a second."""
    from distributed import get_worker

    pending["tiles"] = pending.get("tiles", 0) + tiles
    now = time.monotonic()
    if now - pending.get("at", 0.0) >= REPORT_EVERY_S:
        get_worker().log_event(TOPIC, {"slide": slide, "tiles": int(pending["tiles"])})
        pending.update(tiles=0, at=now)


def _start(index: int, job: SlideJob, work: Work) -> SlidePlan:
    with _step_watchdog(work):
        plan = start_slide(job, work.out, work.settings, _embedder(work).encoder, _model(work), work.overwrite)
    give_back_memory()
    return plan


def _embed(index: int, plan: SlidePlan, part: int, work: Work) -> list[Span]:
    pending: dict[str, float] = {}
    return embed_part(plan, part, work.out, work.settings, _embedder(work), lambda tiles: _report(index, tiles, pending))


def _finish(index: int, plan: SlidePlan, work: Work, seconds: float) -> dict[str, Any]:
    import torch

    torch.set_num_threads(worker_cores())  # of this thread: those of the device have theirs
    with _step_watchdog(work):
        done = finish_slide(plan, work.out, work.settings, _model(work), seconds)
    give_back_memory()
    return done


@contextmanager
def _step_watchdog(work: Work) -> Iterator[None]:
    """Planning and finishing read whole slides: they get as long as many tiles."""
    watchdog = Watchdog(STEP_READS * work.settings.run.read_timeout_s)
    try:
        with watchdog:
            yield
    finally:
        watchdog.close()


def _guarded(step: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """A step's result, or its error as a value: errors are results here, only a death is an event."""
    try:
        return "ok", step(*arguments)
    except PathovitError as error:
        return "error", error
    except MemoryError as error:
        return "error", SlideError(
            Path("slide"), f"it needs more memory than there is ({error}). Look whether its pixel size is true."
        )
    except Exception as error:  # a fault of ours: this slide fails with it, and the exit code says so
        return "fault", f"internal error: {error!r}\n{traceback.format_exc()}"


# The scheduler's side --------------------------------------------------------------------------------------------


def run_slides(
    jobs: Sequence[SlideJob], work: Work, changed: Listener, stop: threading.Event, say: Say = lambda text: None
) -> list[SlideState]:
    """Carry all slides through their steps; a slide that fails becomes a row, the others go on.

    Parameters
    ----------
    changed : called with a slide's state whenever it changes
    stop : when set, no more steps are handed out and the function returns
    say : called with a sentence on what happens to workers

    Raises
    ------
    SettingsError, StorageError : what no slide can get past
    """
    states = [SlideState(index, job) for index, job in enumerate(jobs)]
    _told_deaths.clear()
    refuse_at_sight(states, changed)
    if all(state.over for state in states):
        return states
    with open_client(work.settings, stop) as client:
        if client is not None:
            say("workers are ready; the first loads the encoder")
            client.subscribe_topic(TOPIC, lambda event: _note_progress(states, event[1], changed))
            _drive(client, states, work, changed, stop, say)
    return states


def refuse_at_sight(states: Sequence[SlideState], changed: Listener) -> None:
    """Fail what is no slide by its look, before workers are started for it."""
    for state in states:
        try:
            check_kind(state.job.path)
        except SlideError as error:
            state.stage, state.reason = "failed", error.reason
            changed(state)


def _note_progress(states: list[SlideState], message: dict[str, int], changed: Listener) -> None:
    state = states[message["slide"]]
    if state.stage == "embedding":
        state.tiles_done = min(state.tiles_done + message["tiles"], state.plan.tiles if state.plan else 0)
        changed(state)


def _drive(client: Any, states: list[SlideState], work: Work, changed: Listener, stop: threading.Event, say: Say) -> None:
    from distributed import as_completed

    running: dict[Any, tuple[SlideState, Step, str | None]] = {}
    queue = as_completed()
    while not stop.is_set():
        slots = {at: Counter(count) for at, count in slots_of(client).items()}
        while (found := _next_step(states, work, Free(slots, ((at, step) for _, step, at in running.values())))) is not None:
            state, step, worker = found
            future = client.submit(
                _guarded, step.function, state.index, *step.arguments, key=f"{step.name}-{state.index}-{time.monotonic_ns()}",
                pure=False, resources=step.slots, workers=[worker] if worker else None, allow_other_workers=bool(worker),
            )  # fmt: skip
            running[future] = (state, step, worker)
            queue.add(future)
            changed(state)
        if not running:
            return
        while not queue.has_ready() and not stop.is_set():  # poll, so that a signal is noticed at once
            time.sleep(0.02)
        if stop.is_set():
            client.cancel(list(running), force=True)
            return
        future = next(queue)
        state, step, worker = running.pop(future)
        _advance(client, state, step, worker, future, states, work, say)
        changed(state)


class Free:
    """Slots that are free, worker by worker. Dask itself would choose by what it guesses a step to take."""

    def __init__(self, slots: dict[str, Counter[str]], running: Iterable[tuple[str | None, Step]]) -> None:
        self.all = sum(slots.values(), Counter())
        self._free = {at: count.copy() for at, count in slots.items()}
        self.idle = True
        for at, step in running:
            self.idle = False
            if at in self._free:
                self._free[at].subtract(step.slots)

    def worker(self, slots: dict[str, int]) -> str | None:
        """The worker with the most slots free, of those that have these."""
        fitting = [at for at, free in self._free.items() if all(free[name] >= count for name, count in slots.items())]
        return max(fitting, key=lambda at: self._free[at].total(), default=None)


def _next_step(states: list[SlideState], work: Work, free: Free) -> tuple[SlideState, Step, str | None] | None:
    """The next thing to do that finds its slots free, slides in the order they were given, and the worker to do it.

    Suspects come first, and nothing else is begun before they have a worker to themselves. Then parts; then finishes,
    unless so few parts wait that a device would soon have nothing to do; then new slides, not many ahead. Where nothing
    runs at all, and no worker is there, a step waits for one.
    """
    for state in states:
        if state.suspects:
            worker = free.worker(SLOTS)
            return (state, replace(state.suspects.pop(), slots=SLOTS), worker) if worker or free.idle else None
    waiting_parts = sum(len(state.parts_left) for state in states)
    worker = free.worker({"embed": 1})
    if worker or free.idle:
        for state in states:
            if state.parts_left:
                state.parts_running += 1
                state.began = state.began or time.monotonic()
                return state, Step("embed", _embed, (state.plan, state.parts_left.popleft(), work), {"embed": 1}), worker
    worker = free.worker({"other": 1})
    if not worker and not free.idle:
        return None
    embedded = [state for state in states if state.stage == "embedding" and not state.parts_running and not state.parts_left]
    if len(embedded) <= free.all["other"] and (waiting_parts < free.all["embed"] or not embedded):
        begun = {state.likeness for state in states if state.stage not in ("waiting", "done", "failed")}
        for state in states if waiting_parts < 2 * free.all["embed"] or free.idle else ():
            if state.stage == "waiting" and state.likeness not in begun:
                state.stage = "planning"
                return state, Step("start", _start, (state.job, work), {"other": 1}), worker
    for state in embedded:
        state.stage = "finishing"
        return state, Step("finish", _finish, (state.plan, work, state.seconds), {"other": 1}), worker
    return None


class _ResultLost(Exception):
    """The worker died after a step had ended, and before its result was fetched."""


def _result(client: Any, future: Any, worker: str | None) -> Any:
    while True:
        try:
            return future.result(timeout=RESULT_S)
        except TimeoutError:
            if worker not in slots_of(client):
                future.cancel(force=True)
                raise _ResultLost from None


def _advance(
    client: Any, state: SlideState, step: Step, worker: str | None, future: Any, states: list[SlideState], work: Work, say: Say
) -> None:
    """Take a step's result into the slide's state."""
    from distributed import CancelledError, KilledWorker

    try:
        kind, value = _result(client, future, worker)
    except _ResultLost:
        if worker:
            _tell_of(worker, state, say)
        _hand_out_again(state, step)  # what it did lies on disk, and is recognised
        return
    except KilledWorker as error:
        kind, value = _judge_death(state, step, error.last_worker.address, say)
        if kind == "again":
            return
    except CancelledError as error:
        kind, value = "fault", f"internal error: {error!r}"
    if state.over:  # another part of it has failed
        return
    if kind == "ok":
        _proceed(state, step.name, value, states, work)
        return
    if isinstance(value, SettingsError | StorageError):
        raise value
    state.stage, state.internal = "failed", kind == "fault"
    state.reason = value.reason if isinstance(value, SlideError) else str(value)
    state.parts_left.clear()
    state.suspects.clear()


def _judge_death(state: SlideState, step: Step, worker: str, say: Say) -> tuple[str, Any]:
    """What to make of a worker's death: the step is done again, alone if it may be guilty, or the slide fails."""
    death = _tell_of(worker, state, say, alone=step.slots == SLOTS)
    if state.over:
        return "again", None
    if not death.slide:
        state.kills.add(worker)
        if len(state.kills) < MOST_KILLS:
            if len(state.kills) > 1:  # perhaps it is what fills the memory: alone it cannot take others along
                state.suspects.append(step)
            else:
                _hand_out_again(state, step)
            return "again", None
        reason = f"{death.cause} {len(state.kills)} times. Look at the machine's memory; the slide may be sound."
    elif step.slots != SLOTS:  # it was not alone: another step may have done it
        state.suspects.append(step)
        return "again", None
    else:
        reason = f"{death.cause}, twice. The file may be damaged; copy or export it again."
    return "error", SlideError(state.job.path, reason)


_told_deaths: set[str] = set()


def _tell_of(worker: str, state: SlideState, say: Say, alone: bool = False) -> Death:
    """What a worker died of, said once."""
    death = death_of(worker)
    if worker not in _told_deaths:
        _told_deaths.add(worker)
        which = state.job.path.name if alone else "a slide"
        cause = (
            death.cause.replace("its worker", "a worker")
            .replace("reading it", f"reading {which}")
            .replace("it outgrew", f"{which} outgrew")
        )
        say(f"{cause}; the worker is replaced")
    return death


def _hand_out_again(state: SlideState, step: Step) -> None:
    """As if the step had not been begun."""
    if state.over:
        return
    if step.name == "embed":
        state.parts_running -= 1
        state.parts_left.appendleft(step.arguments[1])
    else:
        state.stage = {"start": "waiting", "finish": "embedding"}[step.name]


def _proceed(state: SlideState, step: str, value: Any, states: list[SlideState], work: Work) -> None:
    state.kills.clear()
    if step == "start":
        state.plan = value
        twin = next(
            (s for s in states if s is not state and s.plan and s.plan.slide_id == value.slide_id and s.stage != "failed"), None
        )
        if twin is not None:
            state.stage, state.skipped, state.twin = "done", True, True
            state.reason = f"the same slide as {twin.job.path}, given twice; it is done once"
            return
        if value.done is not None:
            state.stage, state.skipped, state.done = "done", True, value.done
            state.tiles_done = value.tiles
            return
        state.stage = "embedding"
        if value.embedded:
            state.tiles_done = value.tiles
        else:
            state.parts_left.extend(range(value.parts(work.settings.embed.part_tiles)))
    elif step == "embed":
        state.parts_running -= 1
        state.seconds = time.monotonic() - state.began
        state.spans += value
    else:
        assert step == "finish"
        state.done, state.stage = value, "done"
        state.tiles_done = state.plan.tiles if state.plan else 0
