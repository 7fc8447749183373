"""The slide, small: read block by block from the level that serves, around what is damaged. Masks are made of it, and pictures."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from math import ceil
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import ResolutionError, TileReadError
from pathovit.geometry import XY, Box
from pathovit.machine import allowed_cores
from pathovit.slides.levels import Level
from pathovit.slides.masks import Mask
from pathovit.slides.readers import RGB
from pathovit.slides.readers.compressed import SCALES

BAND_PX = 2048  # side of the blocks in which a level is read: bounds the memory
SMALLEST_BLOCK = 8  # overview pixels on a side, down to which a block with damage in it is divided
MOST_OVERVIEW_PX = 250_000_000


class Pyramid(Protocol):
    """What an overview needs of a `Slide`."""

    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def mpp(self) -> XY: ...
    @property
    def levels(self) -> Sequence[Level]: ...
    @property
    def background(self) -> tuple[int, int, int]: ...
    def best_level(self, mpp: XY, tolerance: float, exact: bool = True) -> Level: ...
    def read_scanned(
        self, level: Level, x_level: int, y_level: int, width: int, height: int, scale: int = 1
    ) -> tuple[RGB, NDArray[np.bool_] | None]: ...


def read_overview(slide: Pyramid, mpp: float) -> tuple[RGB, Mask, Mask, XY]:
    """The whole slide at about `mpp`, a whole multiple of a level, read block by block.

    Returns
    -------
    uint8 (H, W, 3); bool (H, W) scanned; bool (H, W) unreadable; level-0 pixels per overview pixel
    """
    picture, scanned, unread, scale, _ = read_part(slide, mpp, Box(0, 0, *slide.size))
    return picture, scanned, unread, scale


def read_part(slide: Pyramid, mpp: float, box: Box, to_look_at: bool = False) -> tuple[RGB, Mask, Mask, XY, XY]:
    """The same of a rectangle of level-0 pixels, as far as pixels of the overview go; last, its level-0 corner.

    Parameters
    ----------
    to_look_at : compressed tiles may be decoded smaller, in a third of the time: no mask is to be made of it
    """
    level = slide.best_level((mpp, mpp), tolerance=0.0, exact=False)
    shrink = max(1, round(mpp / max(level.mpp)))
    scale = level.downsample[0] * shrink, level.downsample[1] * shrink
    whole = -(-level.size[0] // shrink), -(-level.size[1] // shrink)
    first = int(box.x // scale[0]), int(box.y // scale[1])
    last = min(whole[0], ceil((box.x + box.width) / scale[0])), min(whole[1], ceil((box.y + box.height) / scale[1]))
    shape = last[1] - first[1], last[0] - first[0]
    if shape[0] * shape[1] > MOST_OVERVIEW_PX:
        raise ResolutionError(
            slide.path,
            f"its overview at {mpp:g} um would have {shape[1]:,} x {shape[0]:,} pixels. Correct its pixel size with --mpp.",
        )
    overview = np.empty((*shape, 3), np.uint8)
    scanned = np.zeros(shape, bool)
    unread = np.zeros(shape, bool)
    step = max(1, BAND_PX // shrink)
    sharper = threading.Lock()  # held while a damaged block is read from a sharper level, which takes up to 16 times as much

    def read(corner: tuple[int, int], step: int = step) -> None:
        rows, columns = (slice(at, min(at + step, side)) for at, side in zip(corner, shape, strict=True))
        block = _read_block(slide, level, shrink, _moved(rows, first[1]), _moved(columns, first[0]), sharper, to_look_at)
        if block is not None:
            overview[rows, columns], scanned[rows, columns] = block
        elif step <= SMALLEST_BLOCK:
            overview[rows, columns], unread[rows, columns] = slide.background, True
        else:  # a damaged tile must not take all around it along
            half = -(-step // 2)
            for part in itertools.product(range(rows.start, rows.stop, half), range(columns.start, columns.stop, half)):
                read(part, half)

    with ThreadPoolExecutor(min(4, allowed_cores())) as pool:
        list(pool.map(read, itertools.product(range(0, shape[0], step), range(0, shape[1], step))))
    return overview, scanned, unread, scale, (first[0] * scale[0], first[1] * scale[1])


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _read_block(
    slide: Pyramid, level: Level, shrink: int, rows: slice, columns: slice, sharper: threading.Lock, to_look_at: bool
) -> tuple[RGB, Mask] | None:
    """One block of the overview; from a sharper level where this one is damaged; None where all are."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    for candidate in reversed([other for other in slide.levels if other.index <= level.index]):
        across, down = (shrink * (a / b) for a, b in zip(level.downsample, candidate.downsample, strict=True))
        x, right = round(columns.start * across), round(columns.stop * across)
        y, bottom = round(rows.start * down), round(rows.stop * down)
        if (right - x) * (bottom - y) > BAND_PX**2 * 16:  # a quarter of a gigabyte
            return None
        inside = min(right, candidate.size[0]) - x, min(bottom, candidate.size[1]) - y
        sizes = (across, down, *inside) if to_look_at else (1,)
        scale = next((scale for scale in reversed(SCALES) if not any(length % scale for length in sizes)), 1)
        try:
            with nullcontext() if candidate is level else sharper:
                part, scanned = slide.read_scanned(candidate, x, y, *inside, scale)
        except TileReadError:
            continue
        smaller = inside[0] // part.shape[1]  # than was asked for, where it was decoded so
        whole = (bottom - y) // smaller, (right - x) // smaller
        rgb = part
        if part.shape[:2] != whole:  # at the level's edge
            rgb = np.empty((*whole, 3), np.uint8)
            rgb[:] = slide.background
            rgb[: part.shape[0], : part.shape[1]] = part
        small = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        if scanned is None:
            return small, np.ones((height, width), bool)
        seen = np.pad(scanned, ((0, whole[0] - scanned.shape[0]), (0, whole[1] - scanned.shape[1])), "edge")
        return small, cv2.resize(seen.view(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) > 127
    return None


def small_picture(slide: Pyramid, box: Box, longer_px: int) -> tuple[RGB, tuple[float, float, float, float]]:
    """A rectangle of level-0 pixels at about `longer_px` on its longer side; and its left, right, bottom and top, level-0 pixels."""
    mpp = max(box.width, box.height) * max(slide.mpp) / longer_px
    picture, _, _, scale, corner = read_part(slide, mpp, box, to_look_at=True)
    if max(picture.shape) > longer_px:
        factor = max(picture.shape) / longer_px
        size = max(1, round(picture.shape[1] / factor)), max(1, round(picture.shape[0] / factor))
        scale = scale[0] * picture.shape[1] / size[0], scale[1] * picture.shape[0] / size[1]
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    right, bottom = corner[0] + picture.shape[1] * scale[0], corner[1] + picture.shape[0] * scale[1]
    return picture, (corner[0], right, bottom, corner[1])
