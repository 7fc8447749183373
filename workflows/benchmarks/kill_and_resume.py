"""kill -9 of the whole process group at random points of a run, then the same command again: are the bytes the same?

python workflows/benchmarks/kill_and_resume.py WORK SLIDE... [--kills 10] [--seed 0]

First an undisturbed run, which is the truth and gives the time within which kills fall. Then, in a fresh folder, a run is
killed again and again, going on each time, until the wanted number of kills has fallen; then it may finish.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

SETTINGS = "[embed]\nbatch_tiles = 16\nchunk_tiles = 64\npart_tiles = 128\n"  # many commits, so that kills hit between them


def start(slides: list[Path], out: Path, settings: Path) -> subprocess.Popen[bytes]:
    command = ["pathovit", "run", *map(str, slides), "--out", str(out), "--settings", str(settings)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def stored(out: Path) -> dict[str, bytes]:
    """Every file of every feature store."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("slides/*/features.zarr/**/*")) if p.is_file()}


def committed(out: Path) -> int:
    return len(list(out.glob("slides/*/journal/*.json")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.work.exists() and any(options.work.iterdir()):
        raise SystemExit(f"{options.work} is not empty. Give a folder of its own: nothing that lies there is removed.")
    options.work.mkdir(parents=True, exist_ok=True)
    settings = options.work / "settings.toml"
    settings.write_text(SETTINGS)
    started = time.monotonic()
    if start(options.slides, options.work / "calm", settings).wait() != 0:
        raise SystemExit("the undisturbed run failed")
    length = time.monotonic() - started
    truth = stored(options.work / "calm")
    print(f"undisturbed: {length:.1f} s, {len(truth)} files")
    chance = random.Random(options.seed)
    agreed = 0
    for kill in range(options.kills):
        out = options.work / f"killed-{kill}"
        process = start(options.slides, out, settings)
        after = chance.uniform(0.15, 0.95) * length
        time.sleep(after)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        chunks = committed(out)
        code = start(options.slides, out, settings).wait()
        same = stored(out) == truth
        agreed += same and code == 0 and alive
        print(
            f"kill {kill + 1} after {after:5.1f} s ({'running' if alive else 'over'}, {chunks} chunks in journals): exit {code}, same bytes: {same}",
            flush=True,
        )
        shutil.rmtree(out)
    print(f"{agreed} of {options.kills} killed runs went on to the same bytes")
    raise SystemExit(agreed != options.kills)


if __name__ == "__main__":
    main()
