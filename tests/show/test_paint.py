"""Painting: colour where something was found, nothing elsewhere, and light and dark as they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pathovit.show.heatmap import Heatmap
from pathovit.show.paint import COLOURS, Layer, legend_colour, paint
from pathovit.show.views import View

ROWS, COLUMNS, CELL = 6, 8, 50.0
TISSUE, NUCLEUS, GLASS = (200, 130, 190), (90, 60, 130), (243, 243, 243)


def heatmap() -> Heatmap:
    nothing = np.zeros((ROWS, COLUMNS), bool)
    return Heatmap(("a",), np.zeros((1, ROWS, COLUMNS), np.float32), nothing, nothing, (100.0, 200.0), (CELL, CELL), (0.5, 0.5))


def view() -> View:
    """Stripes of tissue, nuclei and glass over all cells, and a margin around them; 5 level-0 pixels to one of the picture."""
    picture = np.empty((80, 100, 3), np.uint8)
    picture[:] = TISSUE
    picture[::3] = NUCLEUS
    picture[::7] = GLASS
    return View(picture, (0.0, 500.0, 600.0, 200.0))


def lab(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def scores(*hot: tuple[int, int, float]) -> np.ndarray:
    found = np.full((ROWS, COLUMNS), 0.49, np.float32)
    for row, column, score in hot:
        found[row, column] = score
    found[0, 0] = np.nan
    return found


def test_nothing_is_painted_below_the_threshold_nor_beside_the_cells() -> None:
    there = view()
    drawn = paint(there, heatmap(), Layer.of_scores("tumour", scores((2, 3, 0.9)), 0.5))
    changed = (drawn != there.picture).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max()) == (20, 29)  # 2 x 50 level-0 pixels below the top, 5 to a pixel
    assert (columns.min(), columns.max()) == (50, 59)  # (100 + 3 x 50) / 5
    assert (paint(there, heatmap(), Layer.of_scores("tumour", scores(), 0.5)) == there.picture).all()


def test_light_and_dark_stay_and_colour_grows_with_the_score() -> None:
    there, chroma = view(), []
    for score in (0.5, 0.75, 1.0):
        drawn = paint(there, heatmap(), Layer.of_scores("tumour", scores((2, 3, score)), 0.5))
        before, after = lab(there.picture)[20:30, 50:60], lab(drawn)[20:30, 50:60]
        tissue = before[..., 0] < 85  # full gold as light as glass cannot be shown
        assert np.abs(after[..., 0] - before[..., 0])[tissue].max() < 4
        chroma.append(after[..., 2][tissue].mean())
    assert before[..., 2].mean() < 0 < chroma[0] < chroma[1] < chroma[2]  # from the blue side to the yellow one, ever more


def test_what_should_not_be_relied_on_has_no_colour() -> None:
    drawn = paint(view(), heatmap(), Layer.of_scores("tumour", scores((2, 3, 1.0)), 0.5, muted=True))
    here = lab(drawn)[20:30, 50:60]
    assert np.hypot(here[..., 1], here[..., 2]).max() < 9


def test_kinds_have_colours_of_their_own_and_the_legend_shows_them_as_on_tissue() -> None:
    which = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % 3
    layer = Layer(("a", "b", "c"), which, np.ones((ROWS, COLUMNS), np.float32))
    plain = View(np.full((80, 100, 3), 200, np.uint8), view().extent)
    drawn = lab(paint(plain, heatmap(), layer))
    hues = [np.arctan2(*drawn[5, 25 + 10 * column, :0:-1]) for column in range(3)]
    assert min(abs(a - b) for i, a in enumerate(hues) for b in hues[:i]) > 0.5
    for place in range(len(COLOURS)):
        shown = lab(np.array([[legend_colour(layer, place, 1.0)]]) * 255)[0, 0]
        assert shown[1:] == pytest.approx(np.array(COLOURS[place]) * 0.85 + np.array([30, -14]) * 0.15, abs=6)


def test_a_threshold_of_one_is_a_threshold() -> None:
    layer = Layer.of_scores("tumour", scores((1, 1, 1.0), (1, 2, 0.999)), 1.0)
    assert np.argwhere(layer.cells).tolist() == [[1, 1]]
