"""Levels of a pyramid: their true scale, and which pages of a file are none."""

from __future__ import annotations

from dataclasses import dataclass

from pathovit.errors import TileReadError
from pathovit.geometry import XY
from pathovit.slides.readers import RGB, PixelSource, average, composite
from pathovit.slides.readers.compressed import CompressedTiles, alike

COMPARED_PX, COMPARED_PLACES = 96, 6  # where a level is compared with the sharper one
GRID = 5  # places on each side, where it is not known which are detailed


@dataclass(frozen=True)
class Level:
    """One image of the pyramid.

    Examples
    --------
    >>> with pathovit.open_slide(path) as slide:
    ...     [level.mpp[0] for level in slide.levels]
    [0.5, 2.0, 8.0]
    """

    index: int
    size: tuple[int, int]  # width, height in pixels of this level
    downsample: XY  # level-0 pixels per pixel of this level, per axis
    mpp: XY  # um per pixel
    exact: bool = True  # its pixels can be had as they are stored; else they come moved by parts of a pixel, and softened


def describe_levels(sizes: list[tuple[int, int]], mpp: XY) -> tuple[tuple[Level, ...], tuple[str, ...]]:
    """The levels of the pyramid, and what is said of pages that are none: their two sides are not of one scale."""
    levels, remarks = [], []
    for index, size in enumerate(sizes):
        if not _of_one_scale(sizes[0], size):
            remarks.append(f"its page of {size[0]} x {size[1]} pixels is no level of the pyramid; it is left out")
            continue
        downsample = (_true_downsample(sizes[0][0], size[0]), _true_downsample(sizes[0][1], size[1]))
        levels.append(Level(index, size, downsample, (mpp[0] * downsample[0], mpp[1] * downsample[1])))
    return tuple(levels), tuple(remarks)


def _of_one_scale(size_l0: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one factor makes both sides of a level, each rounded up or down, and padded by a pixel at most."""
    lowest = [whole / (side + 2) for whole, side in zip(size_l0, size, strict=True)]
    highest = [whole / (side - 2) if side > 2 else float("inf") for whole, side in zip(size_l0, size, strict=True)]
    return max(lowest) <= min(highest)


def _true_downsample(side_l0: int, side: int) -> float:
    """17,883 / 4,470 is 4.0007, because the last, incomplete pixel was cut off; the scanner's factor is 4."""
    ratio = side_l0 / side
    whole = round(ratio)
    cut_off = abs(side_l0 / whole - side) < 1.0 + 1e-9
    return float(whole) if cut_off and abs(ratio - whole) < 0.05 * whole else ratio


def without_other_pictures(
    levels: tuple[Level, ...], source: PixelSource, tiles: CompressedTiles | None
) -> tuple[tuple[Level, ...], tuple[str, ...]]:
    """Levels less those that show something else than the one before: a macro or a thumbnail that is tiled, too."""
    kept, remarks = [levels[0]], []
    for level in levels[1:]:
        shown = _shows_the_same(source, tiles, kept[-1], level)
        if shown is False:
            remarks.append(f"its page of {level.size[0]} x {level.size[1]} pixels shows another picture; it is left out")
        else:
            kept.append(level)
    return tuple(kept), tuple(remarks)


def _shows_the_same(source: PixelSource, tiles: CompressedTiles | None, sharp: Level, level: Level) -> bool | None:
    """Whether a detailed place of a level shows what the sharper one shows there; None where neither can be read."""
    ratio = level.downsample[0] / sharp.downsample[0], level.downsample[1] / sharp.downsample[1]
    found: list[bool] = []
    for left, top, side in _places(tiles, level):
        box = round(left * ratio[0]), round(top * ratio[1]), round(side * ratio[0]), round(side * ratio[1])
        try:
            ours = _pixels(source, tiles, level, left, top, side, side)
            if ours.std((0, 1)).max() <= 3:  # what is of one colour tells nothing
                continue
            theirs = _pixels(source, tiles, sharp, *box)
        except TileReadError:
            continue
        found.append(alike(ours, average(theirs, (side, side))))
        if len(found) == 3 or found[-1]:
            break
    return any(found) if found else None


def _places(tiles: CompressedTiles | None, level: Level) -> list[tuple[int, int, int]]:
    """Left, top and side of squares of a level: where most bytes lie, or else a few of all of it, the middle first."""
    if tiles is not None and level.index in tiles.levels:
        boxes = tiles.detailed(level.index, COMPARED_PLACES)
    else:
        steps = [(across, down) for across in range(GRID) for down in range(GRID)]
        steps.sort(key=lambda step: max(abs(2 * number + 1 - GRID) for number in step))
        wide, high = max(1, level.size[0] // GRID), max(1, level.size[1] // GRID)
        boxes = [(across * wide, down * high, wide, high) for across, down in steps]
    sides = [min(COMPARED_PX, width, height) for _, _, width, height in boxes]
    return [
        (x + (width - side) // 2, y + (height - side) // 2, side)
        for (x, y, width, height), side in zip(boxes, sides, strict=True)
    ]


def _pixels(source: PixelSource, tiles: CompressedTiles | None, level: Level, x: int, y: int, width: int, height: int) -> RGB:
    own = tiles.read(level.index, x, y, width, height) if tiles is not None and level.index in tiles.levels else None
    return composite(source.read(level.index, x, y, width, height), (255, 255, 255))[0] if own is None else own
