"""Pen ink on a slide, told from dye by the order of its three densities, and by lying on glass."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pathovit.slides.glass import optical_density
from pathovit.slides.masks import Mask, components, grown, opened, without_small
from pathovit.slides.readers import RGB

PEN_MPP = 16.0  # pen marks are looked for at this resolution
ON_GLASS = 0.3  # share of the surroundings of ink that is glass
SURE_SHARE = 0.2  # of a stroke of ink that has a colour that no tissue has
RING_UM = 120.0  # around ink, where glass is looked for


def find_pen(rgb: RGB, glass: NDArray[np.float32], um: float, empty: Mask) -> Mask:
    """Ink on the glass, bool (H, W). Its densities come in an order that dyes do not have, and glass (`empty`) is around it.

    Haematoxylin and eosin absorb green most; DAB absorbs blue most and red a good half of that. Blue ink absorbs red
    most, green ink red and blue, red ink green and blue almost alike and little red; black ink all alike.
    """
    shrink = max(1, round(PEN_MPP / um))
    size = max(1, rgb.shape[1] // shrink), max(1, rgb.shape[0] // shrink)
    density = optical_density(np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8), glass)
    um *= shrink
    red, green, blue = cv2.split(cv2.GaussianBlur(density, (0, 0), max(0.5, 12 / um), borderType=cv2.BORDER_REFLECT))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    blue_ink = (red > 0.45) & (red > 1.3 * green) & (green > 0.9 * blue)
    dark_blue_ink = (red > 0.8) & (red > 0.85 * green) & (blue < 0.75 * red)
    green_ink = (red > 0.35) & (red > 1.25 * green) & (blue > 1.02 * green)
    red_ink = (green > 0.7) & (blue > 0.72 * green) & (blue < 1.1 * green) & (red < 0.45 * green)
    span = highest - lowest
    black_ink = (lowest > 1.0) & (span < 0.35 * highest) | (lowest > 0.8) & (span < 0.25 * highest)
    sure = blue_ink | green_ink | black_ink
    ink = sure | dark_blue_ink | red_ink | (lowest > 1.0)  # nuclei, blood and folds have the colours of these, too
    ink = opened(ink, 1.0) if min(ink.shape) > 3 else ink
    ink = without_small(ink, 20_000 / um**2)
    if ink.any():
        small = cv2.resize(empty.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).view(bool)
        ink = _sure_or_on_glass(ink, sure, small, um)
    if ink.any():
        # Ink fades out at its edge: grow into whatever is still ink-coloured, then a little beyond.
        fading = (red > 0.12) & (red > 1.12 * green) | (lowest > 0.75) | ink
        labels, _ = components(fading)
        inked = np.zeros(labels.max() + 1, bool)
        inked[labels[ink]] = True
        ink = grown(inked[labels], 30 / um)
    return np.asarray(cv2.resize(ink.view(np.uint8), rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST), bool)


def _sure_or_on_glass(ink: Mask, sure: Mask, empty: Mask, um: float) -> Mask:
    """Those parts of the ink that hold a colour that tissue never has, or that glass surrounds: blood has tissue around it."""
    labels, boxes = components(ink)
    kept = np.zeros(len(boxes), bool)
    reach = max(2, round(RING_UM / um))
    for label in range(1, len(boxes)):
        left, top, width, height = boxes[label, :4]
        rows, columns = slice(max(0, top - reach), top + height + reach), slice(max(0, left - reach), left + width + reach)
        mine = labels[rows, columns] == label
        ring = grown(mine, reach) & ~grown(mine, reach / 2) & ~ink[rows, columns]
        on_glass = not ring.any() or bool(empty[rows, columns][ring].mean() >= ON_GLASS)
        kept[label] = on_glass or bool(sure[rows, columns][mine].mean() >= SURE_SHARE)
    return np.asarray(kept[labels])
