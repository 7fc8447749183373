"""Painting: where something was found, as colour over the slide; light and dark stay as they are, so that nuclei remain to be seen.

Nothing is painted below the threshold. From there one ramp goes from pale to full gold, which is the opposite of the pink
and blue of H&E also to eyes that confuse red and green; an answer that should not be relied on has no colour at all.
"""

from __future__ import annotations

import cmath
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pathovit.show.heatmap import Heatmap
from pathovit.show.views import View
from pathovit.slides.readers import RGB

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
Cell = TypeVar("Cell", np.float32, np.bool_)
# a and b of CIELAB at full strength; how much of the slide's own colour gives way at the threshold, and at full strength
GOLD, BLUE, TEAL, VERMILION, OLIVE, INDIGO, GREY = (22, 75), (8, -55), (-38, -8), (55, 45), (-18, 50), (40, -65), (0, 0)
COLOURS = (GOLD, BLUE, TEAL, VERMILION, OLIVE, INDIGO, (62, -10), (-20, -35), (-52, 42), (20, 32), (28, -28), (-28, 14))
WEIGHTS = 0.45, 0.85
PALER, TURN = 0.8, 0.26  # of more classes than there are colours: times as strong, and by how much (radians), each dozen
PALE = 0.6  # of full colour, at the threshold
# Over what nothing is known of, in pixels of the view
STRIPES = np.add.outer(np.arange(8), np.arange(8)) % 8 < 2
DOTS = np.zeros((8, 8), bool)
DOTS[1:3, 1:3] = DOTS[5:7, 5:7] = True
MARK = 40, 40, 40
TISSUE = 65.0, 30.0, -14.0  # L, a and b of a common stain: legends show colours as they look on it


@dataclass(frozen=True)
class Layer:
    """What is painted, cell by cell."""

    names: tuple[str, ...]  # of the colours
    which: Places  # (rows, columns) of the colours
    strength: Floats  # (rows, columns) 0 to 1; NaN where nothing is painted
    floor: float | None = None  # the score at strength 0, where strength is a score; else colours are just kinds
    muted: bool = False  # not to be relied on: no colour

    @classmethod
    def of_scores(cls, name: str, scores: Floats, floor: float, muted: bool = False) -> Layer:
        """Scores (rows, columns) at or above `floor`."""
        strength = np.where(scores >= floor, (scores - floor) / max(1 - floor, 1e-6), np.nan).astype(np.float32)
        return cls((name,), np.zeros(scores.shape, np.int64), strength, floor, muted)

    @property
    def cells(self) -> NDArray[np.bool_]:
        """(rows, columns) that are painted."""
        return np.asarray(np.isfinite(self.strength))

    def colour(self, which: int) -> tuple[int, int]:
        """Beyond the dozen, the same ones turned and paler: no two classes have one colour."""
        if self.muted:
            return GREY
        turn, place = divmod(which, len(COLOURS))
        a, b = COLOURS[place]
        turned = complex(a, b) * cmath.rect(PALER**turn, TURN * turn)
        return (a, b) if turn == 0 else (round(turned.real), round(turned.imag))


def paint(view: View, heatmap: Heatmap, layer: Layer) -> RGB:
    """The view, painted; striped where tissue could not be read, dotted where it is unlike all that was taught."""
    under = _cells_under(view, heatmap)
    drawn = view.picture.copy()
    if layer.cells.any():
        strength = np.nan_to_num(layer.strength)
        colours = np.array([layer.colour(place) for place in range(len(layer.names))], np.float32)
        weight, aim = _pull(colours[layer.which], strength)
        painted = under.pixels(layer.cells)
        gives_way, stays = under.pixels(weight), under.pixels(1 - weight)
        light, *hues = cv2.split(cv2.cvtColor(drawn, cv2.COLOR_RGB2LAB))
        for place, hue in enumerate(hues):  # whole numbers, of which 128 is grey
            aimed = cv2.multiply(under.pixels(aim[..., place] + 128), gives_way)
            hues[place] = cv2.add(cv2.multiply(hue, stays, dtype=cv2.CV_32F), aimed, dtype=cv2.CV_8U)
        tinted = cv2.cvtColor(cv2.merge([light, *hues]), cv2.COLOR_LAB2RGB)
        cv2.copyTo(tinted, painted.view(np.uint8), drawn)
    for cells, pattern in ((heatmap.unread, STRIPES), (heatmap.untaught, DOTS)):
        if cells.any():
            shape = [-(-length // len(pattern)) for length in drawn.shape[:2]]
            marked = np.tile(pattern, shape)[: drawn.shape[0], : drawn.shape[1]]
            drawn[under.pixels(cells) & marked] = MARK
    return drawn


def legend_colour(layer: Layer, which: int, strength: float) -> tuple[float, float, float]:
    """How a colour looks on tissue: red, green and blue, 0 to 1."""
    lab = _tint(np.array([TISSUE], np.float32), np.array([layer.colour(which)], np.float32), np.array([strength], np.float32))
    red, green, blue = cv2.cvtColor(lab[None], cv2.COLOR_LAB2RGB)[0, 0].clip(0, 1)
    return float(red), float(green), float(blue)


def _tint(lab: Floats, colour: Floats, strength: Floats) -> Floats:
    """(n, 3) of CIELAB with another hue, and the light that they had."""
    weight, aim = _pull(colour, strength)
    return np.concatenate([lab[:, :1], lab[:, 1:] + weight[:, None] * (aim - lab[:, 1:])], 1)


def _pull(colour: Floats, strength: Floats) -> tuple[Floats, Floats]:
    """How much of the slide's own hue gives way (...), and to which one (..., 2)."""
    return WEIGHTS[0] + (WEIGHTS[1] - WEIGHTS[0]) * strength, colour * (PALE + (1 - PALE) * strength)[..., None]


@dataclass(frozen=True)
class Under:
    """Which cell lies under each row and column of pixels; -1 where none does."""

    rows: Places  # (height,)
    columns: Places  # (width,)

    def pixels(self, cells: NDArray[Cell]) -> NDArray[Cell]:
        """What cells (rows, columns) hold, pixel by pixel (height, width); 0 where none lies."""
        framed = np.pad(cells, ((0, 1), (0, 1)))  # so that -1 is none
        return np.ascontiguousarray(framed[:, self.columns][self.rows])


def _cells_under(view: View, heatmap: Heatmap) -> Under:
    height, width = view.picture.shape[:2]
    left, right, bottom, top = view.extent
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = top + (np.arange(height) + 0.5) * (bottom - top) / height
    column = np.floor((x - heatmap.origin[0]) / heatmap.cell_l0[0]).astype(np.int64)
    row = np.floor((y - heatmap.origin[1]) / heatmap.cell_l0[1]).astype(np.int64)
    rows, columns = heatmap.layers.shape[1:]
    return Under(np.where((row >= 0) & (row < rows), row, -1), np.where((column >= 0) & (column < columns), column, -1))
