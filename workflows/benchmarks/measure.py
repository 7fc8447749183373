"""Run a command; print its wall time and the peak memory of all its processes together, as JSON.

python workflows/benchmarks/measure.py pathovit run slide.svs --out out
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from pathovit.bench.memory import peak_memory


def main() -> None:
    started = time.perf_counter()
    child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
    with peak_memory(child.pid) as peak:
        child.wait()
    wall = time.perf_counter() - started
    print(json.dumps({"wall_s": round(wall, 2), "peak_mb": round(peak[0] / 2**20), "exit_code": child.returncode}))
    sys.exit(child.returncode)


if __name__ == "__main__":
    main()
