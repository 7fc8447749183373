"""What finishing a slide of many tiles takes: answer, all pictures and exports. Its features are random; no encoder is run.

    python workflows/benchmarks/large_finish.py --work WORK [--tiles 100000] [--repeats 3]

Makes a slide of tissue of 1 um/px, plans it as a run does, fills its features, and finishes it in a process of its own, again and again.
Prints seconds, core-seconds, and the memory that finishing took beyond what the process had with torch and the model loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from pathovit.encoders.check import check_weights
from pathovit.encoders.names import known_record
from pathovit.encoders.spec import spec_at_sight
from pathovit.outputs.folder import OutFolder
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide
from pathovit.settings import Settings

BLOCK, TILE_PX = 512, 96


def make_slide(path: Path, tiles: int) -> None:
    """Tissue of one texture from edge to edge, with glass around it."""
    chance = np.random.default_rng(0)
    blocks = -(-(round((tiles**0.5) * TILE_PX) // BLOCK + 2) // 16) * 16
    noise = chance.normal(0, 14, (BLOCK, BLOCK, 1)) + chance.normal(0, 6, (BLOCK, BLOCK, 3))
    tissue = np.clip(np.array([205, 150, 190]) + noise, 0, 255).astype(np.uint8)
    glass = np.clip(243 + chance.normal(0, 1, (BLOCK, BLOCK, 3)), 0, 255).astype(np.uint8)

    def level(shrink: int) -> Iterator[NDArray[np.uint8]]:
        side = BLOCK // shrink
        small = [cv2.resize(block, (side, side), interpolation=cv2.INTER_AREA) for block in (tissue, glass)]
        for row in range(0, blocks, shrink):
            for column in range(0, blocks, shrink):
                block = np.empty((BLOCK, BLOCK, 3), np.uint8)
                for y, x in itertools.product(range(shrink), repeat=2):
                    edge = not (0 < row + y < blocks - 1 and 0 < column + x < blocks - 1)
                    block[y * side : (y + 1) * side, x * side : (x + 1) * side] = small[edge]
                yield block

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for shrink in (1, 4, 16):
            side = blocks // shrink * BLOCK
            tiff.write(
                level(shrink), shape=(side, side, 3), dtype=np.uint8, tile=(BLOCK, BLOCK), compression="jpeg", photometric="rgb",
                subfiletype=int(shrink > 1), metadata=None, resolution=(1e4 / shrink,) * 2, resolutionunit="CENTIMETER",
            )  # fmt: skip


def finish(plan: SlidePlan, out: OutFolder, settings: Settings, told: Connection) -> None:
    import pathovit.run.ahead  # noqa: F401 - what a worker has loaded
    from pathovit.bench.timing import median
    from pathovit.bench.usage import watched
    from pathovit.machine import keep_freed_memory
    from pathovit.model.slide_model import load_model
    from pathovit.run.finish import finish_slide

    keep_freed_memory()
    model = load_model("reference")
    with watched() as before:
        time.sleep(1)
    with watched() as usage:
        taken = median(lambda: finish_slide(plan, out, settings, model).tiles.all, 1)
    told.send((taken.seconds, taken.core_s, (usage.peak_bytes - before.peak_bytes) / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    slide, settings = options.work / "large.tif", Settings()
    options.work.mkdir(parents=True, exist_ok=True)
    if not slide.is_file():
        make_slide(slide, options.tiles)
    shutil.rmtree(options.work / "out", ignore_errors=True)
    out, record = OutFolder(options.work / "out"), known_record("reference")
    spec = spec_at_sight(settings, check_weights(settings))
    assert spec
    plan = plan_slide(SlideJob(slide), out, settings, spec, None, overwrite=False)
    assert isinstance(plan, SlidePlan)
    chance, store, size = np.random.default_rng(0), plan.store(out), settings.embed.chunk_tiles
    for chunk in range(-(-plan.survey.tiles // size)):
        rows = min(size, plan.survey.tiles - chunk * size)
        store.write_chunk(chunk, chance.normal(size=(rows, spec.dim)).astype(np.float16), np.zeros(rows, np.uint8))
    runs = []
    for _ in range(options.repeats):
        context = get_context("spawn")
        answers, told = context.Pipe(duplex=False)
        child = context.Process(target=finish, args=(plan, out, settings, told))
        child.start()
        told.close()
        runs.append(answers.recv())
        child.join()
    seconds, core_s, mb = (round(statistics.median(column), 2) for column in zip(*runs, strict=True))
    print(
        json.dumps(
            {"tiles": plan.survey.tiles, "seconds": seconds, "core-seconds": core_s, "MB more": mb, "encoder": record.name}
        )
    )


if __name__ == "__main__":
    main()
