"""The second step of a slide: its tiles to stored features, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.encoder import Encoder
from pathovit.errors import SettingsError, StoreError
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.recipe import feature_dtype
from pathovit.reasons import Code
from pathovit.run.device import Span
from pathovit.run.embedder import Embedder
from pathovit.run.plan import SlidePlan
from pathovit.run.watchdog import OnHang
from pathovit.settings import Settings
from pathovit.slides.identity import require_unchanged
from pathovit.slides.readers.device_decoder import DeviceDecoder


def batch_tiles(settings: Settings, encoder: Encoder) -> int:
    """Tiles in one pass: as asked, or as many as keep the device busy."""
    return settings.embed.batch_tiles or min(encoder.batch_tiles, settings.embed.chunk_tiles)


def make_embedder(encoder: Encoder, settings: Settings, on_hang: OnHang = "raise") -> Embedder:
    """Raises SettingsError where the device cannot decode, and was asked to."""
    decoder = None
    if settings.embed.reader == "device":
        if encoder.compiled is not None:
            raise SettingsError(f"--reader device cannot feed --engine {encoder.engine}. Use --reader auto.")
        decoder = DeviceDecoder(encoder.device)
    return Embedder(encoder, settings.run.readers or encoder.cores, settings.run.read_timeout_s, decoder, on_hang)


def embed_part(
    plan: SlidePlan, part: int, out: OutFolder, settings: Settings, embedder: Embedder, on_batch: Callable[[int], None]
) -> list[Span]:
    """Embed one part of a slide: the chunks of it that are not committed yet. Returns when the device was at work for it."""
    embed, tiles, watchdog = settings.embed, plan.survey.tiles, embedder.step_watchdog
    store = plan.store(out)
    with watchdog(plan.job.path, "looking at its stored features"):
        if store.recipe() != plan.recipe(settings, embedder.encoder):
            raise StoreError(
                plan.job.path,
                "its features are laid out for another recipe (another run, or a worker with another device).",
                Code.OTHER_RECIPE,
            )
        per_part = embed.part_tiles // embed.chunk_tiles
        chunks = range(part * per_part, min((part + 1) * per_part, -(-tiles // embed.chunk_tiles)))
        committed = store.committed(chunks)
    todo = [chunk for chunk in chunks if chunk not in committed]
    on_batch(sum(min(embed.chunk_tiles, tiles - chunk * embed.chunk_tiles) for chunk in chunks if chunk in committed))
    spans: list[Span] = []
    if not todo:
        return spans
    state = plan.state

    def write(chunk: int, features: NDArray[np.floating[Any]], verdict: NDArray[np.uint8], span: Span) -> None:
        with watchdog(plan.job.path, "storing its features"):
            store.write_chunk(chunk, features, verdict, span)

    with watchdog(plan.job.path, "opening it"):
        slide, grid = plan.open(settings), store.grid()
    with slide, ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        writing: Future[None] | None = None
        begun = time.time()
        stream = embedder.embed(
            slide, grid, todo, chunk_tiles=embed.chunk_tiles, batch_tiles=batch_tiles(settings, embedder.encoder),
            dtype=feature_dtype(settings, embedder.encoder.record), on_batch=on_batch, on_device=spans.append,
        )  # fmt: skip
        with closing(stream):  # before the slide is
            for chunk, features, verdict in stream:
                if writing:
                    writing.result()
                with watchdog(plan.job.path, "looking whether it has changed"):
                    state = require_unchanged(plan.job.path, state, plan.sha256)
                now = time.time()
                writing = writer.submit(write, chunk, features, verdict, (begun, now))
                begun = now
        if writing:
            writing.result()
    return spans
