"""What each export takes: seconds and memory, each in a process of its own.

    python workflows/benchmarks/exports.py OUT --folder WHERE [--to trident clam ...] [--repeats 3] [--grid 448]

`large_finish.py --tiles 100000` leaves a folder with such a slide. Memory is what exporting took beyond what the process had before.
With --grid, and `--to geojson`, the first slide of OUT gets so many tiles across and down in the place of its own, with random scores: the
worst to dissolve.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.settings import Settings
from pathovit.show.export.formats import FORMATS, export
from pathovit.show.export.slides import named
from pathovit.show.qupath import UNREAD, dissolve, write_geojson


def measure(out: Path, to: str, folder: Path, grid: int | None, told: Connection) -> None:
    from pathovit.bench.usage import watched

    with watched() as before:
        time.sleep(1)
    begun = time.perf_counter()
    with watched() as usage:
        if to == "geojson":
            draw_geojson(OutFolder(out), folder, grid)
        else:
            export(OutFolder(out), to, folder)
    told.send((time.perf_counter() - begun, (usage.peak_bytes - before.peak_bytes) / 1e6, usage.peak_bytes / 1e6))


def draw_geojson(out: OutFolder, folder: Path, grid: int | None) -> None:
    """heatmap.geojson of every slide, as a run writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    slides = named(out, out.finished()[0], "id")
    for slide in slides[:1] if grid else slides:
        stored, measured = (slide.features, slide.measured) if grid is None else made_larger(slide.features, grid)
        scores = next(iter(measured.values()))
        hot = dissolve(stored, scores >= 0.5, "tumour", scores)
        write_geojson(
            folder, stored, scores, dict(measured), "tumour", regions=hot, marked={UNREAD: stored.unread},
            max_tiles=Settings().heatmap.max_geojson_tiles,
        )  # fmt: skip


def made_larger(stored: SlideFeatures, side: int) -> tuple[SlideFeatures, Mapping[str, NDArray[np.float32]]]:
    """The slide with `side` x `side` tiles that hold nothing, and random scores of theirs."""
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    xy = np.rint(np.asarray(stored.grid.origin) + place * stored.grid.stride_l0).astype(np.int64)
    grid = replace(stored.grid, xy=xy, coverage=np.ones(len(xy), np.float32), total=len(xy))
    scores = np.random.default_rng(0).random(len(xy)).astype(np.float32)
    empty = replace(stored, grid=grid, features=np.zeros((len(xy), 1), np.float16), verdict=np.zeros(len(xy), np.uint8))
    return empty, {"score: tumour": scores, "attention": scores, "novelty": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--to", nargs="*", default=[*FORMATS, "geojson"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--grid", type=int)
    options = parser.parse_args()
    for to in options.to:
        runs = []
        for _ in range(options.repeats):
            answers, told = get_context("spawn").Pipe(duplex=False)
            child = get_context("spawn").Process(target=measure, args=(options.out, to, options.folder / to, options.grid, told))
            child.start()
            told.close()
            runs.append(answers.recv())
            child.join()
        seconds, megabytes, whole = (round(statistics.median(column), 1) for column in zip(*runs, strict=True))
        written = sum(path.stat().st_size for path in (options.folder / to).rglob("*") if path.is_file())
        print(
            json.dumps(
                {"to": to, "seconds": seconds, "MB more": megabytes, "MB in all": whole, "MB written": round(written / 1e6, 1)}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
