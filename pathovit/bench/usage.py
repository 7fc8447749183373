"""What a process and all that it starts use: memory and the processor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

SAMPLE_EVERY_S = 0.05  # between two looks


@dataclass
class Usage:
    """Filled in while it is watched."""

    peak_bytes: int = 0  # pages that are shared are divided among their owners
    seconds: dict[int, float] = field(default_factory=dict)  # of the processor, by process; those that ended keep theirs

    @property
    def core_s(self) -> float:
        return sum(self.seconds.values())


@contextmanager
def watched(pid: int | None = None) -> Iterator[Usage]:
    """Usage of a process (this one) and all it starts, from here on.

    Dividing memory costs the processes milliseconds, so it is done only when their plain sum has grown by a hundredth.
    """
    import psutil

    usage, over = Usage(), threading.Event()
    root = psutil.Process(pid)

    def total(ask: Callable[[psutil.Process], int]) -> int:
        found = 0
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):  # ended meanwhile
                found += ask(process)
        return found

    def divided(process: psutil.Process) -> int:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))

    def plain(process: psutil.Process) -> int:
        times = process.cpu_times()
        usage.seconds[process.pid] = times.user + times.system - before.get(process.pid, 0.0)
        return int(process.memory_info().rss)

    def sample() -> None:
        most = 0
        while not over.wait(SAMPLE_EVERY_S):
            with suppress(psutil.Error):
                found = total(plain)
                if found > 1.01 * most:
                    most = found
                    usage.peak_bytes = max(usage.peak_bytes, total(divided))

    before: dict[int, float] = {}
    total(plain)
    before.update(usage.seconds)
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        over.set()
        thread.join()
        with suppress(psutil.Error):
            total(plain)
