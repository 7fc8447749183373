"""Heatmap: tile scores -> a picture that lies on the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.geometry import XY
from pathovit.outputs.features import SlideFeatures
from pathovit.text import as_card

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCORE = "score: "  # begins the names of layers of evidence, which are in [0, 1]


@dataclass(frozen=True)
class Heatmap:
    """Layers of float32 (rows, columns); one cell per lattice point, NaN where no tile was read.

    Cell (row, column) covers level-0 pixels from `origin + (column, row) * cell_l0`, `cell_l0` wide and high.

    Examples
    --------
    >>> features = pathovit.load_features(out, "one")
    >>> heatmap = pathovit.Heatmap.from_tiles(features, {"coverage": features.coverage})
    >>> heatmap.layers.shape, heatmap.cell_um
    ((1, 14, 16), (96.0, 96.0))
    """

    names: tuple[str, ...]  # one per layer: "score: tumour", "attention"
    layers: NDArray[np.float32]  # (L, rows, columns)
    unread: NDArray[np.bool_]  # (rows, columns): tissue that could not be read
    untaught: NDArray[np.bool_]  # (rows, columns): tissue unlike all that the model was taught
    origin: tuple[float, float]  # level-0 pixels
    cell_l0: XY
    mpp: XY  # um per level-0 pixel
    outside: str = ""  # what is said of a slide that the model was not made for: its scores mean nothing, and get no colour

    @classmethod
    def from_tiles(
        cls, stored: SlideFeatures, layers: dict[str, NDArray[np.float32]], untaught: NDArray[np.bool_] | None = None,
        outside: str = "",
    ) -> Heatmap:  # fmt: skip
        """Lay tile values (N,) on the lattice; where tiles overlap, a cell is the mean of the tiles over it."""
        origin = stored.grid.origin
        stride = stored.grid.stride_l0
        place = stored.grid.lattice()  # (N, 2) column, row
        reach = _reach(stored)
        rows, columns = lattice_shape(stored)
        drawn = np.stack([_spread(values, place, reach, (rows, columns)) for values in layers.values()])
        nothing = np.isnan(drawn[0])
        unread = _covered(stored.unread, place, reach, (rows, columns)) & nothing
        strange = _covered(untaught, place, reach, (rows, columns)) & ~nothing if untaught is not None else np.zeros_like(nothing)
        return cls(tuple(layers), drawn, unread, strange, (float(origin[0]), float(origin[1])), stride, stored.mpp, outside)

    @classmethod
    def from_layers(cls, stored: SlideFeatures, names: Sequence[str], layers: NDArray[np.float32], outside: str = "") -> Heatmap:
        """As it was written: layers (L, rows, columns), "unread" among them. What a taught model did not know is not among them."""
        known = dict(zip(names, layers, strict=True))
        unread = known.pop("unread") > 0
        x, y = stored.grid.origin
        values = np.stack(list(known.values()))
        taught = np.zeros_like(unread)
        return cls(tuple(known), values, unread, taught, (float(x), float(y)), stored.grid.stride_l0, stored.mpp, outside)

    def plot(self, layer: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw a layer with matplotlib, in millimetres of the slide.

        Parameters
        ----------
        layer : by name; None for the first, the scores
        ax : to draw on; None for a new figure

        Raises
        ------
        SettingsError : there is no such layer

        Examples
        --------
        >>> axes = pathovit.load_heatmap(out, "one").plot()
        >>> axes.get_xlabel()
        'mm'
        """
        from pathovit.show.canvas import draw_map

        name = layer or self.names[0]
        if name not in self.names:
            raise SettingsError(f"There is no layer {name!r}. Use {', '.join(map(repr, self.names))}.")
        values = self.layers[self.names.index(name)]
        (left, top), (width, height) = np.asarray(self.origin) * self.mpp / 1000, np.asarray(self.cell_um) / 1000
        rows, columns = values.shape
        extent = (left, left + columns * width, top + rows * height, top)
        high = 1.0 if name.startswith(SCORE) else None
        return draw_map(values, extent, name, high, ax, self.outside if name.startswith(SCORE) else "")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        values = self.layers[0]
        high = 1.0 if self.names[0].startswith(SCORE) else float(np.nanmax(values, initial=0)) or 1.0
        grey = np.where(np.isfinite(values), 255 * (1 - np.nan_to_num(values / high).clip(0, 1)), 255).astype(np.uint8)
        times = max(1, 240 // max(grey.shape))
        shown = Image.fromarray(grey).resize((grey.shape[1] * times, grey.shape[0] * times), Image.Resampling.NEAREST)
        read = np.isfinite(values)
        rows = {
            "layers": ", ".join(self.names),
            "cells": f"{values.shape[1]:,} x {values.shape[0]:,} of {self.cell_um[0]:.4g} µm",
            "shown": f"{self.names[0]}, dark: {high:.3g}",
            "highest": f"{np.nanmax(values, initial=0):.3f}",
            "read": f"{read.sum():,} cells; {self.unread.sum():,} could not be",
            "": f"{self.outside}. {RESEARCH_USE}" if self.outside else RESEARCH_USE,
        }
        return as_card(rows, shown)

    @property
    def cell_um(self) -> XY:
        return self.cell_l0[0] * self.mpp[0], self.cell_l0[1] * self.mpp[1]


def lattice_shape(stored: SlideFeatures) -> tuple[int, int]:
    """Rows and columns of the map: they cover the scanned part of the slide, and all tiles."""
    bounds, place, reach = stored.attributes.bounds, stored.grid.lattice(), _reach(stored)
    columns, rows = (
        max(1, int(np.ceil(side / stride - 1e-9)), int(place[:, axis].max()) + reach[axis])
        for axis, (side, stride) in enumerate(zip((bounds.width, bounds.height), stored.grid.stride_l0, strict=True))
    )
    return rows, columns


def values_of_tiles(stored: SlideFeatures, layer: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) what a layer (rows, columns) shows of every tile that was read: the mean of its cells, which is the tile's own value where tiles do not overlap."""
    place, reach = stored.grid.lattice(), _reach(stored)
    under = [layer[place[:, 1] + dy, place[:, 0] + dx] for dy in range(reach[1]) for dx in range(reach[0])]
    return np.where(stored.ok, np.mean(under, 0, np.float64), np.nan).astype(np.float32)


def _reach(stored: SlideFeatures) -> list[int]:
    """Cells under a tile, across and down."""
    return [max(1, round(t / s)) for t, s in zip(stored.tile_l0, stored.grid.stride_l0, strict=True)]


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
