"""Which step is handed out next, and to which worker; without Dask, which carries it out.

A worker has three slots: two parts of slides are embedded at a time, so that the device finds the next part read when
one ends, and beside them a slide is planned or finished.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pathovit.errors import InternalError, PathovitError, SlideError
from pathovit.files import open_patiently
from pathovit.outputs.names import without_names
from pathovit.outputs.records import SlideRecord
from pathovit.reasons import Code
from pathovit.run import worker
from pathovit.run.plan import SlideJob, SlidePlan
from pathovit.run.worker import Work

if TYPE_CHECKING:
    from pathlib import Path

    from pathovit.run.device import Span

LOOKED_AT_BYTES = 2**16  # of a slide's end
SLOTS = {"embed": 2, "other": 1}  # Dask resources of a worker: steps of each sort at a time


@dataclass(frozen=True)
class Step:
    """A thing to do for a slide, and the slots that it takes of a worker."""

    name: str  # start, embed, finish
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    slots: dict[str, int]


@dataclass
class SlideState:
    """How far a slide has come, as the scheduler's side sees it."""

    index: int
    job: SlideJob
    around: tuple[Path, ...] = ()  # folders whose names nobody is told who is not told the slide's
    stage: str = "waiting"  # waiting, planning, embedding, finishing, done, failed
    plan: SlidePlan | None = None
    parts_left: deque[int] = field(default_factory=deque)
    suspects: list[Step] = field(default_factory=list)  # steps that were running when their worker died
    kills: set[str] = field(default_factory=set)  # workers that were killed from outside at its steps, since one ended well
    io_errors: int = 0  # steps that ended because the drive failed
    handed_out: float = 0.0  # when its first step was, and what it had taken before; 0 while it waits for one
    looked_at_s: float = 0.0  # what planning it took
    began: float = 0.0  # when its first part was handed out
    spans: list[Span] = field(default_factory=list)  # when a device was at work for it
    parts_running: int = 0
    tiles_done: int = 0
    seconds: float = 0.0
    done: SlideRecord | None = None
    skipped: bool = False
    twin_of: SlideState | None = None  # the same slide, given before
    twin_id: str = ""
    error: PathovitError | None = None  # why it failed

    @property
    def over(self) -> bool:
        return self.stage in ("done", "failed")

    @property
    def tiles(self) -> int:
        return self.plan.survey.tiles if self.plan else 0

    @property
    def internal(self) -> bool:
        """Failed by a fault of our own."""
        return isinstance(self.error, InternalError)

    @property
    def slide_id(self) -> str:
        """As far as it is known."""
        return self.plan.slide_id if self.plan else self.twin_id

    @property
    def reason(self) -> str:
        """Why it failed, or was not done itself; nothing for one that was."""
        if self.error is not None:
            return reason_of(self.error)
        return f"the same slide as {self.twin_of.job.path}, given twice; it is done once" if self.twin_of else ""

    @property
    def told(self) -> str:
        """The same as results tell it: without a name, unless names are kept."""
        if self.job.file:
            return self.reason
        text = without_names(self.reason.splitlines()[0] if self.reason else "", self.job.path, *self.around)
        return without_names(text, self.twin_of.job.path) if self.twin_of else text

    @property
    def code(self) -> str:
        """The same in a word."""
        if self.error is not None:
            return self.error.code
        return Code.SAME_SLIDE if self.twin_of else self.done.code if self.done else ""

    def fail(self, error: PathovitError) -> None:
        self.stage, self.error = "failed", error
        self.parts_left.clear()
        self.suspects.clear()

    @cached_property
    def likeness(self) -> tuple[int, bytes]:
        """Equal for two that might be the same slide given twice, which would write to the same folder."""
        path = self.job.path
        try:
            if not path.is_file():  # a pipe would be waited for
                return 0, os.fsencode(path)
            with open_patiently(path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - LOOKED_AT_BYTES))  # where the directory of most slides lies, which differs
                return size, hashlib.sha256(file.read()).digest()
        except OSError:  # it is said where the slide is read
            return 0, os.fsencode(path)

    @property
    def lease(self) -> str:
        """By which it is known to other runs, whatever its path is there."""
        size, end = self.likeness
        return f"{size}-{hashlib.sha256(end).hexdigest()[:24]}"

    def like(self, states: Sequence[SlideState]) -> list[SlideState]:
        """Other slides that might be this one."""
        return [state for state in states if state is not self and state.likeness == self.likeness]


def reason_of(error: PathovitError) -> str:
    """What an error says, without the slide's name."""
    return error.reason if isinstance(error, SlideError) else str(error)


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


def next_step(
    states: Sequence[SlideState], work: Work, free: Free, may_begin: Callable[[SlideState], bool] = lambda state: True
) -> tuple[SlideState, Step, str | None] | None:
    """The next thing to do that finds its slots free, slides in the order they were given, and the worker to do it.

    Suspects come first, and nothing else is begun before they have a worker to themselves. Then parts; then finishes,
    unless so few parts wait that a device would soon have nothing to do; then new slides, not many ahead. Where nothing
    runs at all, and no worker is there, a step waits for one.

    Parameters
    ----------
    may_begin : whether a slide may be; another run may have it
    """
    for state in states:
        if state.suspects:
            at = free.worker(SLOTS)
            return (state, replace(state.suspects.pop(), slots=SLOTS), at) if at or free.idle else None
    waiting_parts = sum(len(state.parts_left) for state in states)
    at = free.worker({"embed": 1})
    if at or free.idle:
        for state in states:
            if state.parts_left:
                state.parts_running += 1
                state.began = state.began or time.monotonic()
                return state, Step("embed", worker.embed, (state.plan, state.parts_left.popleft(), work), {"embed": 1}), at
    at = free.worker({"other": 1})
    if not at and not free.idle:
        return None
    embedded = [state for state in states if state.stage == "embedding" and not state.parts_running and not state.parts_left]
    if len(embedded) <= free.all["other"] and (waiting_parts < free.all["embed"] or not embedded):
        begun = {state.likeness for state in states if state.stage not in ("waiting", "done", "failed")}
        for state in states if waiting_parts < 2 * free.all["embed"] or free.idle else ():
            if state.stage == "waiting" and state.likeness not in begun and may_begin(state):
                state.stage = "planning"
                given = frozenset(other.plan.slide_id for other in state.like(states) if other.plan and other.stage != "failed")
                return state, Step("start", worker.start, (state.job, given, work), {"other": 1}), at
    for state in embedded:
        state.stage = "finishing"
        return state, Step("finish", worker.finish, (state.plan, work), {"other": 1}), at
    return None


def two_owners(job: SlideJob, first: SlideJob) -> str:
    """What a table says otherwise of the same slide given twice: one of its rows is wrong, and would be learned from."""
    given = {"patients": (job.patient, first.patient), "labels": (job.label, first.label)}
    return next((what for what, (a, b) in given.items() if a and b and a != b), "")
