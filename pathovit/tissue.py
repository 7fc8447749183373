"""TissueMask: where the tissue is. A classical method on a low level of the slide; sizes in micrometres.

Light that reaches the sensor falls exponentially with stain, so everything is judged in optical density (OD) against
the slide's own glass: tissue takes up dye (OD above the noise of the glass) and dye has a colour (OD differs between
channels), while stitching stripes, dust, bubble edges and cover-slip shadows are grey. Pen ink is told from dye by the
order of its three densities, and by lying on glass. Glass is what has no texture but the noise of the scanner, and lets
most light through; an area of one exact colour was never scanned, whatever colour that is.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from pathovit.device import allowed_cores
from pathovit.errors import NoTissueError, ResolutionError, TileReadError
from pathovit.geometry import XY, Box, area_mm2
from pathovit.readers import RGB
from pathovit.settings import TissueSettings
from pathovit.slide import Level, Slide

SAMPLE_PX = 1_000_000  # pixels that tell the colour and the noise of the glass
BAND_PX = 2048  # side of the blocks in which a level is read: bounds the memory
SMALLEST_BLOCK = 8  # overview pixels on a side, down to which a block with damage in it is divided
SHARPER = threading.Lock()  # held while a damaged block is read from a sharper level, which takes up to 16 times as much
BAND_ROWS = 256  # of the overview, whose density is found at a time
PEN_MPP = 16.0  # pen marks are looked for at this resolution
WINDOW_PX = 5  # side of the window in which texture is looked for
SMOOTH = 8  # grey levels that the noise of glass spans in that window, at most
GLASS_SHARE = 0.003  # of the scanned pixels that must look like glass before it is believed
BRIGHTER_SHARE = 0.03  # of the pixels that may be brighter than the glass
FILLED_UM2, FILLED_EDGE_UM2 = 1_000_000.0, 20_000.0  # area of one exact colour from which on it was filled in
LARGE_SHARE = 0.1  # a smooth area as large as this is glass even if its colour could be a stain
GREEN_TAKEN = 4  # grey levels that green lies below red and blue in pale tissue
NEUTRAL, BRIGHT = 28, 190  # usual glass: the spread of its channels at most, its lowest channel at least
DARKEST = 60  # nothing darker than this is believed to be glass
ON_GLASS = 0.3  # share of the surroundings of ink that is glass
SURE_SHARE = 0.2  # of a stroke of ink that has a colour that no tissue has
MOST_OVERVIEW_PX = 250_000_000
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Segments:
    """What the pixels of an overview are, each bool (H, W)."""

    tissue: Mask
    pen: Mask  # ink on the glass
    flat: Mask  # of one exact colour, and not that of the glass: filled in, never scanned
    grey: Mask  # dark without the colour of a dye, and away from tissue: edges of the scanner's field, dirt
    glass: tuple[int, int, int]  # its colour
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class TissueMask:
    """Bool (H, W) over the whole slide; True is tissue."""

    tissue: Mask
    pen: Mask
    unread: Mask  # no level could be read here; counted as tissue, so that the tiles get their verdict
    downsample: XY  # level-0 pixels per mask pixel
    mpp: XY  # um per mask pixel
    overview: RGB  # the picture the mask was made from (H, W, 3)
    scanned: Mask
    flat: Mask
    grey: Mask
    remarks: tuple[str, ...] = ()

    @property
    def area_mm2(self) -> float:
        return area_mm2(int(self.tissue.sum()), self.mpp)

    @property
    def left_out_mm2(self) -> dict[str, float]:
        """What was taken for no tissue although it is not glass, by its reason."""
        masks = {"ink": self.pen, "one flat colour": self.flat, "grey": self.grey}
        areas = {reason: area_mm2(int(mask.sum()), self.mpp) for reason, mask in masks.items()}
        return {reason: round(area, 3) for reason, area in areas.items() if area >= LEAST_MM2}

    def kinds(self) -> NDArray[np.uint8]:
        """(H, W) of what every pixel is, as numbers of `KINDS`."""
        found = np.zeros(self.tissue.shape, np.uint8)
        for mask, kind in ((self.tissue, 1), (self.pen, 2), (self.flat, 3), (self.grey, 4), (~self.scanned, 5), (self.unread, 6)):
            found[mask] = kind
        return found


KINDS = ("glass", "tissue", "ink", "one flat colour", "grey", "never scanned", "unreadable")
LEAST_MM2 = 0.01  # of what is left out, to be spoken of


def find_tissue(slide: Slide, settings: TissueSettings) -> TissueMask:
    """Tissue of a slide.

    Raises
    ------
    NoTissueError : nothing on the slide looks like stained tissue
    """
    overview, scanned, unread, downsample = read_overview(slide, settings.mask_mpp)
    mpp = (slide.mpp[0] * downsample[0], slide.mpp[1] * downsample[1])
    if not (scanned | unread).any():
        raise NoTissueError(slide.path, "every pixel is transparent. If it has a fourth channel, save it without that.")
    texture = _texture(overview)
    _refuse_grey(slide, overview, scanned & (texture > 0), settings.min_area_um2 / (mpp[0] * mpp[1]))
    found = segment(overview, scanned, mpp, settings, texture)
    tissue = found.tissue | unread
    if not tissue.any():
        ink = "What is dark on it looks like pen ink: if it is stained tissue, set tissue.drop_pen = false."
        remedy = ink if found.pen.any() else "Look at the slide; if there is some, report it with the slide's stain."
        raise NoTissueError(slide.path, f"no tissue found. {remedy}")
    return TissueMask(
        tissue,
        found.pen,
        unread,
        downsample,
        mpp,
        overview,
        scanned | unread,
        found.flat,
        found.grey,
        (*slide.remarks, *found.remarks),
    )


def _refuse_grey(slide: Slide, overview: RGB, alive: Mask, least_px: float) -> None:
    """A picture without any colour is no stained slide, or not all of it. `alive` are pixels that were not filled in."""
    pixels = overview[alive]
    if not len(pixels):
        return
    step = max(1, len(pixels) // SAMPLE_PX)
    sample = pixels[::step].astype(np.int16)
    spread, brightness = sample.max(-1) - sample.min(-1), sample.max(-1)
    coloured = int((spread > COLOURLESS).sum()) * step
    if coloured < least_px and np.ptp(np.percentile(brightness, [1, 99])) > 4 * COLOURLESS:
        raise NoTissueError(
            slide.path, "its picture is grey: it has light and dark, and no colour. A stained slide needs its colours."
        )
    if np.percentile(brightness, 99) < DARK_PICTURE:
        raise NoTissueError(
            slide.path,
            f"its picture is dark (nearly all of it below {DARK_PICTURE} of 255): fluorescence, inverted, or pixels of more than 8 bits "
            "that were cut. Stained tissue on bright glass is needed.",
        )
    if float((brightness < DARKEST).mean()) > 0.5:
        raise NoTissueError(slide.path, "its background is black and its tissue bright: inverted, or fluorescence. Invert it.")


COLOURLESS = 6  # grey levels between channels that compression alone makes
DARK_PICTURE = 100


def read_overview(slide: Slide, mpp: float) -> tuple[RGB, Mask, Mask, XY]:
    """The whole slide at about `mpp`, a whole multiple of a level, read block by block.

    Returns
    -------
    uint8 (H, W, 3); bool (H, W) scanned; bool (H, W) unreadable; level-0 pixels per overview pixel
    """
    picture, scanned, unread, scale, _ = read_part(slide, mpp, Box(0, 0, *slide.size))
    return picture, scanned, unread, scale


def read_part(slide: Slide, mpp: float, box: Box) -> tuple[RGB, Mask, Mask, XY, XY]:
    """The same of a rectangle of level-0 pixels, as far as pixels of the overview go; last, its level-0 corner."""
    level = slide.best_level((mpp, mpp), tolerance=0.0, exact=False)
    shrink = max(1, round(mpp / max(level.mpp)))
    scale = level.downsample[0] * shrink, level.downsample[1] * shrink
    whole = -(-level.size[0] // shrink), -(-level.size[1] // shrink)
    first = int(box.x // scale[0]), int(box.y // scale[1])
    last = min(whole[0], ceil((box.x + box.width) / scale[0])), min(whole[1], ceil((box.y + box.height) / scale[1]))
    shape = last[1] - first[1], last[0] - first[0]
    if shape[0] * shape[1] > MOST_OVERVIEW_PX:
        raise ResolutionError(
            slide.path,
            f"its overview at {mpp:g} um would have {shape[1]:,} x {shape[0]:,} pixels. Correct its pixel size with --mpp.",
        )
    overview = np.empty((*shape, 3), np.uint8)
    overview[:] = slide.background
    scanned = np.zeros(shape, bool)
    unread = np.zeros(shape, bool)
    step = max(1, BAND_PX // shrink)

    def read(corner: tuple[int, int], step: int = step) -> None:
        rows, columns = (slice(at, min(at + step, side)) for at, side in zip(corner, shape, strict=True))
        block = _read_block(slide, level, shrink, _moved(rows, first[1]), _moved(columns, first[0]))
        if block is not None:
            overview[rows, columns], scanned[rows, columns] = block
        elif step <= SMALLEST_BLOCK:
            unread[rows, columns] = True
        else:  # a damaged tile must not take all around it along
            half = -(-step // 2)
            for part in itertools.product(range(rows.start, rows.stop, half), range(columns.start, columns.stop, half)):
                read(part, half)

    with ThreadPoolExecutor(min(4, allowed_cores())) as pool:
        list(pool.map(read, itertools.product(range(0, shape[0], step), range(0, shape[1], step))))
    return overview, scanned, unread, scale, (first[0] * scale[0], first[1] * scale[1])


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


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
        try:
            with nullcontext() if candidate is level else SHARPER:
                part, scanned = slide.read_scanned(candidate, x, y, *inside)
        except TileReadError:
            continue
        rgb[: inside[1], : inside[0]] = part
        small = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        if scanned is None:
            return small, np.ones((height, width), bool)
        seen = np.pad(scanned, ((0, rgb.shape[0] - inside[1]), (0, rgb.shape[1] - inside[0])), "edge")
        return small, cv2.resize(seen.view(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) > 127
    return None


def segment(rgb: RGB, scanned: Mask, mpp: XY, settings: TissueSettings, texture: NDArray[np.uint8] | None = None) -> Segments:
    """What the pixels of an overview picture uint8 (H, W, 3) at `mpp` are; its `texture`, if it is known."""
    um = float(np.sqrt(mpp[0] * mpp[1]))
    texture = _texture(rgb) if texture is None else texture
    glass, remarks = find_glass(rgb, scanned, texture)
    flat = _filled_in((texture == 0) & scanned, um) & _unlike(rgb, glass)
    strength, colour = _stain(rgb, glass)
    stained, dark = _find_stained(strength, colour, scanned & ~flat)
    pen = np.zeros(scanned.shape, bool)
    if settings.drop_pen:
        pen = _find_pen(rgb, glass, um, ~(strength > PALEST)) & scanned & ~flat
    near = _within(stained & ~pen, NEAR_UM / um) if dark.any() else dark
    tissue = _close_and_clean((stained | (dark & near)) & ~pen, um, settings) & scanned & ~pen & ~flat
    grey = _without_small(dark & ~near & ~tissue & ~pen, settings.min_area_um2 / um**2)
    return Segments(np.asarray(tissue), pen, flat, grey, (int(glass[0]), int(glass[1]), int(glass[2])), remarks)


PALEST = 0.14  # optical density below which a pixel counts as glass
NEAR_UM = 100.0  # from stained tissue, that dark and colourless tissue (anthracosis, folds) lies


def _texture(rgb: RGB) -> NDArray[np.uint8]:
    """(H, W) grey levels between the brightest and the darkest pixel around, in the channel where they differ most."""
    window = np.ones((WINDOW_PX, WINDOW_PX), np.uint8)
    spans = [cv2.subtract(cv2.dilate(channel, window), cv2.erode(channel, window)) for channel in cv2.split(rgb)]
    return np.asarray(cv2.max(cv2.max(spans[0], spans[1]), spans[2]), np.uint8)


def _filled_in(exact: Mask, um: float) -> Mask:
    """Large areas of one exact colour, of pixels around which there is no texture; smaller ones too, at the picture's edge.

    A block of a JPEG may be of one colour as well, where tissue is smooth: such spots are small.
    """
    labels, boxes = _components(exact)
    at_edge = (boxes[:, :2] <= WINDOW_PX).any(1) | (boxes[:, :2] + boxes[:, 2:4] >= np.array(exact.shape[::-1]) - WINDOW_PX).any(
        1
    )
    large = boxes[:, 4] * um**2 > np.where(at_edge, FILLED_EDGE_UM2, FILLED_UM2)
    large[0] = False
    return cv2.dilate(large[labels].view(np.uint8), np.ones((WINDOW_PX, WINDOW_PX), np.uint8)).view(bool)


def _unlike(rgb: RGB, glass: NDArray[np.float32]) -> Mask:
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
    lowest, spread = pixels.min(-1, initial=255), pixels.max(-1, initial=0) - pixels.min(-1, initial=255)
    usual = pixels[(lowest >= BRIGHT) & (spread <= NEUTRAL)]
    has_usual = len(usual) >= GLASS_SHARE * max(len(pixels), 1)
    for glass, share in _peaks(smooth, max(len(seen), 1)):
        neutral = float(np.ptp(glass)) <= NEUTRAL
        # Haematoxylin and eosin take green most: where there is usual glass, too, such a colour is pale tissue.
        stain_like = float(glass[1]) < min(float(glass[0]), float(glass[2])) - GREEN_TAKEN
        if (stain_like and (has_usual or share < LARGE_SHARE)) or glass.min() < DARKEST:
            continue
        brighter = ((seen.astype(np.int16) - glass.astype(np.int16)).max(-1) > 2.5 * SMOOTH).mean()
        if brighter > BRIGHTER_SHARE:
            continue
        unusual = not neutral or glass.min() < BRIGHT
        said = f"unusual glass (colour {', '.join(f'{v:.0f}' for v in glass)}): tissue is judged against it"
        return glass, (said,) if unusual else ()
    if not has_usual:
        return np.array([243, 243, 243], np.float32), ("no clear glass was found: tissue is judged against white",)
    return _mode(usual), ()


def _peaks(pixels: RGB, seen: int) -> list[tuple[NDArray[np.float32], float]]:
    """Colours (3,) that many of the pixels (n, 3) have, with their share of those seen; the brightest first."""
    found: list[tuple[NDArray[np.float32], float]] = []
    rest = pixels
    while len(rest) >= GLASS_SHARE * seen and len(found) < MOST_PEAKS:
        brightness = rest.astype(np.uint16).sum(-1)
        counts = ndimage.gaussian_filter1d(np.bincount(brightness, minlength=766).astype(float), 4.5)
        near = np.abs(brightness.astype(np.int16) - int(counts.argmax())) <= 3 * SMOOTH
        if near.sum() < GLASS_SHARE * seen:
            break
        found.append((_mode(rest[near]), float(near.sum() / seen)))
        rest = rest[~near]
    return sorted(found, key=lambda peak: -float(peak[0].sum()))


MOST_PEAKS = 8


def _mode(pixels: RGB) -> NDArray[np.float32]:
    """The most frequent value (3,) of each channel of pixels (n, 3)."""
    modes = []
    for channel in range(3):
        counts = ndimage.gaussian_filter1d(np.bincount(pixels[:, channel], minlength=256).astype(float), 1.5)
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


def _find_stained(strength: NDArray[np.float32], colour: NDArray[np.float32], valid: Mask) -> tuple[Mask, Mask]:
    """Pixels that took up dye: dense and coloured beyond the noise of the glass; and those that are very dense and grey."""
    dense = _above_glass(strength, valid, floor=0.055, ceiling=PALEST)
    coloured = _above_glass(colour, valid, floor=0.035, ceiling=0.09)
    very_dense = strength > 0.5  # anthracotic or very dark nuclei may look grey
    return np.asarray(valid & dense & coloured), np.asarray(valid & very_dense & ~coloured)


def _above_glass(values: NDArray[np.float32], valid: Mask, floor: float, ceiling: float) -> Mask:
    """Above the glass by three times its noise, within limits. The noise is the spread below the glass's own peak."""
    step = max(1, round((values.size / SAMPLE_PX) ** 0.5))
    sample = values[::step, ::step][valid[::step, ::step]]
    near_glass = sample[sample < ceiling]
    noise = 1.4826 * float(np.median(near_glass)) if len(near_glass) else 0.0
    return np.asarray(values > np.clip(3.0 * noise, floor, ceiling))


def _find_pen(rgb: RGB, glass: NDArray[np.float32], um: float, empty: Mask) -> Mask:
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
    ink = _opened(ink, 1.0) if min(ink.shape) > 3 else ink
    ink = _without_small(ink, 20_000 / um**2)
    if ink.any():
        small = cv2.resize(empty.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).view(bool)
        ink = _sure_or_on_glass(ink, sure, small, um)
    if ink.any():
        # Ink fades out at its edge: grow into whatever is still ink-coloured, then a little beyond.
        fading = (red > 0.12) & (red > 1.12 * green) | (lowest > 0.75) | ink
        labels, _ = _components(fading)
        inked = np.zeros(labels.max() + 1, bool)
        inked[labels[ink]] = True
        ink = _grown(inked[labels], 30 / um)
    return np.asarray(cv2.resize(ink.view(np.uint8), rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST), bool)


def _sure_or_on_glass(ink: Mask, sure: Mask, empty: Mask, um: float) -> Mask:
    """Those parts of the ink that hold a colour that tissue never has, or that glass surrounds: blood has tissue around it."""
    labels, boxes = _components(ink)
    kept = np.zeros(len(boxes), bool)
    reach = max(2, round(RING_UM / um))
    for label in range(1, len(boxes)):
        left, top, width, height = boxes[label, :4]
        rows, columns = slice(max(0, top - reach), top + height + reach), slice(max(0, left - reach), left + width + reach)
        mine = labels[rows, columns] == label
        ring = _grown(mine, reach) & ~_grown(mine, reach / 2) & ~ink[rows, columns]
        on_glass = not ring.any() or bool(empty[rows, columns][ring].mean() >= ON_GLASS)
        kept[label] = on_glass or bool(sure[rows, columns][mine].mean() >= SURE_SHARE)
    return np.asarray(kept[labels])


RING_UM = 120.0  # around ink, where glass is looked for


def _within(mask: Mask, radius_px: float) -> Mask:
    """Everything within a distance of the mask; for distances that are large in pixels."""
    return np.asarray(cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 5) <= radius_px)


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
