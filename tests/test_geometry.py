import numpy as np
from pytest import approx

from pathovit.geometry import area_mm2, box_fraction, integral_image, l0_per_px


def test_one_pixel_at_one_um_spans_four_level0_pixels_at_a_quarter_um() -> None:
    assert l0_per_px(1.0, (0.25, 0.5)) == (4.0, 2.0)


def test_a_million_pixels_of_one_um_are_one_square_millimetre() -> None:
    assert area_mm2(1_000_000, (1.0, 1.0)) == approx(1.0)


def test_box_fraction_is_exact_between_mask_pixels() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True  # covers 1 to 3 on both axes
    xy = np.array([[1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [2.5, 2.5]])
    # 2 x 2 boxes: all inside; one of four; 1.5 x 1.5 of four; half x half of four
    assert box_fraction(integral_image(mask), xy, (2.0, 2.0)) == approx([1.0, 0.25, 2.25 / 4, 0.25 / 4])


def test_a_box_beyond_the_mask_is_background_there() -> None:
    mask = np.ones((4, 4), bool)
    assert box_fraction(integral_image(mask), np.array([[3.0, 0.0]]), (2.0, 2.0)) == approx([0.5])
