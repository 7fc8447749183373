"""How fast this machine does each step on real slides, and how fast it could: its own limits, measured beside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathovit.bench.peers import measure_machine, measure_peer
from pathovit.bench.timing import NAN, Measured, Taken, median
from pathovit.bench.whole import draw_timeline, lines_of, matched_model, measure_finishing, one_run
from pathovit.encoders.names import known_record
from pathovit.encoders.record import EncoderRecord
from pathovit.machine import allowed_cores, keep_freed_memory
from pathovit.outputs.features import FeatureAttributes
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.recipe import EmbedRecipe, tile_spec
from pathovit.outputs.store import FeatureStore
from pathovit.run.embed import batch_tiles
from pathovit.run.plan import SlideJob, survey_slide
from pathovit.settings import Settings
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, corner, lay_grid, read_tile, resize_tile
from pathovit.slides.tissue import find_tissue

if TYPE_CHECKING:
    from pathovit.encoders.encoder import Encoder

READ_TILES = 400  # of a slide, for one measurement of reading
ENCODE_BATCHES = 16  # for one measurement of encoding


def bench(
    jobs: Sequence[SlideJob], settings: Settings, runs: int, against: str | None, timeline: Path | None = None
) -> list[Measured]:
    """All steps; medians of `runs`. `timeline` is the file for a picture of what the devices did."""
    keep_freed_memory()  # as the workers do; before other threads have memory of their own
    matched = matched_model(settings)
    settings, record = matched.settings, known_record(settings.embed.encoder)
    with tempfile.TemporaryDirectory(prefix="pathovit-bench-") as folder:
        outs = [Path(folder, str(number)) for number in range(runs)]
        done = [one_run(jobs, matched, out) for out in outs]
        if timeline:
            draw_timeline(timeline, jobs, done[-1], settings)
        lines = measure_planning(jobs, settings, record, runs)
        encoder, loading = load_timed(settings)
        lines += measure_finishing(jobs, matched, encoder.spec, outs[-1], runs)
    found = survey_slide(jobs[0], settings, record)
    grid = found.grid
    with found.slide as slide:
        lines += measure_reading(slide, grid, settings, runs)
        if against:
            lines += measure_peer(against, slide, grid, settings.run.readers or allowed_cores(), runs)
        alone, *encoding = measure_encoding(slide, grid, settings, encoder, runs)
    return [*lines_of(done, alone.rate), *lines, alone, loading, *encoding, *measure_machine(runs)]


def measure_planning(jobs: Sequence[SlideJob], settings: Settings, record: EncoderRecord, runs: int) -> list[Measured]:
    def plan() -> int:
        tiles = 0
        for job in jobs:
            with open_slide(job.path, job.mpp, job.mpp_source, "0" * 64, settings.embed.reader) as slide:
                mask = find_tissue(slide, settings.tissue)
                tiles += len(lay_grid(slide, mask, tile_spec(settings, record), None, record.scaled_decoding))
        return tiles

    said = f"{len(jobs)} slides opened, segmented and tiled; digest not counted"
    return [median(plan, runs).line("tissue and grid", said)]


def measure_reading(slide: Slide, grid: TileGrid, settings: Settings, runs: int) -> list[Measured]:
    some = np.linspace(0, len(grid) - 1, min(READ_TILES, len(grid))).round().astype(int)
    first = int(some[len(some) // 4])
    some = np.arange(first, min(first + READ_TILES, len(grid)))  # neighbours, as a run reads them

    def read(threads: int, opened: Slide) -> Callable[[], int]:
        def once() -> int:
            if opened.compressed:
                opened.compressed.forget()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda index: read_tile(opened, grid, int(index)), some))
            return len(some)

        return once

    lines = []
    threads = settings.run.readers or allowed_cores()
    for count in sorted({1, threads}):
        taken = median(read(count, slide), runs)
        remark = f"reader {'direct' if slide.compressed else slide.reader}, {grid.spec.tile_px} px at {grid.spec.mpp:g} um, read {grid.read_px[0]} px / {grid.read_scale}"
        lines.append(taken.line(f"read, {count} thread{'s' * (count > 1)}", remark))
    if slide.compressed and slide.compressed.levels.get(grid.read_level):
        taken = median(lambda: decode_alone(slide, grid, some), runs)
        rate = len(some) / taken.seconds
        said = f"the same compressed tiles, 1 thread; reading has {lines[0].rate / rate:.0%}"
        lines.append(taken.line("  limit: decoder alone", said, rate))
    plain = replace(open_slide(slide.path, slide.mpp, slide.mpp_source, slide.sha256, "openslide"), compressed=None)
    with plain:
        few = some[:100]
        level = plain.level(grid.read_level)

        def openslide_alone() -> int:
            for index in few:
                resize_tile(plain.read(level, *corner(plain, grid, int(index)), *grid.read_px)[0], grid.spec.tile_px)
            return len(few)

        return [*lines, median(openslide_alone, runs).line("  beside it: OpenSlide", "the same tiles, 1 thread")]


def decode_alone(slide: Slide, grid: TileGrid, some: np.ndarray[Any, Any]) -> int:
    """Decode every compressed tile under the given tiles, once; as many as reading had to."""
    assert slide.compressed
    tiled = slide.compressed.levels[grid.read_level]
    needed = set()
    for tile in some:
        left, top = corner(slide, grid, int(tile))
        for row in range(top // tiled.tile[1], (top + grid.read_px[1] - 1) // tiled.tile[1] + 1):
            for column in range(left // tiled.tile[0], (left + grid.read_px[0] - 1) // tiled.tile[0] + 1):
                needed.add(row * tiled.columns + column)
    for index in sorted(needed):
        slide.compressed.decode(tiled, index, grid.read_scale)
    return len(needed)


def load_timed(settings: Settings) -> tuple[Encoder, Measured]:
    """The encoder, and what it took until it gave features: torch is loaded with it."""
    began = time.perf_counter()
    from pathovit.encoders.load import load_encoder

    embed = settings.embed
    encoder = load_encoder(
        embed.encoder, embed.weights, settings.run.device, embed.precision, settings.tiles.tile_px, embed.engine
    )
    blank = encoder.buffer(batch_tiles(settings, encoder))
    blank[:] = 0
    encoder.embed(blank)
    return encoder, Measured("load the encoder", NAN, time.perf_counter() - began, "to the first features")


def measure_encoding(slide: Slide, grid: TileGrid, settings: Settings, encoder: Encoder, runs: int) -> list[Measured]:
    batch = encoder.buffer(batch_tiles(settings, encoder))
    tiles = [tile for index in range(min(len(grid), len(batch))) if (tile := read_tile(slide, grid, index)) is not None]
    for row in range(len(batch)):
        batch[row] = tiles[row % len(tiles)]
    said = f"{encoder.name}, {encoder.engine}, {encoder.precision}, {encoder.device.type}, batches of {len(batch)}"
    lines = [encode_alone(encoder, batch, runs).line("encode alone", said)]
    if slide.reader == "device":
        lines += measure_device_decoding(slide, grid, encoder, len(batch), runs)
    features = encoder.embed(batch).astype(np.float16)
    return lines + measure_storing(slide, grid, features, settings.embed.chunk_tiles, runs)


def encode_alone(encoder: Encoder, batch: np.ndarray[Any, Any], runs: int) -> Taken:
    """A number of tiles, handed to the device as a run does."""
    from pathovit.run.device import Batch, Device

    nowhere = (0, np.empty((0, 0), np.float16), np.empty(0, np.uint8))
    whole = Batch(batch, list(range(len(batch))), len(batch), nowhere, ends_chunk=True)
    device = Device(encoder)

    def encode() -> int:
        waiting = [device.submit(turn, whole) for turn in range(ENCODE_BATCHES)]
        for features in waiting:
            features.result()
        return len(waiting) * len(batch)

    try:
        return median(encode, runs)
    finally:
        device.close()


def measure_device_decoding(slide: Slide, grid: TileGrid, encoder: Encoder, batch: int, runs: int) -> list[Measured]:
    from pathovit.run.embedder import fetch_tile
    from pathovit.slides.readers.compressed import CodedTile
    from pathovit.slides.readers.device_decoder import DeviceDecoder

    decoder = DeviceDecoder(encoder.device)
    found = [fetch_tile(slide, grid, index)[0] for index in range(min(len(grid), READ_TILES))]
    tiles = [tile for tile in found if isinstance(tile, CodedTile)]

    def decode() -> int:
        decoder.forget()
        for first in range(0, len(tiles), batch):
            decoder.read(slide.path, tiles[first : first + batch], grid.read_px, encoder.tile_px, lambda place: None)
        return len(tiles)

    return [median(decode, runs).line("decode on the device", f"nvImageCodec, {encoder.device.type}, batches of {batch}")]


def measure_storing(slide: Slide, grid: TileGrid, features: np.ndarray[Any, Any], chunk_tiles: int, runs: int) -> list[Measured]:
    rows = np.resize(features, (min(chunk_tiles, len(grid)), features.shape[1]))
    attributes = FeatureAttributes.of_slide(slide, "cpu", EmbedRecipe({}), (1.0, 1.0))
    with tempfile.TemporaryDirectory(prefix="pathovit-bench-") as folder:
        store = FeatureStore(OutFolder(Path(folder)).slide("slide"), slide.path)
        store.create(grid, features.shape[1], chunk_tiles, attributes, np.zeros((1, 1), np.uint8))

        def write() -> int:
            store.write_chunk(0, rows, np.zeros(len(rows), np.uint8))
            return len(rows)

        return [median(write, runs).line("store", "a chunk of features to disk, synced")]


def made_slide(folder: Path, maker: Any) -> SlideJob:
    """A made slide at 40x, for a machine that has no slide at hand."""
    spec = replace(maker.demo_specs(1, 7)[0], name="bench", size=(14_336, 12_288), mpp=0.25)
    return SlideJob(maker.make_slide(folder, spec))
