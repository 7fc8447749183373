"""Alterations: the same tissue as another laboratory or scanner would have shown it.

Stains are told apart in optical density, by the slide's own two directions; each is then made weaker or stronger, and what is
neither stays. How weak and how strong is what was measured on real slides of many laboratories: see STRENGTH.
Source of the stain directions: Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
Source of the protocol: "A protocol for evaluating robustness to H&E staining variation", arXiv 2603.12886.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pathovit.slides.readers import RGB

Floats = NDArray[np.float32]
# 5 % and 95 % of 24 patients of the Pathology Atlas: the amount that 95 % of a slide's stained pixels stay below (docs/benchmarks.md).
STRENGTH = {"haematoxylin": (0.55, 1.58), "eosin": (0.46, 1.34)}
MOST_CHANGE = 2.5  # a slide far from either end is not moved further than by this factor
USUAL = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)  # haematoxylin, eosin, where a slide shows only one
FAINT = 0.15  # optical density below which a pixel is glass
EDGE = 1.0  # per cent of pixels at either end of the angles that are left out
LEAST_PIXELS = 500
SAMPLE_TILES, SAMPLE_STEP = 60, 4
Change = Callable[[RGB], RGB]  # of tiles (N, side, side, 3)


@dataclass(frozen=True)
class Alteration:
    """One way in which a slide could have looked; pixels are changed, or where tiles lie."""

    name: str
    family: str  # stain, scanner, sharpness, JPEG, resolution, grid
    change: Change | None = None
    mpp_factor: float = 1.0  # of the pixel size that the slide is said to have
    shift: float = 0.0  # of a tile's side, to the right and down


def optical_density(rgb: RGB) -> Floats:
    table = -np.log(np.maximum(np.arange(256, dtype=np.float32), 1) / 255)
    return np.asarray(table[rgb], np.float32)


def stain_directions(tiles: RGB) -> Floats:
    """(2, 3) directions of haematoxylin and eosin in optical density, of length 1, from tiles (N, side, side, 3)."""
    sample = tiles[:: max(1, len(tiles) // SAMPLE_TILES), ::SAMPLE_STEP, ::SAMPLE_STEP].reshape(-1, 3)
    density = optical_density(sample)
    density = density[density.min(1) > FAINT]
    if len(density) < LEAST_PIXELS:
        return USUAL
    plane = np.linalg.eigh(np.cov(density.T))[1][:, :0:-1]  # (3, 2), the widest first
    plane *= np.where(plane.sum(0) < 0, -1, 1)
    angle = np.arctan2(*(density @ plane).T[::-1])
    ends = [plane @ np.array([np.cos(a), np.sin(a)]) for a in np.percentile(angle, [EDGE, 100 - EDGE])]
    ends.sort(key=lambda direction: -direction[0])  # haematoxylin takes more of the red
    found = np.abs(np.asarray(ends, np.float32))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def amounts(rgb: RGB, directions: Floats) -> Floats:
    """(..., 2) of haematoxylin and eosin in every pixel."""
    return np.asarray(optical_density(rgb) @ np.linalg.pinv(directions).astype(np.float32))


def stain_strengths(tiles: RGB, directions: Floats) -> Floats:
    """(2,) amounts of haematoxylin and eosin that 95 % of the stained pixels stay below."""
    sample = tiles[:: max(1, len(tiles) // SAMPLE_TILES), ::SAMPLE_STEP, ::SAMPLE_STEP].reshape(-1, 3)
    stained = sample[optical_density(sample).mean(1) > FAINT]
    if len(stained) < LEAST_PIXELS:
        return np.ones(2, np.float32)
    return np.asarray(np.percentile(amounts(stained, directions), 95, axis=0), np.float32)


def restained(tiles: RGB, directions: Floats, haematoxylin: float, eosin: float) -> RGB:
    """Tiles with their stains weaker or stronger by these factors."""
    change = np.linalg.pinv(directions) @ np.diag([haematoxylin - 1, eosin - 1]) @ directions
    density = optical_density(tiles) @ (np.eye(3) + change).astype(np.float32)
    return np.asarray((255 * np.exp(-density)).clip(0, 255).round(), np.uint8)


def alterations(tiles: RGB) -> list[Alteration]:
    """All of them, for a slide of these tiles (N, side, side, 3)."""
    directions = stain_directions(tiles)
    strengths = stain_strengths(tiles, directions)
    ends = np.array([STRENGTH["haematoxylin"], STRENGTH["eosin"]]) / strengths[:, None]
    (h_low, h_high), (e_low, e_high) = ends.clip(1 / MOST_CHANGE, MOST_CHANGE)

    def stain(haematoxylin: float, eosin: float) -> Change:
        return lambda tiles: restained(tiles, directions, haematoxylin, eosin)

    return [
        Alteration("haematoxylin weak", "stain", stain(h_low, 1)),
        Alteration("haematoxylin strong", "stain", stain(h_high, 1)),
        Alteration("eosin weak", "stain", stain(1, e_low)),
        Alteration("eosin strong", "stain", stain(1, e_high)),
        Alteration("both weak", "stain", stain(h_low, e_low)),
        Alteration("both strong", "stain", stain(h_high, e_high)),
        Alteration("warmer", "scanner", lambda tiles: toned(tiles, (1.0, 1.0, 0.94))),
        Alteration("cooler", "scanner", lambda tiles: toned(tiles, (0.94, 1.0, 1.0))),
        Alteration("darker", "scanner", lambda tiles: toned(tiles, gamma=1.15)),
        Alteration("lighter", "scanner", lambda tiles: toned(tiles, gamma=0.87)),
        Alteration("sharpened", "sharpness", lambda tiles: each(tiles, sharpened)),
        Alteration("a little out of focus", "sharpness", lambda tiles: each(tiles, lambda t: cv2.GaussianBlur(t, (0, 0), 0.8))),
        Alteration("JPEG of quality 40", "JPEG", lambda tiles: each(tiles, lambda t: jpeg(t, 40))),
        Alteration("5 % finer", "resolution", mpp_factor=1 / 1.05),
        Alteration("5 % coarser", "resolution", mpp_factor=1.05),
        Alteration("half a tile aside", "grid", shift=0.5),
    ]


def toned(tiles: RGB, gain: tuple[float, float, float] = (1.0, 1.0, 1.0), gamma: float = 1.0) -> RGB:
    """Another white balance, or another tone curve."""
    level = (np.arange(256) / 255.0) ** gamma
    table = (255 * level[:, None] * np.asarray(gain)).clip(0, 255).round().astype(np.uint8)
    return np.stack([table[tiles[..., channel], channel] for channel in range(3)], -1)


def each(tiles: RGB, change: Callable[[RGB], NDArray[np.generic]]) -> RGB:
    return np.stack([np.asarray(change(tile), np.uint8) for tile in tiles])


def sharpened(tile: RGB) -> NDArray[np.generic]:
    soft = cv2.GaussianBlur(tile, (0, 0), 1.0)
    return np.asarray(cv2.addWeighted(tile, 2.0, soft, -1.0, 0))


def jpeg(tile: RGB, quality: int) -> NDArray[np.generic]:
    packed = cv2.imencode(".jpg", tile[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]  # OpenCV has blue first
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1]


NAMES = tuple(way.name for way in alterations(np.full((1, 8, 8, 3), 255, np.uint8)))
FAMILIES: Mapping[str, str] = {
    "stain": "staining",
    "scanner": "scanner colour",
    "sharpness": "sharpness",
    "JPEG": "JPEG",
    "resolution": "resolution",
    "grid": "place of the tiles",
}
