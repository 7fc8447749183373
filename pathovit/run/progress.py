"""What a person sees while slides are being done: a live table on a terminal, plain lines otherwise. On stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pathovit.text import counted, duration, plain

if TYPE_CHECKING:
    from pathovit.run.schedule import SlideState

LINE_EVERY_S = 60.0
FIRST_LINES_S = 10.0  # until a slide is done, lines come sooner
STEP_EVERY_S = 5.0  # lines of a step that is counted
ROWS = 14  # slides shown at a time
STYLES = {"done": "green", "failed": "red", "degraded": "yellow"}


class Steps:
    """Lines that say how much is done of what, for work that is counted; quiet while it is quick."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= STEP_EVERY_S:
            self._last = now
            sys.stderr.write(f"{what}: {done:,} of {total:,}\n")
            sys.stderr.flush()


class Progress:
    """Follows the states of slides. `changed` may be called from any thread."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.started = time.monotonic()
        self.console = Console(file=sys.stderr)
        self._states: dict[int, SlideState] = {}
        self._told: set[int] = set()
        self._last_line = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._embedded_since: float | None = None
        self._live = (
            Live(console=self.console, refresh_per_second=4, get_renderable=self._table) if self.console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.__enter__()
        else:
            self._say(counted(self.total, "slide"))
            threading.Thread(target=self._tick, daemon=True, name="progress").start()
        return self

    def _tick(self) -> None:
        """A line now and then, also while nothing changes."""
        while not self._over.wait(1.0):
            with self._lock:
                if time.monotonic() - self._last_line > (LINE_EVERY_S if self._told else FIRST_LINES_S):
                    self._say(self._summary())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._live:
            self._live.__exit__(kind, error, trace)

    def changed(self, state: SlideState) -> None:
        with self._lock:
            self._states[state.index] = state
            if state.stage == "embedding" and self._embedded_since is None:
                self._embedded_since = time.monotonic()
            if self._live:
                return
            if state.over and state.index not in self._told:
                self._told.add(state.index)
                self._say(f"[{len(self._told)}/{self.total}] {plain(state.job.path.name)}: {outcome(state)}")

    def say(self, text: str) -> None:
        """A sentence beside the table."""
        if self._live:
            self.console.print(Text(plain(text)))
        else:
            with self._lock:
                self._say(plain(text))

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def _summary(self) -> str:
        states = list(self._states.values())
        over = sum(state.over for state in states)
        busy = Counter(state.stage for state in states if not state.over and state.stage != "waiting")
        doing = "".join(f", {count} {stage}" for stage, count in busy.items())
        tiles = sum(state.tiles_done for state in states if not state.skipped)
        rate = tiles / max(time.monotonic() - self._embedded_since, 1e-3) if self._embedded_since else 0.0
        left = sum(state.tiles - state.tiles_done for state in states if state.plan and not state.over)
        unplanned = self.total - sum(state.plan is not None or state.over for state in states)
        planned = [state.tiles for state in states if state.plan]
        left += int(unplanned * sum(planned) / len(planned)) if planned else 0
        eta = f", about {duration(left / rate)} left" if rate > 0 and over < self.total else ""
        return f"{over} of {self.total} slides{doing}, {tiles:,} tiles, {rate:.0f} tiles/s{eta}"

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, caption=self._summary(), caption_justify="left")
        for name, justify in (("slide", "left"), ("stage", "left"), ("tiles", "right"), ("", "left")):
            table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=True)  # type: ignore[arg-type]  # rich's literals
        states: Sequence[SlideState] = sorted(self._states.values(), key=lambda s: (s.over, s.index if not s.over else -s.index))
        for state in sorted(states[: max(2, min(ROWS, self.console.height - 5))], key=lambda s: s.index):
            tiles = f"{state.tiles_done:,} / {state.tiles:,}" if state.plan else ""
            stage = Text(state.stage, STYLES.get(state.stage, "cyan"))
            table.add_row(Text(plain(state.job.path.name)), stage, tiles, Text(outcome(state) if state.over else ""))
        return table


def outcome(state: SlideState) -> str:
    """How a slide ended, in a few words."""
    if state.stage == "failed":
        return f"failed: {plain(state.reason.splitlines()[0])}"
    if state.skipped:
        return state.reason or "done already"
    assert state.done
    answer = state.done.prediction
    text = answer.headline if answer else "features stored"
    text += f", {state.done.survey.tiles:,} tiles" + (f" in {duration(state.seconds)}" if state.seconds else " embedded before")
    if state.done.verdict != "ok":
        text = f"DEGRADED ({plain(state.done.reason)}), {text}"
    elif state.done.reason:
        text += f" ({plain(state.done.reason)})"
    return text
