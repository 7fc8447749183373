"""Tiles with labels, where somebody drew regions on slides: the same places for every encoder, each at its own resolution and size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from shapely import box

from pathovit.encoders.pretrain.tiles import Given
from pathovit.encoders.record import EncoderRecord
from pathovit.errors import SettingsError, SlideError, TileReadError
from pathovit.files import slide_stem
from pathovit.settings import Settings, TileSpec, fill_spec
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, lay_grid, read_tile
from pathovit.slides.tissue import TissueMask, find_tissue
from pathovit.study.labelled_tiles import READERS, LabelledTiles
from pathovit.study.regions import Meaning, Region, in_view, label_squares, regions_of
from pathovit.tables import Say
from pathovit.text import counted

MOST_TILES = 500  # of a class on a slide, spread over what was drawn


class GivenSlide(Given, Protocol):
    """A slide that was given, and whose it is."""

    @property
    def patient(self) -> str | None: ...


@dataclass(frozen=True)
class DrawnSlide:
    """A slide, and the places on it that have a class: (n, 2) middles in level-0 pixels."""

    job: GivenSlide
    middles: NDArray[np.float64]
    truth: NDArray[np.int64]


def find_drawn(
    jobs: Sequence[GivenSlide], paths: Sequence[Path], seen_by: Sequence[EncoderRecord], settings: Settings, say: Say
) -> LabelledTiles:
    """The places of slides that regions give a class, on a lattice of the largest tile that an encoder sees.

    Parameters
    ----------
    paths : files of regions, and folders of them
    seen_by : the encoders

    Raises
    ------
    SettingsError : regions of no slide, of one class alone, or none that covers a tile
    SlideError : a slide with regions cannot be read
    """
    known = {job.path: [job.path.name, slide_stem(job.path.name)] for job in jobs}
    drawn = regions_of(paths, known, "is none of the slides", "given", say)
    meaning = Meaning.of({path.name: regions for path, regions in drawn.items()})
    side, mpp = max(((record.tile_px, record.mpp) for record in seen_by), key=lambda tile: tile[0] * tile[1])
    found = [_look(job, drawn[job.path], meaning, side, mpp, settings, say) for job in jobs if job.path in drawn]
    if without := [slide.job.path.name for slide in found if not len(slide.truth)]:
        say(f"{counted(len(without), 'slide')} left out, without a tile of one class, such as {without[0]}")
    slides = [slide for slide in found if len(slide.truth)]
    if not slides:
        raise SettingsError(
            f"No region covers half a tile of {side * mpp:.0f} um. Draw larger ones, or take encoders with smaller tiles."
        )
    patients = [slide.job.patient for slide in slides]
    by_patient = any(patients)
    if not by_patient:
        say("patients are not known: every slide is taken for one; give a --manifest with a column `patient`")
    names = [str(patient or slide.job.path) for patient, slide in zip(patients, slides, strict=True)]
    groups = np.repeat(np.unique(names, return_inverse=True)[1], [len(slide.truth) for slide in slides])
    truth = np.concatenate([slide.truth for slide in slides])
    return LabelledTiles(
        meaning.classes, truth, groups, "patient" if by_patient else "slide",
        lambda side, mpp: np.concatenate([_pixels(slide, side, mpp, settings) for slide in slides]),
    )  # fmt: skip


def _look(
    job: GivenSlide, regions: Sequence[Region], meaning: Meaning, side: int, mpp: float, settings: Settings, say: Say
) -> DrawnSlide:
    with _opened(job, settings) as slide:
        grid = _laid(slide, find_tissue(slide, settings.tissue), side, mpp, settings.tiles)
        cropped = (slide.bounds.x, slide.bounds.y) if slide.has_bounds else (0, 0)
        lower = grid.xy - np.asarray(cropped, np.float64)
        squares = np.asarray(box(*np.concatenate([lower, lower + np.asarray(grid.tile_l0)], axis=1).T))
        allowed = label_squares(
            squares, np.zeros(len(grid), bool), job.path.name, in_view(regions, cropped), meaning, say
        ).allowed
        rows, truth = [], []
        for place in range(len(meaning.classes)):
            these = np.flatnonzero(allowed[:, place] & (allowed.sum(1) == 1))
            kept = these[np.linspace(0, len(these) - 1, min(len(these), MOST_TILES)).astype(int)]
            if len(kept) < len(these):
                say(f"{job.path.name}: {len(kept)} of {len(these):,} tiles of {meaning.classes[place]}, spread evenly")
            whole = [int(row) for row in kept if _is_whole(slide, grid, int(row))]
            rows += whole
            truth += [place] * len(whole)
        return DrawnSlide(job, grid.xy[rows] + np.asarray(grid.tile_l0) / 2, np.array(truth, np.int64))


def _pixels(found: DrawnSlide, side: int, mpp: float, settings: Settings) -> RGB:
    """What an encoder sees of the places of a slide, (n, side, side, 3)."""
    with _opened(found.job, settings) as slide:
        grid = _laid(slide, find_tissue(slide, settings.tissue), side, mpp, settings.tiles)
        corners = np.rint(found.middles - np.asarray(grid.tile_l0) / 2).astype(np.int64)
        grid = replace(grid, xy=corners, coverage=np.ones(len(corners), np.float32), total=len(corners))

        def read(index: int) -> RGB:
            tile = read_tile(slide, grid, index)
            if tile is None:
                x_l0, y_l0 = corners[index].tolist()
                raise TileReadError(
                    found.job.path, f"the scanner left the tile at {x_l0}, {y_l0} empty. Take it out of the regions."
                )
            return tile

        with ThreadPoolExecutor(READERS) as pool:
            return np.stack(list(pool.map(read, range(len(grid)))))


def _is_whole(slide: Slide, grid: TileGrid, row: int) -> bool:
    try:
        return read_tile(slide, grid, row) is not None
    except SlideError:
        return False  # one place less of many


def _laid(slide: Slide, mask: TissueMask, side: int, mpp: float, asked: TileSpec) -> TileGrid:
    return lay_grid(slide, mask, fill_spec(replace(asked, tile_px=side, mpp=mpp), side, mpp), None, False)


def _opened(job: GivenSlide, settings: Settings) -> Slide:
    return open_slide(job.path, job.mpp, job.mpp_source, None, settings.embed.reader)
