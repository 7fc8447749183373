"""Run a command; print its wall time, CPU time and the peak memory of all its processes together, as JSON.

python workflows/benchmarks/measure.py pathovit run slide.svs --out out
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

SAMPLE_EVERY_S = 0.1


def tree_bytes(root: psutil.Process) -> int:
    """Memory of a process and all its descendants; pages that are shared are divided among their owners."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration, psutil.NoSuchProcess):
            continue  # ended meanwhile
    return total


def main() -> None:
    started = time.perf_counter()
    child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
    root = psutil.Process(child.pid)
    peak = 0
    while child.poll() is None:
        peak = max(peak, tree_bytes(root))
        time.sleep(SAMPLE_EVERY_S)
    wall = time.perf_counter() - started
    print(json.dumps({"wall_s": round(wall, 2), "peak_mb": round(peak / 2**20), "exit_code": child.returncode}))
    sys.exit(child.returncode)


if __name__ == "__main__":
    main()
