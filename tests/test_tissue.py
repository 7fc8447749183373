from pathlib import Path

import numpy as np
import pytest
from conftest import PINK, TISSUE, squares_picture, write_tiff
from PIL import Image
from scipy import ndimage

from pathovit.errors import NoTissueError
from pathovit.settings import TissueSettings
from pathovit.slide import open_slide
from pathovit.tissue import find_tissue, segment


def segment_picture(picture: np.ndarray, um: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    return segment(picture, np.ones(picture.shape[:2], bool), (um, um), TissueSettings())


def test_the_mask_lies_on_the_tissue(squares: Path) -> None:
    with open_slide(squares) as slide:
        mask = find_tissue(slide, TissueSettings(mask_mpp=4.0))
    assert mask.downsample == (8.0, 8.0)
    x, y, width, height = (v // 8 for v in TISSUE)
    expected = np.zeros(mask.tissue.shape, bool)
    expected[y : y + height, x : x + width] = True
    border = ndimage.distance_transform_edt(~expected) - ndimage.distance_transform_edt(expected)
    assert np.abs(border[mask.tissue != expected]).max(initial=0) <= 2  # rounded corners, at most a pixel and a half beyond
    assert mask.area_mm2 == pytest.approx(0.512**2, rel=0.05)


def test_an_empty_slide_has_no_tissue(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "white.tif", np.full((1024, 1024, 3), 244, np.uint8))
    with open_slide(path) as slide, pytest.raises(NoTissueError, match=r"white.tif: no tissue found"):
        find_tissue(slide, TissueSettings())


def test_a_slide_of_ink_alone_says_so(tmp_path: Path) -> None:
    picture = np.full((1024, 1024, 3), 255, np.uint8)
    picture[300:700, 300:700] = (40, 70, 170)  # blue ink
    path = write_tiff(tmp_path / "ink.tif", picture, mpp=2.0)
    with open_slide(path) as slide, pytest.raises(NoTissueError, match=r"ink.tif: .*pen ink.*tissue.drop_pen"):
        find_tissue(slide, TissueSettings())


def test_a_scrap_of_glass_smaller_than_a_lumen_is_still_glass() -> None:
    assert not segment_picture(np.full((4, 4, 3), 244, np.uint8))[0].any()


@pytest.mark.parametrize("um", [4.0, 8.0, 16.0])
def test_dust_is_judged_in_micrometres_not_pixels(um: float) -> None:
    picture = np.full((400, 400, 3), 245, np.uint8)
    side = round(400 / um)
    picture[50 : 50 + side, 50 : 50 + side] = PINK  # 400 um
    dust = max(1, round(40 / um))
    picture[300 : 300 + dust, 300 : 300 + dust] = PINK  # 40 um
    tissue, _ = segment_picture(picture, um)
    assert tissue[50 : 50 + side, 50 : 50 + side].mean() > 0.9
    assert not tissue[290:320, 290:320].any()


@pytest.mark.parametrize(
    "ink", [(20, 40, 180), (10, 120, 80), (15, 12, 16), (225, 20, 40)], ids=["blue", "green", "black", "red"]
)
def test_pen_is_not_tissue(ink: tuple[int, int, int]) -> None:
    picture = np.full((300, 300, 3), 245, np.uint8)
    picture[50:150, 50:250] = PINK
    picture[200:230, 20:280] = ink
    tissue, pen = segment_picture(picture)
    assert pen[205:225, 25:275].mean() > 0.95
    assert not tissue[190:240].any()
    assert tissue[60:140, 60:240].all()


def test_grey_stripes_of_the_scanner_are_not_tissue() -> None:
    picture = np.full((300, 300, 3), 245, np.uint8)
    picture[:, ::20] = 232
    picture[100:200, 100:200] = PINK
    tissue, _ = segment_picture(picture)
    assert tissue[110:190, 110:190].all()
    assert not tissue[:80].any()


def test_brown_immunostain_and_blue_counterstain_are_tissue() -> None:
    picture = np.full((300, 300, 3), 245, np.uint8)
    picture[50:150, 50:150] = (150, 105, 70)  # DAB
    picture[50:150, 150:250] = (170, 175, 205)  # haematoxylin alone
    tissue, pen = segment_picture(picture)
    assert tissue[60:140, 60:240].all()
    assert not pen.any()


def test_an_unreadable_part_counts_as_tissue_so_that_its_tiles_get_a_verdict(tmp_path: Path) -> None:
    from conftest import zero_tiles

    path = write_tiff(tmp_path / "bad.tif", squares_picture(), jpeg=True, levels=(1,))
    zero_tiles(path, [0])
    with open_slide(path) as slide:
        mask = find_tissue(slide, TissueSettings())
    assert mask.unread.any()
    assert mask.tissue[mask.unread].all()


def test_pen_marks_on_real_slides_are_found(shared: Path) -> None:
    """Every one of these slides has pen on it; where on the slide it is found is not checked here, but looked at."""
    found = 0
    files = sorted((shared / "pen_marks").glob("thumbnail_*.jpg"))
    for path in files:
        with Image.open(path) as image:
            _, pen = segment_picture(np.asarray(image.convert("RGB")), 30.0)
        found += bool(pen.mean() > 0.005)
    assert found >= 0.95 * len(files)


def test_real_slides_without_pen_keep_all_their_tissue(shared: Path) -> None:
    for name in ("metaplasia_HE.svs", "PDAC-tru-cut_HE1.svs", "pancreas-adenosquamous_HE.svs"):
        with open_slide(shared / "atlas" / "1mpp" / name) as slide:
            mask = find_tissue(slide, TissueSettings())
        assert mask.pen.sum() < 0.002 * mask.tissue.sum(), name
        assert mask.area_mm2 > 3, name
