"""Alterations: the same tissue, stained and scanned otherwise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathovit.slides.alter import (
    FAMILIES,
    STRENGTH,
    USUAL,
    alterations,
    amounts,
    jpeg,
    restained,
    stain_directions,
    stain_strengths,
)


def stained(haematoxylin: np.ndarray, eosin: np.ndarray, directions: np.ndarray = USUAL) -> np.ndarray:
    """Tiles (N, side, side, 3) with known amounts of both."""
    density = haematoxylin[..., None] * directions[0] + eosin[..., None] * directions[1]
    picture: np.ndarray = (255 * np.exp(-density)).round().clip(0, 255).astype(np.uint8)
    return picture


@pytest.fixture
def mixture() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    nuclei = chance.random((4, 64, 64)) < 0.3
    return np.where(nuclei, chance.uniform(0.6, 1.2, nuclei.shape), 0.02), np.where(
        nuclei, 0.05, chance.uniform(0.2, 0.9, nuclei.shape)
    )


def test_directions_of_both_stains_are_found(mixture: tuple[np.ndarray, np.ndarray]) -> None:
    other = np.array([[0.55, 0.76, 0.35], [0.15, 0.95, 0.27]], np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    for directions in (USUAL / np.linalg.norm(USUAL, axis=1, keepdims=True), other):
        found = stain_directions(stained(*mixture, directions))
        assert (found * directions).sum(1).min() > 0.975


def test_one_stain_is_changed_and_the_other_is_not(mixture: tuple[np.ndarray, np.ndarray]) -> None:
    picture = stained(*mixture)
    before = amounts(picture, USUAL)
    after = amounts(restained(picture, USUAL, 1.3, 1.0), USUAL)
    strong = before[..., 0] > 0.5
    assert np.median(after[strong, 0] / before[strong, 0]) == pytest.approx(1.3, abs=0.03)
    assert np.abs(after[..., 1] - before[..., 1]).max() < 0.06
    assert np.array_equal(restained(picture, USUAL, 1.0, 1.0), picture)


def test_a_slide_without_stain_has_the_usual_directions() -> None:
    assert np.array_equal(stain_directions(np.full((2, 64, 64, 3), 250, np.uint8)), USUAL)


def test_every_alteration_changes_something_and_keeps_the_shape(shared: Path) -> None:
    picture = np.asarray(Image.open(shared / "stain" / "source.png").convert("RGB"))[:192, :192]
    tiles = np.stack([picture[:96, :96], picture[96:, 96:]])
    ways = alterations(tiles)
    assert {way.family for way in ways} == {*FAMILIES}
    assert len({way.name for way in ways}) == len(ways)
    for way in ways:
        if way.change is None:
            assert way.mpp_factor != 1 or way.shift
            continue
        changed = way.change(tiles)
        assert changed.shape == tiles.shape
        assert changed.dtype == np.uint8
        moved = np.abs(changed.astype(int) - tiles).mean()
        assert 0.5 < moved < 60, way.name


def test_stains_are_brought_to_the_ends_of_what_laboratories_do(mixture: tuple[np.ndarray, np.ndarray]) -> None:
    tiles = stained(*mixture)
    directions = stain_directions(tiles)
    for way in alterations(tiles)[:4]:
        assert way.change is not None
        place = 0 if way.name.startswith("haematoxylin") else 1
        low, high = STRENGTH[("haematoxylin", "eosin")[place]]
        found = stain_strengths(way.change(tiles), directions)[place]
        assert found == pytest.approx(low if way.name.endswith("weak") else high, rel=0.08), way.name


def test_jpeg_is_what_scanners_write() -> None:
    """OpenCV takes blue for the first channel: red would be kept as coarsely as blue is."""
    chance = np.random.default_rng(0)
    pink = np.clip(np.array([200, 90, 150]) + chance.normal(0, 30, (64, 64, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pink).save(buffer, "JPEG", quality=40, subsampling=2)
    true = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(np.asarray(jpeg(pink, 40)).astype(int) - true).mean() < 1
