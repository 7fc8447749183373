"""What each export takes: seconds and memory, each in a process of its own.

    python workflows/benchmarks/exports.py OUT --folder WHERE [--to trident clam ...] [--repeats 3]

`large_finish.py --tiles 100000` leaves a folder with such a slide. Memory is what exporting took beyond what the process had before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from pathovit.outputs.folder import OutFolder
from pathovit.settings import Settings
from pathovit.show.export.formats import FORMATS, export
from pathovit.show.export.slides import named
from pathovit.show.qupath import dissolve, write_geojson


def measure(out: Path, to: str, folder: Path, told: Connection) -> None:
    from pathovit.bench.usage import watched

    with watched() as before:
        time.sleep(1)
    begun = time.perf_counter()
    with watched() as usage:
        if to == "geojson":
            draw_geojson(OutFolder(out), folder)
        else:
            export(OutFolder(out), to, folder)
    told.send((time.perf_counter() - begun, (usage.peak_bytes - before.peak_bytes) / 1e6, usage.peak_bytes / 1e6))


def draw_geojson(out: OutFolder, folder: Path) -> None:
    """heatmap.geojson of every slide, as a run writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for slide in named(out, out.finished()[0], "id"):
        scores = next(iter(slide.measured.values()))
        hot = dissolve(slide.features, scores >= 0.5, "tumour", scores)
        write_geojson(
            folder, slide.features, scores, dict(slide.measured), "tumour", regions=hot, marked={"Unread": slide.features.unread},
            max_tiles=Settings().heatmap.max_geojson_tiles,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--to", nargs="*", default=[*FORMATS, "geojson"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for to in options.to:
        runs = []
        for _ in range(options.repeats):
            answers, told = get_context("spawn").Pipe(duplex=False)
            child = get_context("spawn").Process(target=measure, args=(options.out, to, options.folder / to, told))
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
