"""Many slides over many workers: steps handed out, retries, progress.

When a worker dies, every step it was at is under suspicion and is tried again with the whole worker to itself; the one
that kills it again fails alone, and the others go on. No step is suspect where the worker was killed from outside: by the
system's guard of its memory, or by a person.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from pathovit.encoders.spec import spec_at_sight
from pathovit.errors import InternalError, PathovitError, SettingsError, SlideError, StorageError
from pathovit.files import note_retry
from pathovit.outputs.lease import Leases
from pathovit.outputs.recipe import EmbedRecipe
from pathovit.outputs.records import Outcome, SlideRecord
from pathovit.reasons import EXPLAINED, Code
from pathovit.run.dask_cluster import Death, death_of, open_client, slots_of
from pathovit.run.plan import SlideJob, SlidePlan, Twin, recognise_slide
from pathovit.run.schedule import SLOTS, Free, SlideState, Step, next_step, reason_of, two_owners
from pathovit.run.worker import TOPIC, Failed, Message, Ok, Work, in_worker
from pathovit.slides.check import check_kind
from pathovit.text import counted

LOOK_S = 0.1  # between two looks whether the run was stopped, while nothing ends
OTHERS_S = 0.5  # between two looks whether other runs have ended a slide
RESULT_S = 2.0  # to fetch a result of a few bytes, before it is looked whether its worker is still there
IO_TRIES = 2  # times that a slide is begun again where the drive failed, after all the patience of single reads
MOST_LOST = 4  # workers whose device failed, one after the other, before the run ends
MOST_KILLS = 5  # of workers that a slide's steps were at, from outside and one after the other, before it is given up

Listener = Callable[[SlideState], None]
Say = Callable[[str], None]


def run_slides(
    jobs: Sequence[SlideJob], work: Work, changed: Listener, stop: threading.Event, say: Say = lambda text: None,
    leases: Leases | None = None,
) -> list[SlideState]:  # fmt: skip
    """Carry all slides through their steps; a slide that fails becomes a row, the others go on.

    Parameters
    ----------
    changed : called with a slide's state whenever it changes
    stop : when set, no more steps are handed out and the function returns
    say : called with a sentence on what happens to workers
    leases : of a folder to which other runs may write at the same time

    Raises
    ------
    SettingsError, StorageError : what no slide can get past
    """
    states = [SlideState(index, job, (work.out.path,)) for index, job in enumerate(jobs)]
    drive = Drive(states, work, changed, stop, say, leases or Leases(work.out.path))
    drive.refuse_at_sight()
    drive.recognise()
    if all(state.over for state in states):
        return states
    say("starting workers")
    with open_client(work.settings, stop) as client:
        if client is not None:
            say("workers are ready; the first loads the encoder")
            client.subscribe_topic(TOPIC, lambda event: drive.note_progress(event[1]))
            drive.go(client)
    return states


class _ResultLost(Exception):
    """The worker died after a step had ended, and before its result was fetched."""


@dataclass
class Drive:
    """The slides of one run, and what happens to them."""

    states: list[SlideState]
    work: Work
    changed: Listener
    stop: threading.Event
    say: Say
    leases: Leases = field(default_factory=lambda: Leases(Path()))
    _lost: int = 0  # workers whose device failed, one after the other
    _told_of_others: bool = False
    _told: set[str] = field(default_factory=set)  # workers whose death has been told

    def refuse_at_sight(self) -> None:
        """Fail what is no slide by its look, before workers are started for it."""
        for state in self.states:
            try:
                check_kind(state.job.path)
            except SlideError as error:
                state.fail(error)
                self._settle(state)

    def recognise(self) -> None:
        """Slides that are done already, where that can be told without reading them: no worker is started for these."""
        run = self.work.settings.run
        elsewhere = run.scheduler or run.scheduler_file  # other machines may have other devices
        spec = None if elsewhere else spec_at_sight(self.work.settings, self.work.weights_sha256)
        if spec is None:
            return
        work, model = self.work, self.work.known_model()
        given: dict[tuple[int, bytes], set[str]] = defaultdict(set)  # slide_ids, by what slides might be the same
        for state in self.states:
            if state.over or self.stop.is_set():
                continue
            before = given[state.likeness]
            try:
                found = recognise_slide(state.job, work.out, work.settings, spec, model, work.overwrite, frozenset(before))
            except PathovitError:  # it is looked at by a worker, and said there
                continue
            if found is not None:
                self._planned(state, found)
                self._settle(state)
                before.add(state.slide_id)

    def note_progress(self, message: Message) -> None:
        state = self.states[message["slide"]]
        if "said" in message:
            self.say(message["said"])
        if state.stage == "embedding":
            state.tiles_done = min(state.tiles_done + message["tiles"], state.tiles)
            self.changed(state)

    def go(self, client: Any) -> None:
        """Hand out steps until all slides are over, or the run is stopped."""
        from distributed import as_completed

        running: dict[Any, tuple[SlideState, Step, str | None]] = {}
        queue, ended = as_completed(), threading.Event()
        while not self.stop.is_set():
            slots = {at: Counter(count) for at, count in slots_of(client).items()}
            while found := next_step(
                self.states, self.work, Free(slots, ((at, step) for _, step, at in running.values())), self._may_begin
            ):
                state, step, worker = found
                state.handed_out = state.handed_out or time.monotonic() - state.looked_at_s
                future = client.submit(
                    in_worker, step.function, state.job.path, state.index, *step.arguments,
                    key=f"{step.name}-{state.index}-{time.monotonic_ns()}", pure=False, resources=step.slots,
                    workers=[worker] if worker else None, allow_other_workers=bool(worker),
                )  # fmt: skip
                running[future] = found
                queue.add(future)
                future.add_done_callback(lambda future: ended.set())
                self.changed(state)
            if not running:
                if not self._awaits_others():
                    return
                continue
            while not queue.has_ready() and not self.stop.is_set():
                ended.wait(LOOK_S)
                ended.clear()
                self._give_up_late_ones()
                if all(state.over for state in self.states):
                    client.cancel(list(running), force=True)
                    return
            if self.stop.is_set():
                client.cancel(list(running), force=True)
                return
            future = next(queue)
            state, step, worker = running.pop(future)
            result = self._result(client, future, state, step, worker)
            if result is not None and not state.over:  # another part of it may have failed
                self._take(state, step, result)
            self._settle(state)

    def _may_begin(self, state: SlideState) -> bool:
        return not self.leases.joined or self.leases.take(state.lease)

    def _awaits_others(self) -> bool:
        """Wait a little where all slides that are left are other runs'; False where none is left."""
        left = [state for state in self.states if not state.over]
        if not left or not self.leases.joined:
            return False
        if not self._told_of_others:
            self._told_of_others = True
            self.say(f"{counted(len(left), 'slide')} left, which other runs are at; waiting for them")
        self.stop.wait(OTHERS_S)
        return True

    def _give_up_late_ones(self) -> None:
        """Fail slides that have taken longer than one may; what is still at work for them is not waited for."""
        limit = self.work.settings.run.slide_timeout_min
        if limit is None:
            return
        for state in self.states:
            if state.handed_out and not state.over and time.monotonic() > state.handed_out + 60 * limit:
                state.fail(
                    SlideError(state.job.path, f"it took longer than {limit:g} minutes (run.slide_timeout_min).", Code.TIMEOUT)
                )
                self._settle(state)

    def _result(self, client: Any, future: Any, state: SlideState, step: Step, worker: str | None) -> Ok | Failed | None:
        """What became of a step; None if it has to be done again."""
        from distributed import CancelledError, KilledWorker

        try:
            return _fetch(client, future, worker)
        except _ResultLost:
            if worker:
                self._tell_of(worker, state)
            hand_out_again(state, step)  # what it did lies on disk, and is recognised
            return None
        except KilledWorker as error:
            return self.judge_death(state, step, error.last_worker.address)
        except CancelledError as error:
            return Failed(InternalError(f"internal error: {error!r}"))

    def judge_death(self, state: SlideState, step: Step, worker: str) -> Failed | None:
        """What to make of a worker's death: the step is done again, alone if it may be guilty (None), or the slide fails."""
        death = self._tell_of(worker, state, alone=step.slots == SLOTS)
        self._lost = self._lost + 1 if death.code == Code.DEVICE else 0
        if self._lost == MOST_LOST:
            raise SettingsError(f"The device failed {MOST_LOST} times, one after the other. {EXPLAINED[Code.DEVICE].remedy}")
        if state.over:
            return None
        if not death.slide:
            state.kills.add(worker)
            if len(state.kills) < MOST_KILLS:
                if len(state.kills) > 1:  # perhaps it is what fills the memory: alone it cannot take others along
                    state.suspects.append(step)
                else:
                    hand_out_again(state, step)
                return None
            reason = f"{death.cause} {len(state.kills)} times. Look at the machine's memory; the slide may be sound."
        elif step.slots != SLOTS:  # it was not alone: another step may have done it
            state.suspects.append(step)
            return None
        else:
            reason = f"{death.cause}, twice. {EXPLAINED[death.code].remedy}"
        return Failed(SlideError(state.job.path, reason, death.code))

    def _tell_of(self, worker: str, state: SlideState, alone: bool = False) -> Death:
        """What a worker died of, said once."""
        death = death_of(worker)
        if worker not in self._told:
            self._told.add(worker)
            which = state.job.path.name if alone else "a slide"
            cause = (
                death.cause.replace("its worker", "a worker")
                .replace("reading it", f"reading {which}")
                .replace("it outgrew", f"{which} outgrew")
            )
            self.say(f"{cause}; the worker is replaced")
        return death

    def _take(self, state: SlideState, step: Step, result: Ok | Failed) -> None:
        """Take a step's result into the slide's state. What no slide can get past is raised."""
        note_retry(result.retries)
        self._lost = 0
        if isinstance(result, Failed):
            if isinstance(result.error, SettingsError | StorageError):
                raise result.error
            if result.error.code == Code.IO_ERROR and state.io_errors < IO_TRIES:
                state.io_errors += 1
                self.say(f"{state.job.path.name}: {reason_of(result.error).splitlines()[0]} It is tried again")
                hand_out_again(state, step)
                return
            state.fail(result.error)
            return
        state.kills.clear()
        if step.name == "start":
            self._planned(state, result.value)
        elif step.name == "embed":
            state.parts_running -= 1
            state.seconds = time.monotonic() - state.began
            state.spans += result.value
        else:
            state.done, state.stage = _in_short(result.value), "done"
            state.tiles_done = state.tiles

    def _planned(self, state: SlideState, plan: SlidePlan | Twin) -> None:
        if isinstance(plan, Twin):
            first = next(s for s in state.like(self.states) if s.plan and s.plan.slide_id == plan.slide_id)
            if what := two_owners(state.job, first.job):
                state.around += (first.job.path,)
                said = f"it is the same slide as {first.job.path}, byte for byte, and the manifest has two {what} for it. Mend its rows."
                state.fail(SlideError(state.job.path, said, Code.SAME_SLIDE))
                return
            state.twin_of, state.stage, state.skipped, state.twin_id = first, "done", True, plan.slide_id
            return
        if state.handed_out:  # from here on it waits behind others, which is no time that it takes
            state.looked_at_s, state.handed_out = time.monotonic() - state.handed_out, 0.0
        state.plan, state.stage = plan, "embedding"
        if plan.damaged:
            more = f" and {len(plan.damaged) - 3} more" if len(plan.damaged) > 3 else ""
            said = ", ".join(plan.damaged[:3])
            self.say(f"{state.job.path.name}: {said}{more} missing or changed since it was written; made again")
        if plan.embedded:
            state.tiles_done = state.tiles
        else:
            state.parts_left.extend(range(plan.parts(self.work.settings.embed.part_tiles)))
        if plan.done is not None:
            state.stage, state.skipped, state.done = "done", True, _in_short(plan.done)
            state.plan = replace(plan, done=None)

    def _settle(self, state: SlideState) -> None:
        """What happened to a slide is told; if it is over, it stays on disk until it is done."""
        self.changed(state)
        if not state.over:
            return
        if self.leases.joined:
            self.leases.give_back(state.lease)
        if state.code == Code.OTHER_RECIPE and self.work.out.has_answer(state.job.path):  # which stays true
            return
        outcome = None
        if state.error is not None or state.twin_of is not None:
            outcome = Outcome(
                state.job.called, state.told.splitlines()[0], state.slide_id, state.twin_of is not None, state.job.patient,
                date.today().isoformat(), state.code,
            )  # fmt: skip
        self.work.out.settle(state.job.path, state.slide_id, outcome)


def _in_short(record: SlideRecord) -> SlideRecord:
    """The record without what only its file is for: of thousands of slides all are kept to the end."""
    return replace(record, products={}, versions={}, top_tiles=(), views=(), recipe=EmbedRecipe({}), finish_recipe=None)


def _fetch(client: Any, future: Any, worker: str | None) -> Ok | Failed:
    while True:
        try:
            found: Ok | Failed = future.result(timeout=RESULT_S)
            return found
        except TimeoutError:
            if worker not in slots_of(client):
                future.cancel(force=True)
                raise _ResultLost from None


def hand_out_again(state: SlideState, step: Step) -> None:
    """As if the step had not been begun."""
    if state.over:
        return
    if step.name == "embed":
        state.parts_running -= 1
        state.parts_left.appendleft(step.arguments[1])
    else:
        state.stage = {"start": "waiting", "finish": "embedding"}[step.name]
