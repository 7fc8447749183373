"""Tiles drawn from slides at random: the same ones for the same seed and step, whoever asks."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np

from pathovit.errors import NoSlidesError, SlideError
from pathovit.geometry import XY
from pathovit.reasons import Code
from pathovit.settings import Settings, TileSpec, fill_spec
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, lay_grid, read_tile
from pathovit.slides.tissue import find_tissue
from pathovit.tables import Say
from pathovit.text import counted

MOST_OPEN = 32  # slides
AHEAD = 2  # batches that are read while one is learned from
ATTEMPTS = 100  # to draw a tile that can be read


Draw = tuple[int, int]  # step and place in it: which tile is drawn follows from them


def fresh(step: int, count: int, rank: int = 0) -> list[Draw]:
    """Tiles that no other step has, nor the same step of another process."""
    return [(step, rank * count + place) for place in range(count)]


class Given(Protocol):
    """A slide that was given."""

    @property
    def path(self) -> Path: ...
    @property
    def mpp(self) -> XY | None: ...
    @property
    def mpp_source(self) -> str: ...


@dataclass(frozen=True)
class Batch:
    """Tiles of one step, and which they are: (slide, resolution, place) each."""

    step: int
    pixels: RGB  # (B, side, side, 3)
    which: tuple[tuple[int, int, int], ...]


class TileStream:
    """Tiles of slides at one or several resolutions. A slide that cannot be read is left out, and said.

    Raises
    ------
    NoSlidesError : none can be
    """

    def __init__(
        self, jobs: Sequence[Given], side: int, mpps: Sequence[float], settings: Settings, readers: int, seed: int, say: Say
    ) -> None:
        self._settings, self._seed = settings, seed
        self._jobs: list[Given] = []
        self._grids: list[list[TileGrid]] = []  # of each slide, those of its resolutions
        self._open: OrderedDict[int, Slide] = OrderedDict()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(readers)
        coarse = 0

        def look(job: Given) -> list[TileGrid] | SlideError:
            try:
                with self._opened(job) as slide:
                    mask = find_tissue(slide, settings.tissue)
                    return [lay_grid(slide, mask, _spec(settings.tiles, side, mpp), None, False) for mpp in mpps]
            except SlideError as error:
                return error

        for number, (job, found) in enumerate(zip(jobs, self._pool.map(look, jobs), strict=True), start=1):
            if isinstance(found, SlideError):
                say(f"left out: {found}")
                coarse += found.code is Code.TOO_COARSE
                continue
            self._jobs.append(job)
            self._grids.append(found)
            if number % 100 == 0:
                say(f"{number} of {len(jobs)} slides looked at")
        if coarse:
            say(
                f"{counted(coarse, 'slide')} too coarse for tiles at {min(mpps):g} um per pixel: choose coarser ones with --tile-mpp"
            )
        if not self._jobs:
            raise NoSlidesError(
                f"None of {counted(len(jobs), 'slide')} can be learned from; what is wrong with each is said above."
            )

    @property
    def slides(self) -> int:
        return len(self._jobs)

    @property
    def tiles(self) -> int:
        return sum(len(grid) for grids in self._grids for grid in grids)

    @property
    def digest(self) -> str:
        """Of which tiles are drawn: of all slides that can be read, where their tiles lie, and how they are read."""
        found = hashlib.sha256(self._settings.embed.reader.encode())
        for job, grids in zip(self._jobs, self._grids, strict=True):
            found.update(f"{job.path.name}\0{job.path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
            for grid in grids:
                found.update(repr((grid.spec, grid.tile_l0, grid.read_level, grid.read_px, grid.read_scale)).encode())
                found.update(grid.xy.tobytes())
        return found.hexdigest()

    def batches(self, first: int, steps: int, draws: Callable[[int], list[Draw]]) -> Iterator[Batch]:
        """The batches of steps `first` to `steps`, with what is drawn for each; the next are read while one is used."""
        with ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(self.batch, step, draws(step)) for step in range(first, min(first + AHEAD, steps))]
            for step in range(first, steps):
                found = waiting.pop(0)
                if step + AHEAD < steps:
                    waiting.append(ahead.submit(self.batch, step + AHEAD, draws(step + AHEAD)))
                yield found.result()

    def batch(self, step: int, draws: list[Draw]) -> Batch:
        """The tiles of one step."""
        found = list(self._pool.map(self._draw, draws))
        return Batch(step, np.stack([pixels for _, pixels in found]), tuple(which for which, _ in found))

    def _draw(self, at: Draw) -> tuple[tuple[int, int, int], RGB]:
        chance = np.random.default_rng([self._seed, *at])
        for _ in range(ATTEMPTS):
            slide = int(chance.integers(len(self._jobs)))
            resolution = int(chance.integers(len(self._grids[slide])))
            grid = self._grids[slide][resolution]
            tile = int(chance.integers(len(grid)))
            try:
                pixels = read_tile(self._slide(slide), grid, tile)
            except SlideError:  # a tile of many: another is drawn
                continue
            if pixels is not None:
                return (slide, resolution, tile), pixels
        raise NoSlidesError(f"Of {ATTEMPTS} tiles that were drawn none could be read. Look at the slides with: pathovit info")

    def _slide(self, number: int) -> Slide:
        with self._lock:
            if number not in self._open:
                self._open[number] = self._opened(self._jobs[number])
                if len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)  # closed when its last reader has ended with it
            self._open.move_to_end(number)
            return self._open[number]

    def _opened(self, job: Given) -> Slide:
        return open_slide(job.path, job.mpp, job.mpp_source, None, self._settings.embed.reader)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for slide in self._open.values():
            slide.close()


def _spec(asked: TileSpec, side: int, mpp: float) -> TileSpec:
    return fill_spec(replace(asked, tile_px=side, mpp=mpp), side, mpp)
