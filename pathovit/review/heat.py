"""The map of a slide as it travels to the browser: each layer whole, a byte for every cell of the lattice. 0 is "nothing read here"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import SlideFolder
from pathovit.show.heatmap import SCORE, lattice_shape
from pathovit.show.ome_tiff import read_ome_tiff

STEPS = 254  # bytes 1 to 255 are steps from the lowest to the highest, each of the value it begins with: 0.5 is one of them
MOST_NOVELTY = 3.0


@dataclass(frozen=True)
class Layer:
    """A layer, its numbers, and what byte 1 and byte 255 stand for."""

    name: str
    kind: str  # score, attention, novelty or unread
    low: float
    high: float
    cells: NDArray[np.uint8]  # (rows, columns)

    def at(self, row: int, column: int) -> dict[str, float] | None:
        """The value of a cell, and of how many per cent of the slide's tiles it is above; None where there is none."""
        byte = int(self.cells[row, column])
        if not byte or self.kind == "unread":
            return None
        known = self.cells[self.cells > 0]
        value = self.low + (byte - 1) / STEPS * (self.high - self.low)
        return {"value": float(f"{value:.4g}"), "percentile": round(100 * float((known < byte).mean()))}


@dataclass(frozen=True)
class Heat:
    """All layers of a slide, and where the lattice lies."""

    layers: tuple[Layer, ...]
    origin: tuple[float, float]  # level-0 pixels
    cell_l0: tuple[float, float]
    tile_l0: tuple[float, float]

    @property
    def tile_origin(self) -> tuple[float, float]:
        """Where the lattice lies for tiles: each is a cell around its own centre. Where they overlap, that is not where scores are drawn."""
        x, y = (at + (tile - cell) / 2 for at, tile, cell in zip(self.origin, self.tile_l0, self.cell_l0, strict=True))
        return x, y

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.layers[0].cells.shape
        return rows, columns


def read_heat(folder: SlideFolder, stored: SlideFeatures) -> Heat:
    """Raises SlideError where the heatmap is missing or damaged. Without an answer there is a layer of what was read alone."""
    grid = stored.grid
    place = (float(grid.origin[0]), float(grid.origin[1])), grid.stride_l0, stored.tile_l0
    if not (folder.path / "heatmap.ome.tiff").is_file():
        at = grid.lattice()
        cells = np.zeros(lattice_shape(stored), np.uint8)
        cells[at[:, 1], at[:, 0]] = np.where(stored.unread, 255, 1)
        return Heat((Layer("unread", "unread", 0, 1, cells),), *place)
    names, values = read_ome_tiff(folder.path / "heatmap.ome.tiff")
    return Heat(tuple(_layer(name, layer) for name, layer in zip(names, values, strict=True)), *place)


def _layer(name: str, values: NDArray[np.float32]) -> Layer:
    if name.startswith(SCORE):
        return Layer(name.removeprefix(SCORE), "score", 0, 1, _bytes(values, 0, 1))
    if name == "attention":
        high = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
        return Layer(name, name, 0, high, _bytes(values, 0, high))
    if name == "novelty":
        return Layer(name, name, 0, MOST_NOVELTY, _bytes(values, 0, MOST_NOVELTY))
    return Layer(name, "unread", 0, 1, np.where(values > 0, 255, 0).astype(np.uint8))


def _bytes(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.where(np.isfinite(values), 1 + np.floor(np.nan_to_num(share) * STEPS + 1e-5), 0).astype(np.uint8)
