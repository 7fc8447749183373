"""The map as it travels: every value a byte, at its own cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import made_features

from pathovit.outputs.folder import SlideFolder
from pathovit.review.corrections import cell_index
from pathovit.review.heat import Heat, Layer, read_heat
from pathovit.show.heatmap import Heatmap
from pathovit.show.ome_tiff import write_ome_tiff

PLACES = np.array([[1, 0], [2, 0], [0, 1], [3, 2]])  # column, row
BOX = {"level0_size": (500, 400)}


@pytest.fixture
def drawn(tmp_path: Path) -> SlideFolder:
    stored = made_features(PLACES * 96, verdict=np.array([0, 0, 0, 2], np.uint8))
    nan = np.float32("nan")
    layers = {
        "score: tumour": np.array([0.0, 0.5, 1.0, nan], np.float32),
        "attention": np.array([0.1, 0.2, 0.05, nan], np.float32),
        "novelty": np.array([0.5, 1.0, 9.0, nan], np.float32),
    }
    write_ome_tiff(tmp_path / "heatmap.ome.tiff", Heatmap.from_tiles(stored, layers))
    return SlideFolder(tmp_path)


def test_values_come_back_at_their_cells(drawn: SlideFolder) -> None:
    heat = read_heat(drawn, made_features(PLACES * 96, verdict=np.array([0, 0, 0, 2], np.uint8)))
    assert [(layer.name, layer.kind) for layer in heat.layers] == [
        ("tumour", "score"), ("attention", "attention"), ("novelty", "novelty"), ("unread", "unread"),
    ]  # fmt: skip
    score, attention, novelty, unread = heat.layers
    assert score.cells.dtype == np.uint8
    assert [int(score.cells[row, column]) for column, row in PLACES] == [1, 128, 255, 0]
    assert (score.cells > 0).sum() == 3
    assert attention.high == pytest.approx(0.2)
    assert attention.at(0, 2) == {"value": 0.2, "percentile": 67}
    assert novelty.at(1, 0) == {"value": 3.0, "percentile": 67}  # more than can be told apart
    assert score.at(2, 3) is None
    assert unread.cells[2, 3] == 255
    assert unread.cells.sum() == 255


def test_half_is_half_whichever_way_it_is_told(tmp_path: Path) -> None:
    """The page draws from byte 128 on, where the threshold is 0.5: exactly those at or above it."""
    values = np.array([0.4999, 0.5, 0.5001, 0.0], np.float32)
    stored = made_features(PLACES * 96)
    write_ome_tiff(tmp_path / "heatmap.ome.tiff", Heatmap.from_tiles(stored, {"score: tumour": values}))
    (score, _) = read_heat(SlideFolder(tmp_path), stored).layers
    assert [int(score.cells[row, column]) >= 128 for column, row in PLACES] == [False, True, True, False]


def test_without_an_answer_there_is_a_lattice_of_the_same_size(tmp_path: Path, drawn: SlideFolder) -> None:
    stored = made_features(PLACES * 96, verdict=np.array([0, 0, 0, 2], np.uint8))
    bare = read_heat(SlideFolder(tmp_path / "nothing"), stored)
    assert bare.shape == read_heat(drawn, stored).shape
    assert [layer.kind for layer in bare.layers] == ["unread"]


def test_tiles_lie_row_by_row_as_the_page_counts_them(tmp_path: Path) -> None:
    stored = made_features(PLACES * 96)
    assert list(cell_index(stored)) == sorted(cell_index(stored))


def test_a_cell_of_a_tile_lies_around_its_centre() -> None:
    layers = (Layer("unread", "unread", 0, 1, np.zeros((2, 2), np.uint8)),)
    assert Heat(layers, (100.0, 50.0), (96.0, 96.0), (96.0, 96.0)).tile_origin == (100.0, 50.0)
    assert Heat(layers, (100.0, 50.0), (48.0, 48.0), (96.0, 96.0)).tile_origin == (124.0, 74.0), "as its square in QuPath"
