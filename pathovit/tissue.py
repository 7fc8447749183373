"""TissueMask: where the tissue is. A classical method on a low level of the slide; sizes in micrometres.

Light that reaches the sensor falls exponentially with stain, so everything is judged in optical density (OD) against
the slide's own glass: tissue takes up dye (OD above the noise of the glass) and dye has a colour (OD differs between
channels), while stitching stripes, dust, bubble edges and cover-slip shadows are grey. Pen ink is told from dye by the
order of its three densities.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from pathovit.device import allowed_cores
from pathovit.errors import NoTissueError, TileReadError
from pathovit.geometry import XY, area_mm2
from pathovit.readers import RGB
from pathovit.settings import TissueSettings
from pathovit.slide import Level, Slide

SAMPLE_PX = 1_000_000  # pixels that tell the colour and the noise of the glass
BAND_PX = 2048  # side of the blocks in which a level is read: bounds the memory
SHARPER = threading.Lock()  # held while a damaged block is read from a sharper level, which takes up to 16 times as much
BAND_ROWS = 256  # of the overview, whose density is found at a time
PEN_MPP = 16.0  # pen marks are looked for at this resolution
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TissueMask:
    """Bool (H, W) over the whole slide; True is tissue."""

    tissue: Mask
    pen: Mask
    unread: Mask  # no level could be read here; counted as tissue, so that the tiles get their verdict
    downsample: XY  # level-0 pixels per mask pixel
    mpp: XY  # um per mask pixel
    overview: RGB  # the picture the mask was made from (H, W, 3)

    @property
    def area_mm2(self) -> float:
        return area_mm2(int(self.tissue.sum()), self.mpp)


def find_tissue(slide: Slide, settings: TissueSettings) -> TissueMask:
    """Tissue of a slide.

    Raises
    ------
    NoTissueError : nothing on the slide looks like stained tissue
    """
    overview, scanned, unread, downsample = read_overview(slide, settings.mask_mpp)
    mpp = (slide.mpp[0] * downsample[0], slide.mpp[1] * downsample[1])
    tissue, pen = segment(overview, scanned, mpp, settings)
    tissue |= unread
    if not tissue.any():
        ink = "What is dark on it looks like pen ink: if it is stained tissue, set tissue.drop_pen = false."
        remedy = ink if pen.any() else "Look at the slide; if there is some, report it with the slide's stain."
        raise NoTissueError(slide.path, f"no tissue found. {remedy}")
    return TissueMask(tissue, pen, unread, downsample, mpp, overview)


def read_overview(slide: Slide, mpp: float) -> tuple[RGB, Mask, Mask, XY]:
    """The whole slide at about `mpp`, a whole multiple of a level, read block by block.

    Returns
    -------
    uint8 (H, W, 3); bool (H, W) scanned; bool (H, W) unreadable; level-0 pixels per overview pixel
    """
    level = slide.best_level((mpp, mpp), tolerance=0.0, exact=False)
    shrink = max(1, round(mpp / max(level.mpp)))
    shape = -(-level.size[1] // shrink), -(-level.size[0] // shrink)
    overview = np.empty((*shape, 3), np.uint8)
    overview[:] = slide.background
    scanned = np.zeros(shape, bool)
    unread = np.zeros(shape, bool)
    step = BAND_PX // shrink

    def read(corner: tuple[int, int]) -> None:
        rows, columns = (slice(at, min(at + step, side)) for at, side in zip(corner, shape, strict=True))
        block = _read_block(slide, level, shrink, rows, columns)
        if block is None:
            unread[rows, columns] = True
        else:
            overview[rows, columns], scanned[rows, columns] = block

    with ThreadPoolExecutor(min(4, allowed_cores())) as pool:
        list(pool.map(read, itertools.product(range(0, shape[0], step), range(0, shape[1], step))))
    return overview, scanned, unread, (level.downsample[0] * shrink, level.downsample[1] * shrink)


def _read_block(slide: Slide, level: Level, shrink: int, rows: slice, columns: slice) -> tuple[RGB, Mask] | None:
    """One block of the overview; from a sharper level where this one is damaged; None where all are."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    for candidate in reversed([other for other in slide.levels if other.index <= level.index]):
        factor = round(shrink * level.downsample[0] / candidate.downsample[0])
        if width * height * factor**2 > BAND_PX**2 * 16:  # a quarter of a gigabyte
            return None
        x, y = columns.start * factor, rows.start * factor
        inside = min(width * factor, candidate.size[0] - x), min(height * factor, candidate.size[1] - y)
        rgb = np.empty((height * factor, width * factor, 3), np.uint8)
        rgb[:] = slide.background
        seen = np.ones(rgb.shape[:2], bool)
        try:
            with nullcontext() if candidate is level else SHARPER:
                part, scanned = slide.read_scanned(candidate, x, y, *inside)
        except TileReadError:
            continue
        rgb[: inside[1], : inside[0]] = part
        if scanned is not None:
            seen[: inside[1], : inside[0]] = scanned
        small = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        return small, cv2.resize(seen.view(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) > 127
    return None


def segment(rgb: RGB, scanned: Mask, mpp: XY, settings: TissueSettings) -> tuple[Mask, Mask]:
    """Tissue and pen masks, bool (H, W), of an overview picture uint8 (H, W, 3) at `mpp`."""
    um = float(np.sqrt(mpp[0] * mpp[1]))
    glass = glass_colour(rgb, scanned)
    pen = _find_pen(rgb, glass, um) & scanned if settings.drop_pen else np.zeros(scanned.shape, bool)
    stained = _find_stained(*_stain(rgb, glass), scanned & ~pen)
    tissue = _close_and_clean(stained, um, settings)
    return np.asarray(tissue & scanned & ~pen), pen


def glass_colour(rgb: RGB, scanned: Mask) -> NDArray[np.float32]:
    """Colour (3,) of the empty glass: the most frequent bright, nearly grey colour; near-white if there is no glass."""
    step = max(1, round((scanned.size / SAMPLE_PX) ** 0.5))
    pixels = rgb[::step, ::step][scanned[::step, ::step]]
    lowest = pixels.min(-1, initial=255)
    spread = pixels.max(-1, initial=0) - lowest
    glass = pixels[(lowest >= 190) & (spread <= 28)]
    if len(glass) < 0.003 * max(len(pixels), 1):
        return np.array([243, 243, 243], np.float32)
    modes = []
    for channel in range(3):
        counts = ndimage.gaussian_filter1d(np.bincount(glass[:, channel], minlength=256).astype(float), 1.5)
        modes.append(int(counts.argmax()))
    return np.asarray(modes, np.float32)


def optical_density(rgb: RGB, glass: NDArray[np.float32]) -> NDArray[np.float32]:
    """Density (H, W, 3) of the dye in each channel, natural logarithm, 0 on glass. Beer and Lambert."""
    table = np.log(glass + 1) - np.log(np.arange(256, dtype=np.float32)[:, None] + 1)  # (256, 3)
    return np.asarray(cv2.LUT(rgb, table[:, None].astype(np.float32)))


def _stain(rgb: RGB, glass: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How dense the dye is, and how coloured: its highest density, and what that is above the lowest; each (H, W)."""
    strength, colour = (np.empty(rgb.shape[:2], np.float32) for _ in range(2))
    for first in range(0, len(rgb), BAND_ROWS):
        above = min(first, 2)  # rows that the filter reaches to
        density = optical_density(rgb[first - above : first + BAND_ROWS + 2], glass)
        blurred = cv2.GaussianBlur(density, (5, 5), 0.5, borderType=cv2.BORDER_REFLECT)
        red, green, blue = cv2.split(blurred[above : above + BAND_ROWS])
        highest = cv2.max(cv2.max(red, green), blue)
        strength[first : first + BAND_ROWS] = highest
        colour[first : first + BAND_ROWS] = highest - cv2.min(cv2.min(red, green), blue)
    return strength, colour


def _find_stained(strength: NDArray[np.float32], colour: NDArray[np.float32], valid: Mask) -> Mask:
    """Pixels that took up dye: dense and coloured beyond the noise of the glass."""
    dense = _above_glass(strength, valid, floor=0.055, ceiling=0.14)
    coloured = _above_glass(colour, valid, floor=0.035, ceiling=0.09)
    very_dense = strength > 0.5  # anthracotic or very dark nuclei may look grey
    return np.asarray(valid & dense & (coloured | very_dense))


def _above_glass(values: NDArray[np.float32], valid: Mask, floor: float, ceiling: float) -> Mask:
    """Above the glass by three times its noise, within limits. The noise is the spread below the glass's own peak."""
    step = max(1, round((values.size / SAMPLE_PX) ** 0.5))
    sample = values[::step, ::step][valid[::step, ::step]]
    near_glass = sample[sample < ceiling]
    noise = 1.4826 * float(np.median(near_glass)) if len(near_glass) else 0.0
    return np.asarray(values > np.clip(3.0 * noise, floor, ceiling))


def _find_pen(rgb: RGB, glass: NDArray[np.float32], um: float) -> Mask:
    """Ink on the glass, bool (H, W). Its densities come in an order that dyes do not have.

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
    black_ink = (lowest > 1.0) | (lowest > 0.8) & (highest - lowest < 0.25 * highest)
    ink = blue_ink | dark_blue_ink | green_ink | red_ink | black_ink
    ink = _opened(ink, 1.0) if min(ink.shape) > 3 else ink
    ink = _without_small(ink, 20_000 / um**2)
    if ink.any():
        # Ink fades out at its edge: grow into whatever is still ink-coloured, then a little beyond.
        fading = (red > 0.12) & (red > 1.12 * green) | (lowest > 0.75) | ink
        labels, _ = _components(fading)
        inked = np.zeros(labels.max() + 1, bool)
        inked[labels[ink]] = True
        ink = _grown(inked[labels], 30 / um)
    return np.asarray(cv2.resize(ink.view(np.uint8), rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST), bool)


def _close_and_clean(stained: Mask, um: float, settings: TissueSettings) -> Mask:
    """Join what belongs together; drop specks, threads and straight edges; fill lumina."""
    closed = ~_grown(~_grown(stained, settings.closing_um / um), settings.closing_um / um) | stained
    tissue = _opened(closed, settings.opening_um / um)
    tissue = _without_small(tissue, settings.min_area_um2 / um**2)
    labels, boxes = _components(~tissue)
    at_border = (boxes[:, :2] == 0).any(1) | (boxes[:, :2] + boxes[:, 2:4] == tissue.shape[::-1]).any(1)
    lumen = ~at_border & (boxes[:, 4] <= settings.max_hole_um2 / um**2)  # glass that reaches the picture's edge is no hole
    lumen[0] = False
    return _without_straight_edges(tissue | lumen[labels], um)


def _grown(mask: Mask, radius_px: float) -> Mask:
    """Everything within a distance of the mask, from centre to centre."""
    reach = np.arange(-int(radius_px), int(radius_px) + 1)
    disc = reach[:, None] ** 2 + reach**2 <= radius_px**2
    return cv2.dilate(mask.view(np.uint8), disc.astype(np.uint8)).view(bool)


def _opened(mask: Mask, radius_px: float) -> Mask:
    return _grown(~_grown(~mask, radius_px), radius_px) & mask


def _components(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Labels (H, W), 0 beside the mask, and of each label its left, top, width, height and area: (labels, 5)."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    return np.asarray(labels, np.int32), np.asarray(boxes, np.int32)


def _without_small(mask: Mask, area_px: float) -> Mask:
    labels, boxes = _components(mask)
    large = boxes[:, 4] > max(1, int(area_px))
    large[0] = False
    return np.asarray(large[labels])


def _without_straight_edges(tissue: Mask, um: float) -> Mask:
    """Drop long, straight, thin things: edges of cover slips and labels."""
    labels, boxes = _components(tissue)
    length_px = np.hypot(boxes[:, 2], boxes[:, 3])
    maybe = (length_px * um > 2_500) & (boxes[:, 4] < 0.04 * length_px**2)
    for label in np.flatnonzero(maybe[1:]) + 1:
        left, top, width, height = boxes[label, :4]
        thing = measure.regionprops((labels[top : top + height, left : left + width] == label).astype(np.uint8))[0]
        length_um, width_um = thing.axis_major_length * um, thing.axis_minor_length * um
        if length_um > 3_000 and width_um < 0.02 * length_um and thing.solidity > 0.5:
            tissue[labels == label] = False
    return tissue


def outlines(mask: Mask) -> list[NDArray[np.float64]]:
    """Closed outlines of a mask, each (M, 2) as (x, y) in mask pixels, corners of pixels at integers."""
    padded = np.pad(mask, 1)
    return [contour[:, ::-1] - 0.5 for contour in measure.find_contours(padded.astype(np.float32), 0.5)]
