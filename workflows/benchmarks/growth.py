"""How cost grows: tiles per second and peak memory over tiles, workers and slides.

python workflows/benchmarks/growth.py SLIDE --out FOLDER [--tiles 1000 10000 100000] [--workers 1 2] [--slides 1 8] [options of `pathovit embed`]

Every measurement is a `pathovit embed` of its own. Several slides are copies of the file with another byte at the
end of each, so that they count as different slides. Writes growth.json and growth.md to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def copies(slide: Path, count: int, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"copy-{index}{slide.suffix}" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.exists():
            shutil.copyfile(slide, path)
            with path.open("ab") as file:
                file.write(bytes([index]))
    return paths


def measure(slides: list[Path], out: Path, tiles: int, workers: int, more: list[str]) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(HERE / "measure.py"), sys.executable, "-m", "pathovit", "embed", *map(str, slides)]
    command += ["--out", str(out), "--max-tiles", str(tiles), "--workers", str(workers), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found = [json.loads(file.read_text()) for file in sorted(out.glob("slides/*/slide.json"))]
    return figures | {"tiles": sum(sum(slide["tiles"].values()) for slide in found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--slides", type=int, nargs="+", default=[1, 8])
    options, more = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    table = ["| slides | workers | tiles | wall s | tiles/s | peak MB |", "|---|---|---|---|---|---|"]
    for count in options.slides:
        slides = [options.slide] if count == 1 else copies(options.slide, count, options.out / "copies")
        for workers in options.workers:
            line: list[tuple[int, float]] = []
            for tiles in options.tiles:
                figures = measure(slides, options.out / "features", max(1, tiles // count), workers, more)
                found.append({"slides": count, "workers": workers, **figures})
                line.append((figures["tiles"], figures["wall_s"]))
                rate = figures["tiles"] / figures["wall_s"]
                table.append(
                    f"| {count} | {workers} | {figures['tiles']:,} | {figures['wall_s']:.1f} | {rate:,.0f} | {figures['peak_mb']:,} |"
                )
                print(table[-1], flush=True)
                (options.out / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
            if len(line) > 1:
                (slope, start) = np.polyfit(*zip(*line, strict=True), 1)
                table.append(f"| | | | {start:.1f} to begin with, then {1 / slope:,.0f} tiles/s | | |")
    (options.out / "growth.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
