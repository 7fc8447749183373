"""TissueMask: where the tissue is. A classical method on a low level of the slide; sizes in micrometres.

Light that reaches the sensor falls exponentially with stain, so everything is judged in optical density (OD) against
the slide's own glass: tissue takes up dye (OD above the noise of the glass) and dye has a colour (OD differs between
channels), while stitching stripes, dust, bubble edges and cover-slip shadows are grey. Pen ink is told from dye by the
order of its three densities, and by lying on glass. Glass is what has no texture but the noise of the scanner, and lets
most light through; an area of one exact colour was never scanned, whatever colour that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import Polygon
from shapely.affinity import translate
from skimage import draw, measure

from pathovit.errors import NoTissueError
from pathovit.geometry import XY, area_mm2
from pathovit.reasons import Code
from pathovit.settings import TissueSettings
from pathovit.slides.glass import DARKEST, SAMPLE_PX, extremes, filled_in, find_glass, optical_density, texture_of, unlike
from pathovit.slides.ink import find_pen
from pathovit.slides.masks import Mask, components, grown, opened, within, without_small
from pathovit.slides.outlines import Outline, areas_of
from pathovit.slides.overview import read_overview
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide

BAND_ROWS = 256  # of the overview, whose density is found at a time
COLOURLESS = 6  # grey levels between channels that compression alone makes
DARK_PICTURE = 100
PALEST = 0.14  # optical density below which a pixel counts as glass
NEAR_UM = 100.0  # from stained tissue, that dark and colourless tissue (anthracosis, folds) lies
KINDS = ("glass", "tissue", "ink", "one flat colour", "grey", "never scanned", "unreadable")
LEAST_MM2 = 0.01  # of what is left out, to be spoken of


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
    """Bool (H, W) over the whole slide; True is tissue.

    Examples
    --------
    >>> with pathovit.open_slide(path) as slide:
    ...     mask = pathovit.find_tissue(slide)
    >>> mask.tissue.dtype, mask.tissue.shape, mask.mpp
    (dtype('bool'), (162, 187), (8.0, 8.0))
    """

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


def find_tissue(slide: Slide, settings: TissueSettings | None = None) -> TissueMask:
    """Tissue of a slide.

    Raises
    ------
    NoTissueError : nothing on the slide looks like stained tissue

    Examples
    --------
    >>> with pathovit.open_slide(path) as slide:
    ...     round(pathovit.find_tissue(slide).area_mm2, 2)
    0.78
    """
    settings = settings or TissueSettings()
    overview, scanned, unread, downsample = read_overview(slide, settings.mask_mpp)
    mpp = (slide.mpp[0] * downsample[0], slide.mpp[1] * downsample[1])
    if not (scanned | unread).any():
        raise NoTissueError(slide.path, "every pixel is transparent. If it has a fourth channel, save it without that.")
    texture = texture_of(overview)
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


def outlined_tissue(slide: Slide, outlines: Sequence[Outline], settings: TissueSettings | None = None) -> TissueMask:
    """Tissue where a person outlined it, whatever it looks like; what they called `ignore`, or gave a star, is none.

    Raises
    ------
    NoTissueError : no area of the outlines lies on the slide
    """
    settings = settings or TissueSettings()
    overview, scanned, unread, downsample = read_overview(slide, settings.mask_mpp)
    x, y = (slide.bounds.x, slide.bounds.y) if slide.has_bounds else (0, 0)
    left_out = [one.name.endswith("*") or one.name.strip().casefold() == "ignore" for one in outlines]
    tissue = np.zeros(scanned.shape, np.uint8)
    for is_out in (False, True):  # what is left out wins
        for one, out in zip(outlines, left_out, strict=True):
            if out == is_out:
                moved = one.geometry if one.from_level0 else translate(one.geometry, x, y)
                for area in areas_of(moved):
                    _fill(tissue, area, downsample, 0 if out else 1)
    if not tissue.any():
        raise NoTissueError(slide.path, "its outlines have no area on it. Are they of this slide, and in level-0 pixels?")
    nothing = np.zeros(scanned.shape, bool)
    mpp = (slide.mpp[0] * downsample[0], slide.mpp[1] * downsample[1])
    said = (*slide.remarks, "its tissue is what a person outlined (--tissue)")
    return TissueMask(
        tissue > 0, nothing, unread & (tissue > 0), downsample, mpp, overview, scanned | unread, nothing, nothing, said
    )


def _fill(mask: NDArray[np.uint8], area: Polygon, downsample: XY, value: int) -> None:
    """Pixels whose middle lies in an area, and not in a hole of it."""
    left, top, right, bottom = np.asarray(area.bounds) / np.tile(downsample, 2)
    x0, y0 = max(0, int(left)), max(0, int(top))
    part = mask[y0 : max(y0, int(np.ceil(bottom))), x0 : max(x0, int(np.ceil(right)))]
    inside = np.zeros(part.shape, bool)
    for ring, filled in ((area.exterior, True), *((hole, False) for hole in area.interiors)):
        x, y = (np.asarray(ring.coords) / downsample - 0.5).T
        inside[draw.polygon(y - y0, x - x0, part.shape)] = filled
    part[inside] = value


def _refuse_grey(slide: Slide, overview: RGB, alive: Mask, least_px: float) -> None:
    """A picture without any colour is no stained slide, or not all of it. `alive` are pixels that were not filled in."""
    pixels = overview[alive]
    if not len(pixels):
        return
    step = max(1, len(pixels) // SAMPLE_PX)
    sample = pixels[::step].astype(np.int16)
    darkest, brightness = extremes(sample)
    spread = brightness - darkest
    coloured = int((spread > COLOURLESS).sum()) * step
    if coloured < least_px and np.ptp(np.percentile(brightness, [1, 99])) > 4 * COLOURLESS:
        raise NoTissueError(
            slide.path,
            "its picture is grey: it has light and dark, and no colour. A stained slide needs its colours.",
            Code.UNSUPPORTED,
        )
    if np.percentile(brightness, 99) < DARK_PICTURE:
        raise NoTissueError(
            slide.path,
            f"its picture is dark (nearly all of it below {DARK_PICTURE} of 255): fluorescence, inverted, or pixels of more than 8 bits "
            "that were cut. Stained tissue on bright glass is needed.",
            Code.UNSUPPORTED,
        )
    if float((brightness < DARKEST).mean()) > 0.5:
        raise NoTissueError(
            slide.path, "its background is black and its tissue bright: inverted, or fluorescence. Invert it.", Code.UNSUPPORTED
        )


def segment(rgb: RGB, scanned: Mask, mpp: XY, settings: TissueSettings, texture: NDArray[np.uint8] | None = None) -> Segments:
    """What the pixels of an overview picture uint8 (H, W, 3) at `mpp` are; its `texture`, if it is known."""
    um = float(np.sqrt(mpp[0] * mpp[1]))
    texture = texture_of(rgb) if texture is None else texture
    glass, remarks = find_glass(rgb, scanned, texture)
    flat = filled_in((texture == 0) & scanned, um) & unlike(rgb, glass)
    strength, colour = _stain(rgb, glass)
    stained, dark = _find_stained(strength, colour, scanned & ~flat)
    pen = np.zeros(scanned.shape, bool)
    if settings.drop_pen:
        pen = find_pen(rgb, glass, um, ~(strength > PALEST)) & scanned & ~flat
    near = within(stained & ~pen, NEAR_UM / um) if dark.any() else dark
    tissue = _close_and_clean((stained | (dark & near)) & ~pen, um, settings) & scanned & ~pen & ~flat
    grey = without_small(dark & ~near & ~tissue & ~pen, settings.min_area_um2 / um**2)
    return Segments(np.asarray(tissue), pen, flat, grey, (int(glass[0]), int(glass[1]), int(glass[2])), remarks)


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


def _close_and_clean(stained: Mask, um: float, settings: TissueSettings) -> Mask:
    """Join what belongs together; drop specks, threads and straight edges; fill lumina."""
    closed = ~grown(~grown(stained, settings.closing_um / um), settings.closing_um / um) | stained
    tissue = opened(closed, settings.opening_um / um)
    tissue = without_small(tissue, settings.min_area_um2 / um**2)
    labels, boxes = components(~tissue)
    at_border = (boxes[:, :2] == 0).any(1) | (boxes[:, :2] + boxes[:, 2:4] == tissue.shape[::-1]).any(1)
    lumen = ~at_border & (boxes[:, 4] <= settings.max_hole_um2 / um**2)  # glass that reaches the picture's edge is no hole
    lumen[0] = False
    return _without_straight_edges(tissue | lumen[labels], um)


def _without_straight_edges(tissue: Mask, um: float) -> Mask:
    """Drop long, straight, thin things: edges of cover slips and labels."""
    labels, boxes = components(tissue)
    length_px = np.hypot(boxes[:, 2], boxes[:, 3])
    maybe = (length_px * um > 2_500) & (boxes[:, 4] < 0.04 * length_px**2)
    for label in np.flatnonzero(maybe[1:]) + 1:
        left, top, width, height = boxes[label, :4]
        thing = measure.regionprops((labels[top : top + height, left : left + width] == label).astype(np.uint8))[0]
        length_um, width_um = thing.axis_major_length * um, thing.axis_minor_length * um
        if length_um > 3_000 and width_um < 0.02 * length_um and thing.solidity > 0.5:
            tissue[labels == label] = False
    return tissue
