"""TileSpec -> TileGrid: which tiles to read, and reading one.

Tiles lie on one lattice of the slide, row by row, so the order, and with it every stored row, is the same in every
run. Only whole tiles are laid: one that would hang over the scanned edge holds pixels that were never there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import NoTissueError, ResolutionError, SettingsError
from pathovit.geometry import XY, box_fraction, integral_image, l0_per_px
from pathovit.reasons import Code
from pathovit.settings import TileSpec, fill_spec
from pathovit.slides.readers import RGB, average
from pathovit.slides.readers.compressed import SCALES
from pathovit.slides.slide import Slide
from pathovit.slides.tissue import TissueMask

EMPTY_LIMIT = 0.01  # a tile with more unscanned pixels than this is `missing`
MOST_UPSAMPLING = 5  # beyond it a slide is not upsampled, its pixel size is wrong
MAX_READ_PX = 16_384  # side of what is read for one tile
BLOCK_TILES = 200_000  # lattice points judged at a time: bounds the memory


@dataclass(frozen=True)
class TileGrid:
    """The tiles found: N level-0 corners in row-major order, and how to read them.

    Examples
    --------
    >>> grid = pathovit.load_features(out, "one").grid
    >>> grid.xy.dtype, grid.xy.shape
    (dtype('int64'), (95, 2))
    """

    spec: TileSpec  # tile_px, mpp and stride_px filled in
    xy: NDArray[np.int64]  # (N, 2) top-left corners, level-0 pixels
    coverage: NDArray[np.float32]  # (N,) share on tissue
    tile_l0: XY  # side of a tile, level-0 pixels, exact
    stride_l0: XY
    origin: tuple[int, int]  # level-0 corner of lattice point (0, 0)
    read_level: int
    read_px: tuple[int, int]  # width, height to read at that level
    read_scale: int  # how many times smaller that is read: 1, 2, 4 or 8
    upsampled: float  # 1, or by how much the slide is coarser than asked
    total: int  # tiles on the tissue, of which `max_tiles` may have left out some

    def __len__(self) -> int:
        return len(self.xy)

    def kept(self, rows: NDArray[np.int64]) -> TileGrid:
        """The grid of some of its tiles, in the order given."""
        return replace(self, xy=self.xy[rows], coverage=self.coverage[rows], total=len(rows))

    def lattice(self) -> NDArray[np.int64]:
        """(N, 2) column and row of every tile on the lattice."""
        steps = (self.xy - np.asarray(self.origin)) / np.asarray(self.stride_l0)
        return np.asarray(np.rint(steps), np.int64)

    def to_attributes(self) -> dict[str, Any]:
        """Everything but the arrays, as it lies in zarr.json."""
        return {
            "tile_px": self.spec.tile_px,
            "stride_px": self.spec.stride_px,
            "mpp": self.spec.mpp,
            "min_coverage": self.spec.min_coverage,
            "tile_l0": list(self.tile_l0),
            "stride_l0": list(self.stride_l0),
            "origin": list(self.origin),
            "read_level": self.read_level,
            "read_px": list(self.read_px),
            "read_scale": self.read_scale,
            "upsampled": self.upsampled,
            "total_tiles": self.total,
        }

    @classmethod
    def from_attributes(cls, found: Mapping[str, Any], xy: NDArray[np.int64], coverage: NDArray[np.float32]) -> TileGrid:
        """The other way."""
        spec = TileSpec(found["tile_px"], found["mpp"], found["stride_px"], found["min_coverage"])
        tile_l0, stride_l0, origin, read_px = (_pair(found[name]) for name in ("tile_l0", "stride_l0", "origin", "read_px"))
        return cls(
            spec, xy, coverage, tile_l0, stride_l0, origin, found["read_level"], read_px, found["read_scale"], found["upsampled"],
            found["total_tiles"],
        )  # fmt: skip


def _pair(values: Any) -> tuple[Any, Any]:
    x, y = values
    return x, y


def lay_grid(
    slide: Slide, mask: TissueMask, spec: TileSpec, max_tiles: int | None = None, scaled_decoding: bool = True
) -> TileGrid:
    """Lay tiles on the tissue of a slide.

    Parameters
    ----------
    spec : with tile_px and mpp (`fill_spec` takes them from an encoder)
    max_tiles : keep at most so many, spread evenly over the grid
    scaled_decoding : whether a half, quarter or eighth of a level may be decoded as such, without its full pixels

    Raises
    ------
    ResolutionError : the slide is coarser than the spec by more than `spec.max_upsampling`
    NoTissueError : no tile has enough tissue
    SettingsError : the spec has no tile_px or no mpp

    Examples
    --------
    >>> with pathovit.open_slide(path) as slide:
    ...     grid = pathovit.lay_grid(slide, pathovit.find_tissue(slide), pathovit.TileSpec(tile_px=96, mpp=1.0))
    >>> len(grid), grid.tile_l0
    (95, (192.0, 192.0))
    """
    if not spec.tile_px or not spec.mpp:
        raise SettingsError("Say which tiles: TileSpec(tile_px=224, mpp=0.5), or fill_spec with what the encoder wants.")
    spec = fill_spec(spec, spec.tile_px, spec.mpp)
    assert spec.tile_px and spec.mpp and spec.stride_px, "filled in"
    upsampled = check_resolution(slide, spec)
    level = slide.best_level((spec.mpp, spec.mpp), spec.snap_tolerance)
    per_px = l0_per_px(spec.mpp, slide.mpp)
    read_scale = 1
    for scale in SCALES:  # snapped: pixels of the level, or of its half, quarter or eighth, are taken as they are
        snapped = (level.downsample[0] * scale, level.downsample[1] * scale)
        if all(abs(a / b - 1) <= spec.snap_tolerance for a, b in zip(snapped, per_px, strict=True)):
            per_px, read_scale = snapped, scale if scaled_decoding else 1
    tile_l0 = (spec.tile_px * per_px[0], spec.tile_px * per_px[1])
    stride_l0 = (spec.stride_px * per_px[0], spec.stride_px * per_px[1])
    xy, coverage = _tissue_tiles(slide, mask, tile_l0, stride_l0, spec.min_coverage)
    if not len(xy):
        raise NoTissueError(
            slide.path,
            f"no tile of {spec.tile_px * spec.mpp:.0f} um has {spec.min_coverage:.0%} tissue "
            f"(tissue found: {mask.area_mm2:.3f} mm2). Lower --min-coverage, or use smaller tiles.",
        )
    total = len(xy)
    if max_tiles is not None and len(xy) > max_tiles:
        kept = np.linspace(0, len(xy) - 1, max_tiles).round().astype(np.int64)
        xy, coverage = xy[kept], coverage[kept]
    read_px = (round(tile_l0[0] / level.downsample[0]), round(tile_l0[1] / level.downsample[1]))
    if max(read_px) > MAX_READ_PX:
        raise ResolutionError(
            slide.path,
            f"a tile of {spec.tile_px * spec.mpp:.0f} um is {read_px[0]} pixels wide on its coarsest fitting level. "
            "Use smaller tiles, or a slide with more levels.",
            Code.TOO_LARGE,
        )
    origin = (slide.bounds.x, slide.bounds.y)
    return TileGrid(spec, xy, coverage, tile_l0, stride_l0, origin, level.index, read_px, read_scale, upsampled, total)


def check_resolution(slide: Slide, spec: TileSpec) -> float:
    """By how much a slide is coarser than the tiles asked for, if at all: 1, or the factor.

    Raises
    ------
    ResolutionError : by more than `spec.max_upsampling`
    """
    assert spec.mpp
    coarser = max(slide.mpp) / spec.mpp
    if coarser > spec.max_upsampling:
        remedy = f"Use an encoder for coarser tiles, or accept upsampling with --max-upsampling {np.ceil(coarser * 10) / 10:g}."
        if coarser > MOST_UPSAMPLING:
            remedy = (
                f"That is {coarser:.0f} times too coarse: look whether its pixel size ({slide.mpp_source}) is true, and correct it with "
                "--mpp (about 0.25 for a scan at 40x, 0.5 at 20x)."
            )
        raise ResolutionError(
            slide.path,
            f"its sharpest level has {max(slide.mpp):g} um per pixel, and the encoder needs {spec.mpp:g}. {remedy}",
            Code.TOO_COARSE,
        )
    return float(coarser) if coarser > 1 + spec.snap_tolerance else 1.0


def _tissue_tiles(
    slide: Slide, mask: TissueMask, tile_l0: XY, stride_l0: XY, min_coverage: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Corners (N, 2) and coverage (N,) of the lattice tiles with enough tissue."""
    bounds = slide.bounds
    columns = int((bounds.width - tile_l0[0] + 1e-6) // stride_l0[0]) + 1 if bounds.width >= tile_l0[0] - 1e-6 else 0
    rows = int((bounds.height - tile_l0[1] + 1e-6) // stride_l0[1]) + 1 if bounds.height >= tile_l0[1] - 1e-6 else 0
    table = integral_image(mask.tissue)
    # A tile over the edge of a scanned region would hold pixels that were never there; the mask knows the edge to a pixel of its own.
    beyond = (
        None if mask.scanned.all() else integral_image(cv2.dilate((~mask.scanned).view(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    )
    scale = np.asarray(mask.downsample)
    size_mask = (tile_l0[0] / scale[0], tile_l0[1] / scale[1])
    x_l0 = np.rint(bounds.x + np.arange(columns) * stride_l0[0]).astype(np.int64)
    kept_xy, kept_coverage = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    rows_at_once = max(1, BLOCK_TILES // max(columns, 1))
    for first in range(0, rows, rows_at_once):
        y_l0 = np.rint(bounds.y + np.arange(first, min(first + rows_at_once, rows)) * stride_l0[1]).astype(np.int64)
        xy = np.stack(np.meshgrid(x_l0, y_l0), axis=-1).reshape(-1, 2)  # row-major
        coverage = box_fraction(table, xy / scale, size_mask)
        enough = (coverage >= min_coverage) & (coverage > 0)
        if beyond is not None:
            enough &= box_fraction(beyond, xy / scale, size_mask) < 1e-6
        kept_xy.append(xy[enough])
        kept_coverage.append(coverage[enough])
    return np.concatenate(kept_xy), np.concatenate(kept_coverage)


def read_tile(slide: Slide, grid: TileGrid, index: int) -> RGB | None:
    """One tile, uint8 (tile_px, tile_px, 3), or None where the scanner left more than 1 % of it empty.

    Raises
    ------
    TileReadError : the pixels cannot be decoded

    Examples
    --------
    >>> with pathovit.open_slide(path) as slide:
    ...     grid = pathovit.lay_grid(slide, pathovit.find_tissue(slide), pathovit.TileSpec(tile_px=96, mpp=1.0))
    ...     pathovit.read_tile(slide, grid, 0).shape
    (96, 96, 3)
    """
    at = corner(slide, grid, index)
    rgb, empty = slide.read(slide.level(grid.read_level), *at, *grid.read_px, grid.read_scale)
    if empty > EMPTY_LIMIT:
        return None
    return resize_tile(rgb, grid.spec.tile_px)


def corner(slide: Slide, grid: TileGrid, index: int) -> tuple[int, int]:
    """Left and top of a tile, in pixels of the level it is read from."""
    level = slide.level(grid.read_level)
    x_l0, y_l0 = grid.xy[index]
    return round(x_l0 / level.downsample[0]), round(y_l0 / level.downsample[1])


def resize_tile(rgb: RGB, tile_px: int | None) -> RGB:
    """To (tile_px, tile_px), by averaging for whole factors, otherwise by an antialiased bilinear filter."""
    assert tile_px
    height, width = rgb.shape[:2]
    if (height, width) == (tile_px, tile_px):
        return rgb
    if height % tile_px == 0 and width % tile_px == 0:
        return average(rgb, (tile_px, tile_px))
    return np.asarray(Image.fromarray(rgb).resize((tile_px, tile_px), Image.Resampling.BILINEAR))
