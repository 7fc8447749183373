"""A measurement, and how one is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

NAN = float("nan")


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    step: str
    rate: float  # tiles per second; NaN where there is none
    seconds: float
    remark: str = ""
    core_s: float = NAN  # of the processor, of all threads and processes; NaN where it was not measured


@dataclass(frozen=True)
class Taken:
    """What an action has taken: medians of some runs."""

    seconds: float
    core_s: float
    count: int  # what it returned: tiles, as a rule

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    def line(self, step: str, remark: str, rate: float | None = None) -> Measured:
        return Measured(step, self.rate if rate is None else rate, self.seconds, remark, self.core_s)


def median(action: Callable[[], int], runs: int) -> Taken:
    """Of some runs, after one that does not count."""
    count = action()
    taken = []
    for _ in range(runs):
        began, used = time.perf_counter(), time.process_time()
        action()
        taken.append((time.perf_counter() - began, time.process_time() - used))
    seconds, core_s = (statistics.median(column) for column in zip(*taken, strict=True))
    return Taken(seconds, core_s, count)
