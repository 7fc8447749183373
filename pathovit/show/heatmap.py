"""Heatmap: tile scores -> a picture that lies on the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathovit.geometry import XY
from pathovit.outputs.features import SlideFeatures


@dataclass(frozen=True)
class Heatmap:
    """Layers of float32 (rows, columns); one cell per lattice point, NaN where no tile was read.

    Cell (row, column) covers level-0 pixels from `origin + (column, row) * cell_l0`, `cell_l0` wide and high.
    """

    names: tuple[str, ...]  # one per layer: "score: tumour", "attention"
    layers: NDArray[np.float32]  # (L, rows, columns)
    unread: NDArray[np.bool_]  # (rows, columns): tissue that could not be read
    untaught: NDArray[np.bool_]  # (rows, columns): tissue unlike all that the model was taught
    origin: tuple[float, float]  # level-0 pixels
    cell_l0: XY
    mpp: XY  # um per level-0 pixel

    @classmethod
    def from_tiles(
        cls, stored: SlideFeatures, layers: dict[str, NDArray[np.float32]], untaught: NDArray[np.bool_] | None = None
    ) -> Heatmap:
        """Lay tile values (N,) on the lattice; where tiles overlap, a cell is the mean of the tiles over it."""
        origin = stored.grid.origin
        stride = stored.grid.stride_l0
        place = np.rint((stored.xy - np.asarray(origin)) / np.asarray(stride)).astype(np.int64)  # (N, 2) column, row
        reach = [max(1, round(t / s)) for t, s in zip(stored.tile_l0, stride, strict=True)]  # cells under a tile
        columns, rows = _lattice_size(stored, stride)
        columns, rows = max(columns, int(place[:, 0].max()) + reach[0]), max(rows, int(place[:, 1].max()) + reach[1])
        drawn = np.stack([_spread(values, place, reach, (rows, columns)) for values in layers.values()])
        nothing = np.isnan(drawn[0])
        unread = _covered(stored.unread, place, reach, (rows, columns)) & nothing
        strange = _covered(untaught, place, reach, (rows, columns)) & ~nothing if untaught is not None else np.zeros_like(nothing)
        return cls(tuple(layers), drawn, unread, strange, (float(origin[0]), float(origin[1])), stride, stored.mpp)

    @property
    def cell_um(self) -> XY:
        return self.cell_l0[0] * self.mpp[0], self.cell_l0[1] * self.mpp[1]


def _lattice_size(stored: SlideFeatures, stride: XY) -> tuple[int, int]:
    """Columns and rows that cover the scanned part of the slide."""
    bounds = stored.attributes.bounds
    return max(1, int(np.ceil(bounds.width / stride[0] - 1e-9))), max(1, int(np.ceil(bounds.height / stride[1] - 1e-9)))


def _covered(tiles: NDArray[np.bool_], place: NDArray[np.int64], reach: list[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells (rows, columns) under the tiles (N,) that are marked."""
    found = np.zeros(shape, bool)
    for dy in range(reach[1]):
        for dx in range(reach[0]):
            found[place[tiles, 1] + dy, place[tiles, 0] + dx] = True
    return found


def _spread(
    values: NDArray[np.float32], place: NDArray[np.int64], reach: list[int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    total, count = np.zeros(shape, np.float64), np.zeros(shape, np.int64)
    known = np.isfinite(values)
    columns, rows = place[known, 0], place[known, 1]
    for dy in range(reach[1]):
        for dx in range(reach[0]):
            np.add.at(total, (rows + dy, columns + dx), values[known])
            np.add.at(count, (rows + dy, columns + dx), 1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
