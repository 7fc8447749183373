"""A batch of small slides, as whole commands: what they take besides the encoder.

    python workflows/benchmarks/small_slides.py SLIDES... --work WORK [--repeats 5] [--tiny 150]

Runs `pathovit run` in a process of its own, again and again: into an empty folder, on the finished batch, and twice at once.
Says the seconds from the command to its end, the core-seconds of all its processes, when the first batch began, how long the device had
tiles, and the peak memory. Beside it the encoder alone on as many tiles. With --tiny so many small slides are cut out of the first one, and run.
Writes small_slides.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from pathovit.bench.usage import watched
from pathovit.outputs.store import covered_s

if TYPE_CHECKING:
    from pathovit.run.folder import RunResult

Figures = dict[str, float]
TINY_PX = 1200


def as_child() -> None:
    """`pathovit run` as the command does it, and what it has done, to the file that the environment names."""
    from pathovit.cli import main as app
    from pathovit.cli import run as command

    goodbye = command._say_goodbye

    def note(result: RunResult) -> None:
        states = result.states
        spans = [span for state in states for span in state.spans]
        found = {"tiles": sum(state.tiles for state in states), "failed": sum(state.stage == "failed" for state in states)}
        if spans:
            found |= {
                "first": min(begun for begun, _ in spans),
                "last": max(ended for _, ended in spans),
                "busy": covered_s(spans),
            }
        Path(os.environ["SMALL_SLIDES_NOTE"]).write_text(json.dumps(found))
        goodbye(result)

    command._say_goodbye = note
    app()


def command(slides: list[Path], out: Path, *options: str) -> tuple[list[str], dict[str, str], Path]:
    note = out.with_suffix(".json")
    note.unlink(missing_ok=True)
    call = [sys.executable, __file__, "--child", "run", *map(str, slides), "--out", str(out), *options]
    return call, os.environ | {"SMALL_SLIDES_NOTE": str(note)}, note


def one_command(slides: list[Path], out: Path, *options: str) -> Figures:
    call, environment, note = command(slides, out, *options)
    began = time.time()
    child = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with watched(child.pid) as usage:
        _, said = child.communicate()
        wall = time.time() - began
    if child.returncode not in (0, 3) or not note.is_file():
        raise SystemExit(said)
    found = json.loads(note.read_text())
    figures = {
        "wall": wall, "core-seconds": usage.core_s, "peak MB": usage.peak_bytes / 1e6, "tiles": found["tiles"], "failed": found["failed"],
    }  # fmt: skip
    if "first" in found:
        figures |= {
            "start": found["first"] - began, "embedding": found["last"] - found["first"], "busy": found["busy"], "after": began + wall - found["last"],
        }  # fmt: skip
    return figures


def two_at_once(slides: list[Path], work: Path) -> float:
    calls = []
    for number in (1, 2):
        shutil.rmtree(work / f"beside{number}", ignore_errors=True)
        calls.append(command(slides, work / f"beside{number}"))
    began = time.time()
    running = [subprocess.Popen(call, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for call, env, _ in calls]
    for one in running:
        one.wait()
    return time.time() - began


def encoder_alone(repeats: int) -> float:
    """Tiles/s of the bundled encoder, with nothing beside it."""
    code = (
        "import numpy as np; from pathovit.bench.steps import encode_alone; from pathovit.encoders.load import load_encoder; "
        "from pathovit.machine import keep_freed_memory; keep_freed_memory(); e = load_encoder('reference'); b = e.buffer(e.batch_tiles); "
        f"b[:] = np.random.default_rng(0).integers(0, 255, b.shape); e.embed(b); print(encode_alone(e, b, {repeats}).rate)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def cut_tiny(slide: Path, folder: Path, count: int) -> list[Path]:
    """Small slides: squares of the tissue of one."""
    from pathovit.encoders.names import known_record
    from pathovit.run.plan import SlideJob, survey_slide
    from pathovit.settings import Settings

    folder.mkdir(parents=True, exist_ok=True)
    found, chance, made = survey_slide(SlideJob(slide), Settings(), known_record("reference")), np.random.default_rng(0), []
    with found.slide as opened:
        for number in range(count):
            x, y = (int(v) for v in found.grid.xy[chance.integers(len(found.grid))])
            pixels = opened.read(opened.level(0), max(0, x - TINY_PX // 2), max(0, y - TINY_PX // 2), TINY_PX, TINY_PX)[0]
            path = folder / f"tiny{number:03d}.tif"
            with tifffile.TiffWriter(path) as tiff:
                tiff.write(
                    np.ascontiguousarray(pixels), tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None,
                    resolution=(1e4 / opened.mpp[0],) * 2, resolutionunit="CENTIMETER",
                )  # fmt: skip
            made.append(path)
    return made


def medians(runs: list[Figures]) -> Figures:
    return {key: round(statistics.median(run[key] for run in runs if key in run), 2) for key in runs[0]}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        del sys.argv[1]
        as_child()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="two runs at once, too")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    fresh, again = [], []
    for _ in range(options.repeats):
        shutil.rmtree(work / "out", ignore_errors=True)
        fresh.append(one_command(options.slides, work / "out"))
        again.append(one_command(options.slides, work / "out"))
        print(fresh[-1], again[-1], flush=True)
    alone = encoder_alone(options.repeats)
    found: dict[str, object] = {"encoder alone, tiles/s": round(alone, 1), "fresh": medians(fresh), "again": medians(again)}
    first = medians(fresh)
    found["share of the encoder"] = round(first["tiles"] / first["embedding"] / alone, 3)
    if options.together:
        found["two at once"] = round(statistics.median(two_at_once(options.slides, work) for _ in range(options.repeats)), 2)
    if options.tiny:
        tiny = cut_tiny(options.slides[0], work / "tiny", options.tiny)
        shutil.rmtree(work / "tiny-out", ignore_errors=True)
        found["tiny"] = {key: round(value, 2) for key, value in one_command(tiny, work / "tiny-out").items()}
    print(json.dumps(found, indent=1))
    (work / "small_slides.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
