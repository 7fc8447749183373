"""Run a command; print its wall time, and core-seconds and peak memory of all its processes together, as JSON.

python workflows/benchmarks/measure.py pathovit run slide.svs --out out
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from pathovit.bench.usage import watched


def main() -> None:
    started = time.perf_counter()
    child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
    with watched(child.pid) as usage:
        child.wait()
    wall = time.perf_counter() - started
    print(
        json.dumps(
            {
                "wall_s": round(wall, 2),
                "peak_mb": round(usage.peak_bytes / 2**20),
                "core_s": round(usage.core_s, 2),
                "exit_code": child.returncode,
            }
        )
    )
    sys.exit(child.returncode)


if __name__ == "__main__":
    main()
