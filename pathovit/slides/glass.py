"""The glass of a slide: its colour, and what was filled in around the scan.

Glass is what has no texture but the noise of the scanner, and lets most light through; an area of one exact colour was
never scanned, whatever colour that is.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pathovit.slides.masks import Mask, components
from pathovit.slides.readers import RGB

Value = TypeVar("Value", np.uint8, np.int16)
SAMPLE_PX = 1_000_000  # pixels that tell the colour and the noise of the glass
WINDOW_PX = 5  # side of the window in which texture is looked for
SMOOTH = 8  # grey levels that the noise of glass spans in that window, at most
GLASS_SHARE = 0.003  # of the scanned pixels that must look like glass before it is believed
BRIGHTER_SHARE = 0.03  # of the pixels that may be brighter than the glass
FILLED_UM2, FILLED_EDGE_UM2 = 1_000_000.0, 20_000.0  # area of one exact colour from which on it was filled in
LARGE_SHARE = 0.1  # a smooth area as large as this is glass even if its colour could be a stain
GREEN_TAKEN = 4  # grey levels that green lies below red and blue in pale tissue
NEUTRAL, BRIGHT = 28, 190  # usual glass: the spread of its channels at most, its lowest channel at least
DARKEST = 60  # nothing darker than this is believed to be glass
MOST_PEAKS = 8


def texture_of(rgb: RGB) -> NDArray[np.uint8]:
    """(H, W) grey levels between the brightest and the darkest pixel around, in the channel where they differ most."""
    window = np.ones((WINDOW_PX, WINDOW_PX), np.uint8)
    spans = [cv2.subtract(cv2.dilate(channel, window), cv2.erode(channel, window)) for channel in cv2.split(rgb)]
    return np.asarray(cv2.max(cv2.max(spans[0], spans[1]), spans[2]), np.uint8)


def filled_in(exact: Mask, um: float) -> Mask:
    """Large areas of one exact colour, of pixels around which there is no texture; smaller ones too, at the picture's edge.

    A block of a JPEG may be of one colour as well, where tissue is smooth: such spots are small.
    """
    labels, boxes = components(exact)
    at_edge = (boxes[:, :2] <= WINDOW_PX).any(1) | (boxes[:, :2] + boxes[:, 2:4] >= np.array(exact.shape[::-1]) - WINDOW_PX).any(
        1
    )
    large = boxes[:, 4] * um**2 > np.where(at_edge, FILLED_EDGE_UM2, FILLED_UM2)
    large[0] = False
    return cv2.dilate(large[labels].view(np.uint8), np.ones((WINDOW_PX, WINDOW_PX), np.uint8)).view(bool)


def unlike(rgb: RGB, glass: NDArray[np.float32]) -> Mask:
    """Pixels that have not the colour of the glass."""
    low, high = (np.clip(glass.astype(np.float64) + side * 2 * SMOOTH, 0, 255) for side in (-1, 1))
    return np.asarray(cv2.inRange(rgb, low, high) == 0)


def find_glass(rgb: RGB, scanned: Mask, texture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Colour (3,) of the empty glass, and what must be said of it.

    Glass is smooth, has noise, and hardly anything is brighter. Where nothing is like that, it is the most frequent bright
    and nearly grey colour; where there is none of it either, white is assumed.
    """
    step = max(1, round((scanned.size / SAMPLE_PX) ** 0.5))
    filled = cv2.dilate((texture == 0).view(np.uint8), np.ones((WINDOW_PX + 2, WINDOW_PX + 2), np.uint8)).view(bool)
    chosen = scanned[::step, ::step]
    pixels, span = rgb[::step, ::step][chosen], texture[::step, ::step][chosen]
    alive = ~filled[::step, ::step][chosen]  # not what was filled in, nor its edge
    seen, smooth = pixels[alive], pixels[alive & (span <= SMOOTH)]
    lowest, highest = extremes(pixels)
    spread = highest - lowest
    usual = pixels[(lowest >= BRIGHT) & (spread <= NEUTRAL)]
    has_usual = len(usual) >= GLASS_SHARE * max(len(pixels), 1)
    for glass, share in _peaks(smooth, max(len(seen), 1)):
        neutral = float(np.ptp(glass)) <= NEUTRAL
        # Haematoxylin and eosin take green most: where there is usual glass, too, such a colour is pale tissue.
        stain_like = float(glass[1]) < min(float(glass[0]), float(glass[2])) - GREEN_TAKEN
        if (stain_like and (has_usual or share < LARGE_SHARE)) or glass.min() < DARKEST:
            continue
        brighter = (extremes(seen.astype(np.int16) - glass.astype(np.int16))[1] > 2.5 * SMOOTH).mean()
        if brighter > BRIGHTER_SHARE:
            continue
        unusual = not neutral or glass.min() < BRIGHT
        said = f"unusual glass (colour {', '.join(f'{v:.0f}' for v in glass)}): tissue is judged against it"
        return glass, (said,) if unusual else ()
    if not has_usual:
        return np.array([243, 243, 243], np.float32), ("no clear glass was found: tissue is judged against white",)
    return _mode(usual), ()


def extremes(pixels: NDArray[Value]) -> tuple[NDArray[Value], NDArray[Value]]:
    """The lowest and the highest channel (n,) of pixels (n, 3); ten times as fast as along an axis of three."""
    red, green, blue = pixels.T
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _peaks(pixels: RGB, seen: int) -> list[tuple[NDArray[np.float32], float]]:
    """Colours (3,) that many of the pixels (n, 3) have, with their share of those seen; the brightest first."""
    found: list[tuple[NDArray[np.float32], float]] = []
    rest = pixels
    while len(rest) >= GLASS_SHARE * seen and len(found) < MOST_PEAKS:
        brightness = rest.astype(np.uint16).sum(-1)
        counts = smoothed(np.bincount(brightness, minlength=766), 4.5)
        near = np.abs(brightness.astype(np.int16) - int(counts.argmax())) <= 3 * SMOOTH
        if near.sum() < GLASS_SHARE * seen:
            break
        found.append((_mode(rest[near]), float(near.sum() / seen)))
        rest = rest[~near]
    return sorted(found, key=lambda peak: -float(peak[0].sum()))


def smoothed(counts: NDArray[np.int64], sigma: float) -> NDArray[np.float64]:
    """Counts (n,) under a Gaussian that is cut off at four sigma; beyond the ends they are mirrored."""
    reach = int(4 * sigma + 0.5)
    weight = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    return np.convolve(np.pad(counts.astype(np.float64), reach, "symmetric"), weight / weight.sum(), "valid")


def _mode(pixels: RGB) -> NDArray[np.float32]:
    """The most frequent value (3,) of each channel of pixels (n, 3)."""
    modes = []
    for channel in range(3):
        counts = smoothed(np.bincount(pixels[:, channel], minlength=256), 1.5)
        modes.append(int(counts.argmax()))
    return np.asarray(modes, np.float32)


def optical_density(rgb: RGB, glass: NDArray[np.float32]) -> NDArray[np.float32]:
    """Density (H, W, 3) of the dye in each channel, natural logarithm, 0 on glass. Beer and Lambert."""
    table = np.log(glass + 1) - np.log(np.arange(256, dtype=np.float32)[:, None] + 1)  # (256, 3)
    return np.asarray(cv2.LUT(rgb, table[:, None].astype(np.float32)))
