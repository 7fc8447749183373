"""Tiles by their row and column, to take means over neighbours. Needs no torch."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
DIMS_AT_ONCE = 64


class Lattice:
    """Where tiles lie beside each other."""

    def __init__(self, xy_um: NDArray[Any], pitch_um: float) -> None:
        """`xy_um` : (N, 2) centres; `pitch_um` : between neighbours"""
        place = np.rint((xy_um - xy_um.min(0)) / pitch_um).astype(np.int64)
        self.column, self.row = place.T
        self.shape = int(self.row.max()) + 1, int(self.column.max()) + 1

    def mean(self, values: Floats, reach: float) -> Floats:
        """(N, d) -> (N, d): of each tile and its neighbours, weighted by a Gaussian over those that there are.

        Parameters
        ----------
        reach : spread of the Gaussian, in tiles
        """
        radius = -(-5 * reach // 2)
        weight = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * reach**2)).astype(np.float32)
        summed = self._blurred(np.concatenate([values, np.ones_like(values[:, :1])], 1), weight)
        return np.asarray(summed[:, :-1] / summed[:, -1:])

    def _blurred(self, values: Floats, weight: Floats) -> Floats:
        grid = np.zeros((*self.shape, values.shape[1]), np.float32)
        grid[self.row, self.column] = values
        parts = [grid[..., first : first + DIMS_AT_ONCE] for first in range(0, grid.shape[-1], DIMS_AT_ONCE)]
        blurred = [cv2.sepFilter2D(part, -1, weight, weight, borderType=cv2.BORDER_CONSTANT) for part in parts]
        return np.concatenate([np.atleast_3d(part)[self.row, self.column] for part in blurred], 1)
