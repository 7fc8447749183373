"""A measurement, and how one is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    step: str
    rate: float  # tiles per second; NaN where there is none
    seconds: float
    remark: str = ""


def median_s(action: Callable[[], int], runs: int) -> tuple[float, int]:
    """Median seconds of some runs after one that does not count, and what the action returned."""
    count = action()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), count
