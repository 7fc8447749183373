"""TissueMask: where the tissue is. A classical method on a low level of the slide; sizes in micrometres.

Light that reaches the sensor falls exponentially with stain, so everything is judged in optical density (OD) against
the slide's own glass: tissue takes up dye (OD above the noise of the glass) and dye has a colour (OD differs between
channels), while stitching stripes, dust, bubble edges and cover-slip shadows are grey. Pen ink is told from dye by the
order of its three densities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import measure
from skimage.morphology import disk, opening, remove_small_objects
from skimage.segmentation import clear_border

from pathovit.errors import NoTissueError, TileReadError
from pathovit.geometry import XY, area_mm2
from pathovit.readers import RGB
from pathovit.settings import TissueSettings
from pathovit.slide import Level, Slide

SAMPLE_PX = 1_000_000  # pixels that tell the colour and the noise of the glass
BAND_PX = 2048  # side of the blocks in which a level is read: bounds the memory
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
    level = slide.best_level((mpp, mpp), tolerance=0.0)
    shrink = max(1, round(mpp / max(level.mpp)))
    shape = -(-level.size[1] // shrink), -(-level.size[0] // shrink)
    overview = np.empty((*shape, 3), np.uint8)
    overview[:] = slide.background
    scanned = np.zeros(shape, bool)
    unread = np.zeros(shape, bool)
    step = BAND_PX // shrink
    for row in range(0, shape[0], step):
        for column in range(0, shape[1], step):
            rows, columns = slice(row, min(row + step, shape[0])), slice(column, min(column + step, shape[1]))
            block = _read_block(slide, level, shrink, rows, columns)
            if block is None:
                unread[rows, columns] = True
            else:
                overview[rows, columns], scanned[rows, columns] = block
    return overview, scanned, unread, (level.downsample[0] * shrink, level.downsample[1] * shrink)


def _read_block(slide: Slide, level: Level, shrink: int, rows: slice, columns: slice) -> tuple[RGB, Mask] | None:
    """One block of the overview; from a sharper level where this one is damaged; None where all are."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    for candidate in slide.levels[level.index :: -1]:
        factor = round(shrink * level.downsample[0] / candidate.downsample[0])
        if width * height * factor**2 > BAND_PX**2 * 16:  # a quarter of a gigabyte
            return None
        try:
            rgb, empty = slide.read(candidate, columns.start * factor, rows.start * factor, width * factor, height * factor)
        except TileReadError:
            continue
        small = np.asarray(Image.fromarray(rgb).reduce(factor)) if factor > 1 else rgb
        scanned = np.ones((height, width), bool)
        if empty > 0:  # transparent pixels were painted with exactly this colour
            scanned = (small != np.asarray(slide.background)).any(-1)
        return small, scanned
    return None


def segment(rgb: RGB, scanned: Mask, mpp: XY, settings: TissueSettings) -> tuple[Mask, Mask]:
    """Tissue and pen masks, bool (H, W), of an overview picture uint8 (H, W, 3) at `mpp`."""
    um = float(np.sqrt(mpp[0] * mpp[1]))
    density = optical_density(rgb, glass_colour(rgb, scanned))
    density = ndimage.gaussian_filter(density, (0, 0.5, 0.5))
    pen = _find_pen(density, um) & scanned if settings.drop_pen else np.zeros(scanned.shape, bool)
    stained = _find_stained(density, scanned & ~pen)
    tissue = _close_and_clean(stained & ~pen, um, settings)
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
    """Density (3, H, W) of the dye in each channel, natural logarithm, 0 on glass. Beer and Lambert."""
    table = np.log(glass[:, None] + 1) - np.log(np.arange(256, dtype=np.float32)[None] + 1)  # (3, 256)
    return np.stack([table[channel][rgb[..., channel]] for channel in range(3)])


def _find_stained(density: NDArray[np.float32], valid: Mask) -> Mask:
    """Pixels that took up dye: dense and coloured beyond the noise of the glass."""
    strength = density.max(0)
    colour = strength - density.min(0)
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


def _find_pen(density: NDArray[np.float32], um: float) -> Mask:
    """Ink on the glass. Its densities come in an order that dyes do not have.

    Haematoxylin and eosin absorb green most; DAB absorbs blue most and red a good half of that. Blue ink absorbs red
    most, green ink red and blue, red ink green and blue almost alike and little red; black ink all alike.
    """
    red, green, blue = (ndimage.gaussian_filter(density[i], max(0.5, 12 / um)) for i in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    blue_ink = (red > 0.45) & (red > 1.3 * green) & (green > 0.9 * blue)
    dark_blue_ink = (red > 0.8) & (red > 0.85 * green) & (blue < 0.75 * red)
    green_ink = (red > 0.35) & (red > 1.25 * green) & (blue > 1.02 * green)
    red_ink = (green > 0.7) & (blue > 0.72 * green) & (blue < 1.1 * green) & (red < 0.45 * green)
    black_ink = (lowest > 1.0) | (lowest > 0.8) & (highest - lowest < 0.25 * highest)
    ink = blue_ink | dark_blue_ink | green_ink | red_ink | black_ink
    ink = opening(ink, disk(1)) if min(ink.shape) > 3 else ink
    ink = remove_small_objects(ink, max_size=max(4, int(20_000 / um**2)))
    if not ink.any():
        return np.asarray(ink, bool)
    # Ink fades out at its edge: grow into whatever is still ink-coloured, then a little beyond.
    fading = (red > 0.12) & (red > 1.12 * green) | (lowest > 0.75) | ink
    ink = ndimage.binary_propagation(ink, mask=fading)
    return np.asarray(ndimage.distance_transform_edt(~ink) * um <= 30, bool)


def _close_and_clean(stained: Mask, um: float, settings: TissueSettings) -> Mask:
    """Join what belongs together; drop specks, threads and straight edges; fill lumina."""
    tissue = _opened(_closed(stained, settings.closing_um / um), settings.opening_um / um)
    tissue = remove_small_objects(tissue, max_size=max(1, int(settings.min_area_um2 / um**2)))
    holes = clear_border(~tissue)  # glass that reaches the edge of the picture is no hole
    tissue |= holes & ~remove_small_objects(holes, max_size=int(settings.max_hole_um2 / um**2))
    return _without_straight_edges(np.asarray(tissue, bool), um)


def _closed(mask: Mask, radius_px: float) -> Mask:
    grown = ndimage.distance_transform_edt(~mask) <= radius_px if mask.any() else mask
    padded = np.pad(grown, 1, constant_values=True)  # the picture's border must not eat tissue
    return np.asarray((ndimage.distance_transform_edt(padded) > radius_px)[1:-1, 1:-1], bool) | mask


def _opened(mask: Mask, radius_px: float) -> Mask:
    padded = np.pad(mask, 1, mode="edge")
    core = (ndimage.distance_transform_edt(padded) > radius_px)[1:-1, 1:-1]
    return np.asarray(ndimage.distance_transform_edt(~core) <= radius_px, bool) & mask if core.any() else np.asarray(core, bool)


def _without_straight_edges(tissue: Mask, um: float) -> Mask:
    """Drop long, straight, thin things: edges of cover slips and labels."""
    labels = measure.label(tissue)
    kept = tissue.copy()
    for thing in measure.regionprops(labels):
        length_um, width_um = thing.axis_major_length * um, thing.axis_minor_length * um
        if length_um > 3_000 and width_um < 0.02 * length_um and thing.solidity > 0.5:
            kept[labels == thing.label] = False
    return kept


def outlines(mask: Mask) -> list[NDArray[np.float64]]:
    """Closed outlines of a mask, each (M, 2) as (x, y) in mask pixels, corners of pixels at integers."""
    padded = np.pad(mask, 1)
    return [contour[:, ::-1] - 0.5 for contour in measure.find_contours(padded.astype(np.float32), 0.5)]
