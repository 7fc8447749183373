"""Memory of a process and all that it starts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SAMPLE_EVERY_S = 0.05  # between two looks at the memory


@contextmanager
def peak_memory(pid: int | None = None) -> Iterator[list[int]]:
    """Peak bytes of a process (this one) and all it starts; pages that are shared are divided among their owners.

    Dividing costs the processes milliseconds, so it is done only when their plain sum has grown by a hundredth.
    """
    import psutil

    peak, over = [0], threading.Event()
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

    def sample() -> None:
        most = 0
        while not over.wait(SAMPLE_EVERY_S):
            with suppress(psutil.Error):
                plain = total(lambda process: process.memory_info().rss)
                if plain > 1.01 * most:
                    most = plain
                    peak[0] = max(peak[0], total(divided))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
