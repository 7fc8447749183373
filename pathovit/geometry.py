"""Frames, sizes and conversions; arithmetic only.

Points and sizes are (x, y) and (width, height); arrays are (row, column). Level 0 is the sharpest level, and every
position on disk is a level-0 pixel. Micrometres (um) are exact: nothing is binned into "20x".
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

XY = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle in level-0 pixels: top-left corner and size."""

    x: int
    y: int
    width: int
    height: int


def l0_per_px(mpp_wanted: float, mpp_l0: XY) -> XY:
    """Level-0 pixels under one pixel at `mpp_wanted`, per axis."""
    return mpp_wanted / mpp_l0[0], mpp_wanted / mpp_l0[1]


def area_mm2(pixels: float, mpp: XY) -> float:
    """Area in mm2 of a number of pixels of the given size in um."""
    return float(pixels) * mpp[0] * mpp[1] * 1e-6


def integral_image(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Summed-area table (H+1, W+1) with a zero first row and column. Source: Crow, SIGGRAPH 1984."""
    return np.asarray(cv2.integral(mask.view(np.uint8)), np.int32)


def integral_at(table: NDArray[np.int32], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mask area left of x and above y at fractional mask positions; outside is background.

    The table is bilinear between its nodes because a mask pixel is constant over its square, so this is exact.
    """
    y = np.clip(y, 0, table.shape[0] - 1)
    x = np.clip(x, 0, table.shape[1] - 1)
    y0 = np.minimum(y.astype(np.int64), table.shape[0] - 2)
    x0 = np.minimum(x.astype(np.int64), table.shape[1] - 2)
    fy, fx = y - y0, x - x0
    top = table[y0, x0] * (1 - fx) + table[y0, x0 + 1] * fx
    bottom = table[y0 + 1, x0] * (1 - fx) + table[y0 + 1, x0 + 1] * fx
    result: NDArray[np.float64] = top * (1 - fy) + bottom * fy
    return result


def box_fraction(
    table: NDArray[np.int32],
    xy: NDArray[np.float64],
    size: XY,
) -> NDArray[np.float32]:
    """Fraction (N,) of every box that lies on the mask.

    Parameters
    ----------
    table : summed-area table of the mask
    xy : (N, 2) top-left corners in mask pixels, fractional
    size : (width, height) of the boxes in mask pixels, fractional
    """
    x0, y0 = xy[:, 0], xy[:, 1]
    x1, y1 = x0 + size[0], y0 + size[1]
    inside = integral_at(table, y1, x1) - integral_at(table, y0, x1) - integral_at(table, y1, x0) + integral_at(table, y0, x0)
    return np.clip(inside / (size[0] * size[1]), 0, 1).astype(np.float32)
