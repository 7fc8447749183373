from pathlib import Path

import numpy as np
import pytest
from made_slides import GRAIN, PINK, PURPLE, exact_mask

from pathovit.errors import NoTissueError, ResolutionError, SettingsError
from pathovit.settings import TileSpec, TissueSettings, fill_spec
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, lay_grid, read_tile
from pathovit.slides.tissue import TissueMask, find_tissue


def lay(path: Path, spec: TileSpec, **options: int) -> tuple[TileGrid, Slide]:
    slide = open_slide(path)
    return lay_grid(slide, exact_mask(slide), spec, **options), slide


def test_tiles_lie_row_by_row_on_the_tissue(squares: Path) -> None:
    grid, _ = lay(squares, fill_spec(TileSpec(), 256, 0.5))
    assert len(grid) == 16
    assert grid.xy[:5].tolist() == [[512, 256], [768, 256], [1024, 256], [1280, 256], [512, 512]]
    assert (grid.coverage == 1).all()
    assert grid.tile_l0 == (256.0, 256.0)


def test_coverage_is_the_share_of_the_tile_on_tissue(squares: Path) -> None:
    grid, _ = lay(squares, fill_spec(TileSpec(min_coverage=0.2), 384, 0.5))
    by_corner = dict(zip(map(tuple, grid.xy.tolist()), grid.coverage.tolist(), strict=True))
    assert by_corner[(384, 0)] == pytest.approx((384 - 128) * (384 - 256) / 384**2)  # right and lower part only
    assert by_corner[(768, 384)] == 1


def test_a_tile_on_the_edge_is_whole_or_not_laid(squares: Path) -> None:
    slide = open_slide(squares)
    mask = exact_mask(slide)
    mask.tissue[:] = True
    grid = lay_grid(slide, mask, fill_spec(TileSpec(), 300, 0.5))
    assert (grid.xy + 300 <= np.array(slide.size)).all()
    assert len(grid) == (2048 // 300) * (1536 // 300)


def test_half_the_resolution_reads_twice_the_pixels_and_averages(squares: Path) -> None:
    grid, slide = lay(squares, fill_spec(TileSpec(), 128, 1.0))
    assert (grid.read_level, grid.read_px) == (0, (256, 256))
    last = len(grid) - 1
    assert read_tile(slide, grid, 0)[0, 0].tolist() == [value - GRAIN for value in PINK]
    assert read_tile(slide, grid, last)[64, 64].tolist() == [value - GRAIN for value in PURPLE]
    assert read_tile(slide, grid, 0).mean((0, 1)) == pytest.approx(PINK)


def test_the_coarsest_level_that_is_sharp_enough_is_read(squares: Path) -> None:
    grid, _ = lay(squares, fill_spec(TileSpec(), 64, 2.0))
    assert (grid.read_level, grid.read_px, grid.tile_l0) == (1, (64, 64), (256.0, 256.0))


def test_a_level_within_two_percent_is_read_as_it_is_and_beyond_it_exactly(squares: Path) -> None:
    snapped, _ = lay(squares, fill_spec(TileSpec(), 100, 0.508))
    assert snapped.tile_l0 == (100.0, 100.0)
    exact, _ = lay(squares, fill_spec(TileSpec(), 100, 0.55))
    assert exact.tile_l0 == pytest.approx((110.0, 110.0))


def test_a_slide_too_coarse_fails_with_both_figures_unless_upsampling_is_accepted(squares: Path) -> None:
    with pytest.raises(ResolutionError, match=r"0.5 um per pixel, and the encoder needs 0.25.*--max-upsampling 2"):
        lay(squares, fill_spec(TileSpec(), 256, 0.25))
    grid, slide = lay(squares, fill_spec(TileSpec(max_upsampling=2.0), 256, 0.25))
    assert grid.upsampled == pytest.approx(2.0)
    assert read_tile(slide, grid, 0).shape == (256, 256, 3)


def test_overlapping_tiles_have_their_own_stride(squares: Path) -> None:
    grid, _ = lay(squares, fill_spec(TileSpec(stride_px=128), 256, 0.5))
    assert grid.xy[1, 0] - grid.xy[0, 0] == 128
    assert grid.lattice()[0].tolist() == [3, 1]  # a quarter of the tile beyond the tissue's edge on both axes is covered 1/4


def test_a_stride_that_leaves_gaps_or_broken_cells_is_refused() -> None:
    for stride in (100, 512):
        with pytest.raises(SettingsError, match="it must divide tile_px"):
            fill_spec(TileSpec(stride_px=stride), 256, 0.5)


def test_a_cap_spreads_over_the_grid(squares: Path) -> None:
    grid, _ = lay(squares, fill_spec(TileSpec(), 64, 0.5), max_tiles=5)
    assert len(grid) == 5
    assert grid.xy[0].tolist() == [512, 256]
    assert grid.xy[-1].tolist() == [1472, 1216]


def test_tissue_smaller_than_a_quarter_tile_says_so(squares: Path) -> None:
    slide = open_slide(squares)
    mask = exact_mask(slide)
    mask.tissue[:] = False
    mask.tissue[40:42, 80:82] = True
    with pytest.raises(NoTissueError, match=r"no tile of 128 um has 25% tissue"):
        lay_grid(slide, mask, fill_spec(TileSpec(), 256, 0.5))


def test_a_tile_the_scanner_left_empty_is_no_tile(squares: Path) -> None:
    grid, slide = lay(squares, fill_spec(TileSpec(), 256, 0.5))
    outside = TileGrid(**{**vars(grid), "xy": np.array([[1900, 0]])})
    assert read_tile(slide, outside, 0) is None


def test_the_real_mask_and_the_exact_one_lay_the_same_tiles(squares: Path) -> None:
    with open_slide(squares) as slide:
        spec = fill_spec(TileSpec(min_coverage=0.5), 256, 0.5)
        found = lay_grid(slide, find_tissue(slide, TissueSettings()), spec)
        assert found.xy.tolist() == lay_grid(slide, exact_mask(slide), spec).xy.tolist()


@pytest.mark.parametrize("downsample", [32.0, 18.0, 20.0])
def test_only_tiles_at_what_was_never_scanned_are_left_out(squares: Path, downsample: float) -> None:
    """Whatever the mask's pixel and the tile's side are: sums of fractions are not exact."""
    slide = open_slide(squares)
    shape = (int(slide.size[1] // downsample) + 1, int(slide.size[0] // downsample) + 1)
    everywhere, none = np.ones(shape, bool), np.zeros(shape, bool)
    scanned = everywhere.copy()
    scanned[:, : int(400 // downsample)] = False
    picture = np.zeros((*shape, 3), np.uint8)
    mask = TissueMask(everywhere, none, none, (downsample,) * 2, (1.0, 1.0), picture, scanned, none, none)
    whole = TissueMask(everywhere, none, none, (downsample,) * 2, (1.0, 1.0), picture, everywhere, none, none)
    for mpp in (0.6013, 0.5, 0.7207):
        spec = fill_spec(TileSpec(), 64, mpp)
        found, full = (lay_grid(slide, one, spec).xy for one in (mask, whole))
        beyond = (int(400 // downsample) + 1) * downsample  # the mask's pixel beside it counts as unscanned, too
        assert found.tolist() == [xy for xy in full.tolist() if xy[0] >= beyond - 1e-6]
