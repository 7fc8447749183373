"""How fast this machine does each step on real slides, and how fast it could: its own limits, measured beside it."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathovit.bench.memory import peak_memory
from pathovit.bench.peers import measure_machine, measure_peer
from pathovit.bench.timing import Measured, median_s
from pathovit.encoders.names import known_record
from pathovit.encoders.records import EncoderRecord
from pathovit.errors import SettingsError
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
    from pathovit.run.embedder import Span

READ_TILES = 400  # of a slide, for one measurement of reading
ENCODE_BATCHES = 16  # for one measurement of encoding


def bench(
    jobs: Sequence[SlideJob], settings: Settings, runs: int, against: str | None, timeline: Path | None = None
) -> list[Measured]:
    """All steps; medians of `runs`. `timeline` is the file for a picture of what the devices did."""
    keep_freed_memory()  # as the workers do; before other threads have memory of their own
    record = known_record(settings.embed.encoder)
    done = [one_run(jobs, settings) for _ in range(runs)]  # first, while this process is as small as that of `pathovit run`
    if timeline:
        draw_timeline(timeline, jobs, done[-1], settings)
    lines = summary_of(done)
    lines += measure_planning(jobs, settings, record, runs)
    found = survey_slide(jobs[0], settings, record)
    grid = found.grid
    with found.slide as slide:
        lines += measure_reading(slide, grid, settings, runs)
        if against:
            lines += measure_peer(against, slide, grid, runs)
        lines += measure_encoding(slide, grid, settings, runs)
    lines += measure_machine(runs)
    return lines


@dataclass(frozen=True)
class Run:
    """What one run of all slides, by its worker processes into a folder that is thrown away, has taken."""

    tiles: int
    wall_s: float
    start_s: float  # command to first batch
    spans: list[list[Span]]  # of each slide, in which a device had a batch; seconds since the first began
    peak_bytes: int

    @property
    def embedding_s(self) -> float:
        return max(end for spans in self.spans for _, end in spans)


def one_run(jobs: Sequence[SlideJob], settings: Settings) -> Run:
    from pathovit.encoders.check import check_weights
    from pathovit.run.drive import run_slides
    from pathovit.run.worker import Work

    with tempfile.TemporaryDirectory(prefix="pathovit-bench-") as out:
        work = Work(OutFolder(Path(out)), settings, check_weights(settings), None, None, overwrite=False)
        began = time.time()
        with peak_memory() as peak:
            states = run_slides(jobs, work, lambda state: None, threading.Event())
        wall = time.time() - began
    failed = [state for state in states if state.stage == "failed"]
    if failed:
        raise SettingsError(f"{failed[0].job.path.name}: {failed[0].reason} Bench with slides that can be embedded.")
    first = min((begun for state in states for begun, _ in state.spans), default=None)
    if first is None:
        raise SettingsError("No tile was embedded.")
    spans = [sorted((begun - first, ended - first) for begun, ended in state.spans) for state in states]
    return Run(sum(state.tiles for state in states), wall, first - began, spans, peak[0])


def summary_of(runs: Sequence[Run]) -> list[Measured]:
    embedding = statistics.median(run.embedding_s for run in runs)
    busy, pause = (statistics.median(found) for found in zip(*(device_use(run.spans) for run in runs), strict=True))
    wall, nan, tiles = statistics.median(run.wall_s for run in runs), float("nan"), runs[0].tiles
    peak_mb = max(run.peak_bytes for run in runs) / 2**20
    return [
        Measured(
            "end to end", tiles / embedding, embedding, f"{tiles:,} tiles of {len(runs[0].spans)} slides, first batch to last"
        ),
        Measured("device busy", nan, busy, f"{busy / embedding:.1%} of that time it had a batch; longest pause {pause:.2f} s"),
        Measured("start", nan, statistics.median(run.start_s for run in runs), "command to first batch"),
        Measured(
            "whole run", tiles / wall, wall, f"peak memory of all processes {peak_mb:,.0f} MB, the most of {len(runs)} runs"
        ),
    ]


def device_use(spans_of_slides: Sequence[Sequence[Span]]) -> tuple[float, float]:
    """Seconds in which at least one batch was on a device, and the longest pause between."""
    spans = sorted(span for spans in spans_of_slides for span in spans)
    busy, pause, end = 0.0, 0.0, spans[0][0]
    for begun, ended in spans:
        pause = max(pause, begun - end)
        busy += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return busy, pause


def draw_timeline(path: Path, jobs: Sequence[SlideJob], run: Run, settings: Settings) -> None:
    from pathovit.study.figures import device_timeline

    busy, pause = device_use(run.spans)
    said = f"{settings.embed.encoder}, {run.tiles:,} tiles, {run.tiles / run.embedding_s:,.1f} tiles/s"
    title = f"{said}; device busy {busy / run.embedding_s:.1%} of the time, longest pause {pause * 1000:.0f} ms"
    device_timeline(path, {job.path.name: spans for job, spans in zip(jobs, run.spans, strict=True)}, title)


def measure_planning(jobs: Sequence[SlideJob], settings: Settings, record: EncoderRecord, runs: int) -> list[Measured]:
    def plan() -> int:
        tiles = 0
        for job in jobs:
            with open_slide(job.path, job.mpp, job.mpp_source, "0" * 64, settings.embed.reader) as slide:
                mask = find_tissue(slide, settings.tissue)
                tiles += len(lay_grid(slide, mask, tile_spec(settings, record), None, record.scaled_decoding))
        return tiles

    seconds, tiles = median_s(plan, runs)
    return [Measured("tissue and grid", tiles / seconds, seconds, "opened, segmented and tiled; digest not counted")]


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
        seconds, tiles = median_s(read(count, slide), runs)
        remark = f"reader {'direct' if slide.compressed else slide.reader}, {grid.spec.tile_px} px at {grid.spec.mpp:g} um, read {grid.read_px[0]} px / {grid.read_scale}"
        lines.append(Measured(f"read, {count} thread{'s' * (count > 1)}", tiles / seconds, seconds, remark))
    if slide.compressed and slide.compressed.levels.get(grid.read_level):
        seconds, _ = median_s(lambda: decode_alone(slide, grid, some), runs)
        rate = len(some) / seconds
        lines.append(
            Measured(
                "  limit: decoder alone",
                rate,
                seconds,
                f"the same compressed tiles, 1 thread; reading has {lines[0].rate / rate:.0%}",
            )
        )
    plain = replace(open_slide(slide.path, slide.mpp, slide.mpp_source, slide.sha256, "openslide"), compressed=None)
    with plain:
        few = some[:100]
        level = plain.level(grid.read_level)

        def openslide_alone() -> int:
            for index in few:
                resize_tile(plain.read(level, *corner(plain, grid, int(index)), *grid.read_px)[0], grid.spec.tile_px)
            return len(few)

        seconds, tiles = median_s(openslide_alone, runs)
    lines.append(Measured("  beside it: OpenSlide", tiles / seconds, seconds, "the same tiles, 1 thread"))
    return lines


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


def measure_encoding(slide: Slide, grid: TileGrid, settings: Settings, runs: int) -> list[Measured]:
    from pathovit.encoders.load import load_encoder

    embed = settings.embed
    loading = time.perf_counter()
    encoder = load_encoder(
        embed.encoder, embed.weights, settings.run.device, embed.precision, settings.tiles.tile_px, embed.engine
    )
    batch = encoder.buffer(batch_tiles(settings, encoder))
    tiles = [tile for index in range(min(len(grid), len(batch))) if (tile := read_tile(slide, grid, index)) is not None]
    for row in range(len(batch)):
        batch[row] = tiles[row % len(tiles)]
    encoder.embed(batch)
    loading = time.perf_counter() - loading

    seconds, count = encode_alone(encoder, batch, runs)
    said = f"{encoder.name}, {encoder.engine}, {encoder.precision}, {encoder.device.type}, batches of {len(batch)}"
    lines = [
        Measured("encode alone", count / seconds, seconds, said),
        Measured("load the encoder", float("nan"), loading, "to the first features"),
    ]
    if slide.reader == "device":
        lines += measure_device_decoding(slide, grid, encoder, len(batch), runs)
    features = encoder.embed(batch).astype(np.float16)
    return lines + measure_storing(slide, grid, features, embed.chunk_tiles, runs)


def encode_alone(encoder: Encoder, batch: np.ndarray[Any, Any], runs: int) -> tuple[float, int]:
    """Median seconds for a number of tiles, handed to the device as a run does."""
    from pathovit.run.embedder import Batch, Device

    nowhere = (0, np.empty((0, 0), np.float16), np.empty(0, np.uint8))
    whole = Batch(batch, list(range(len(batch))), len(batch), nowhere, ends_chunk=True)
    device = Device(encoder)

    def encode() -> int:
        waiting = [device.submit(turn, whole) for turn in range(ENCODE_BATCHES)]
        for features in waiting:
            features.result()
        return len(waiting) * len(batch)

    try:
        return median_s(encode, runs)
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

    seconds, count = median_s(decode, runs)
    return [
        Measured("decode on the device", count / seconds, seconds, f"nvImageCodec, {encoder.device.type}, batches of {batch}")
    ]


def measure_storing(slide: Slide, grid: TileGrid, features: np.ndarray[Any, Any], chunk_tiles: int, runs: int) -> list[Measured]:
    rows = np.resize(features, (min(chunk_tiles, len(grid)), features.shape[1]))
    attributes = FeatureAttributes.of_slide(slide, "cpu", EmbedRecipe({}), (1.0, 1.0))
    with tempfile.TemporaryDirectory(prefix="pathovit-bench-") as folder:
        store = FeatureStore(OutFolder(Path(folder)).slide("slide"), slide.path)
        store.create(grid, features.shape[1], chunk_tiles, attributes, np.zeros((1, 1), np.uint8))

        def write() -> int:
            store.write_chunk(0, rows, np.zeros(len(rows), np.uint8))
            return len(rows)

        seconds, count = median_s(write, runs)
    return [Measured("store", count / seconds, seconds, "a chunk of features to disk, synced")]


def made_slide(folder: Path, maker: Any) -> SlideJob:
    """A made slide at 40x, for a machine that has no slide at hand."""
    spec = replace(maker.demo_specs(1, 7)[0], name="bench", size=(14_336, 12_288), mpp=0.25)
    return SlideJob(maker.make_slide(folder, spec))
