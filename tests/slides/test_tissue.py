import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_slides import PINK, TISSUE, squares_picture, with_grain, write_tiff
from PIL import Image
from scipy import ndimage

from pathovit.errors import NoTissueError
from pathovit.settings import TissueSettings
from pathovit.slides.glass import smoothed
from pathovit.slides.overview import read_overview
from pathovit.slides.slide import open_slide
from pathovit.slides.tissue import KINDS, Segments, find_tissue, segment


def segments(picture: np.ndarray, um: float = 8.0) -> Segments:
    return segment(picture, np.ones(picture.shape[:2], bool), (um, um), TissueSettings())


def segment_picture(picture: np.ndarray, um: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Tissue and pen of a picture whose colours get the grain that tissue and ink have."""
    found = segments(grained(picture), um)
    return found.tissue, found.pen


def grained(picture: np.ndarray) -> np.ndarray:
    """The picture, every other pixel of what is not glass eight grey levels lighter or darker."""
    rows, columns = np.indices(picture.shape[:2])
    grain = np.where((rows + columns) % 2, 8, -8)[..., None] * (picture.min(-1, keepdims=True) < 190)
    return (picture.astype(int) + grain).clip(0, 255).astype(np.uint8)


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
    path = write_tiff(tmp_path / "ink.tif", with_grain(picture), mpp=2.0)
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
    from made_slides import zero_tiles

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


def real_picture(shared: Path) -> np.ndarray:
    """A real slide at 8 um per pixel: uint8 (185, 138, 3), half of it tissue."""
    with open_slide(shared / "vendor/CMU-1-Small-Region.svs") as slide:
        return read_overview(slide, 8.0)[0]


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize(
    "light", [(0.6, 0.6, 0.6), (0.45, 0.45, 0.45), (1, 0.9, 0.8), (1, 0.95, 0.7), (1, 0.8, 0.8), (0.85, 0.9, 1), (0.8, 0.7, 0.6)]
)
def test_dark_and_tinted_glass_is_glass_and_said(shared: Path, light: tuple[float, float, float]) -> None:
    picture = real_picture(shared)
    found = segments((picture * np.array(light)).astype(np.uint8))
    assert agreement(found.tissue, segments(picture).tissue) > 0.98
    assert len(found.remarks) == (0 if min(found.glass) >= 190 and max(found.glass) - min(found.glass) <= 28 else 1)
    assert all("unusual glass (colour" in said for said in found.remarks)


@pytest.mark.parametrize("colour", [(128, 128, 128), (255, 0, 255), (0, 0, 0), (200, 150, 180), (255, 255, 255)])
@pytest.mark.parametrize("light", [1.0, 0.6])
def test_what_was_filled_in_is_no_tissue(shared: Path, colour: tuple[int, int, int], light: float) -> None:
    picture = (real_picture(shared) * light).astype(np.uint8)
    height, width = picture.shape[:2]
    framed = np.empty((320, 288, 3), np.uint8)
    framed[:] = colour
    framed[60 : 60 + height, 70 : 70 + width] = picture
    found = segments(framed)
    assert agreement(found.tissue[60 : 60 + height, 70 : 70 + width], segments(picture).tissue) > 0.93
    outside = found.tissue.copy()
    outside[60 : 60 + height, 70 : 70 + width] = False
    assert not outside.any()
    assert (found.flat.sum() > 0.9 * (320 * 288 - height * width)) or colour == (255, 255, 255)


def test_a_slide_without_glass_says_so() -> None:
    chance = np.random.default_rng(0)
    picture = (np.array(PINK) + chance.normal(0, 25, (200, 200, 3))).clip(0, 255).astype(np.uint8)
    assert segments(picture).remarks == ("no clear glass was found: tissue is judged against white",)


def test_blood_within_tissue_is_no_ink_and_on_glass_it_is_spoken_of() -> None:
    picture = np.full((400, 400, 3), 245, np.uint8)
    picture[40:200, 40:360] = PINK
    picture[80:160, 100:300] = (165, 60, 80)  # blood: the densities of red ink
    picture[300:330, 40:360] = (225, 20, 40)  # red ink on glass
    found = segments(grained(picture))
    assert found.tissue[85:155, 105:295].all()
    assert not found.pen[40:200].any()
    assert found.pen[305:325, 45:355].mean() > 0.95


def test_a_dark_colourless_edge_is_left_out_and_counted() -> None:
    picture = np.full((400, 400, 3), 245, np.uint8)
    picture[100:300, 100:300] = PINK
    picture[150:160, 150:160] = (70, 70, 70)  # pigment within tissue stays
    picture[:, :30] = (125, 124, 125)  # the edge of the field
    found = segments(grained(picture))
    assert found.tissue[150:160, 150:160].all()
    assert not found.tissue[:, :40].any()
    assert found.grey[:, 2:28].mean() > 0.9


def test_what_is_left_out_has_an_area_and_a_reason(tmp_path: Path) -> None:
    picture = squares_picture()
    picture[:, 1700:] = (255, 0, 255)
    path = write_tiff(tmp_path / "filled.tif", picture)
    with open_slide(path) as slide:
        mask = find_tissue(slide, TissueSettings())
    assert mask.left_out_mm2 == {"one flat colour": pytest.approx(348 * 1536 * 0.25e-6, rel=0.05)}
    assert set(np.unique(mask.kinds())) == {KINDS.index("glass"), KINDS.index("tissue"), KINDS.index("one flat colour")}


def noisy(picture: np.ndarray) -> np.ndarray:
    return (picture + np.random.default_rng(0).normal(-6, 2, picture.shape)).clip(0, 255).astype(np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture.mean(-1, keepdims=True), 3, -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (grey, "its picture is grey"),
        (lambda picture: 255 - noisy(picture), "its background is black and its tissue bright"),
        (lambda picture: picture // 16, "its picture is dark"),
    ],
)
def test_pictures_that_are_no_stained_slides_are_refused(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    path = write_tiff(tmp_path / "odd.tif", change(squares_picture()))
    with open_slide(path) as slide, pytest.raises(NoTissueError, match=f"odd.tif: {reason}"):
        find_tissue(slide, TissueSettings())


def test_a_transparent_slide_says_that_it_is(tmp_path: Path) -> None:
    picture = np.dstack([squares_picture(), np.zeros((1536, 2048), np.uint8)])
    path = write_tiff(tmp_path / "clear.tif", picture, extrasamples=["unspecified"])
    with open_slide(path) as slide, pytest.raises(NoTissueError, match="every pixel is transparent"):
        find_tissue(slide, TissueSettings())


@pytest.mark.parametrize("pale", [(240, 222, 232), (235, 215, 230), (225, 200, 220)])
@pytest.mark.parametrize("glass", [255, 245])
def test_pale_smooth_tissue_is_not_taken_for_the_glass(pale: tuple[int, int, int], glass: int) -> None:
    """Also where the glass is saturated, and so of one exact colour."""
    chance = np.random.default_rng(0)
    picture = np.full((300, 300, 3), glass, np.uint8)
    tissue = np.array(pale) + chance.normal(0, 1.5, (150, 200, 3))
    picture[60:210, 50:250] = tissue.round().clip(0, 255)
    found = segments(picture)
    assert found.tissue[65:205, 55:245].mean() > 0.95
    assert not found.flat.any()


@pytest.mark.parametrize("quality", [50, 80])
def test_smooth_tissue_in_a_jpeg_was_not_filled_in(quality: int) -> None:
    """A block of 8 x 8 pixels may be of one colour there."""
    chance = np.random.default_rng(0)
    picture = np.full((400, 400, 3), 245.0)
    picture[80:320, 80:320] = (205, 130, 170)
    rows, columns = np.indices((400, 400))
    picture += chance.normal(0, 1.5, picture.shape) + 5 * np.sin(rows / 25)[..., None] + 5 * np.cos(columns / 35)[..., None]
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    found = segments(np.asarray(Image.open(buffer)))
    assert found.tissue[90:310, 90:310].mean() > 0.95


def test_a_small_biopsy_on_much_padding_is_neither_grey_nor_inverted(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    picture = np.zeros((2048, 2048, 3), np.uint8)
    picture[:, 1300:] = (215, 200, 170)
    noise = chance.normal(0, 2, (2048, 748, 3))
    picture[:, 1300:] = (picture[:, 1300:] + noise).clip(0, 255)
    picture[800:960, 1600:1760] = (np.array(PINK) * (0.85, 0.8, 0.7) + chance.normal(0, 20, (160, 160, 3))).clip(0, 255)
    path = write_tiff(tmp_path / "padded.tif", picture, mpp=2.0)
    with open_slide(path) as slide:
        mask = find_tissue(slide, TissueSettings())
    assert mask.area_mm2 == pytest.approx(0.32**2, rel=0.2)


@pytest.mark.parametrize("sigma", [1.5, 4.5])
def test_counts_are_smoothed_as_scipy_does(sigma: float) -> None:
    counts = np.random.default_rng(0).integers(0, 1000, 300)
    assert smoothed(counts, sigma) == pytest.approx(ndimage.gaussian_filter1d(counts.astype(float), sigma))
