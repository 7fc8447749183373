from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from made_slides import GRAIN, MPP, PINK, PURPLE, squares_picture, zero_tiles
from PIL import Image

import pathovit
from pathovit.errors import ResolutionError, SettingsError, SlideOpenError, TileReadError
from pathovit.geometry import XY, Box
from pathovit.slides.levels import Level
from pathovit.slides.overview import read_part
from pathovit.slides.slide import composite, open_slide


def test_a_slide_is_described_with_its_pixel_size_and_where_it_came_from(squares: Path) -> None:
    with open_slide(squares) as slide:
        assert slide.size == (2048, 1536)
        assert slide.mpp == pytest.approx((MPP, MPP))
        assert slide.mpp_source == "metadata (openslide.mpp-x)"
        assert [level.downsample for level in slide.levels] == [(1, 1), (4, 4)]
        assert slide.levels[1].mpp == pytest.approx((2.0, 2.0))


def test_pixels_are_read_where_they_lie(squares: Path) -> None:
    with open_slide(squares) as slide:
        pixels, empty = slide.read(slide.levels[0], 510, 256, 4, 1)
        assert pixels[0].tolist() == [[255, 255, 255]] * 2 + [[value - GRAIN for value in PINK]] * 2
        assert empty == 0
        assert slide.read(slide.levels[1], 300, 200, 1, 1)[0][0, 0].tolist() == [value - GRAIN for value in PURPLE]


def test_without_a_pixel_size_the_message_says_what_to_do(make_squares: Callable[..., Path]) -> None:
    path = make_squares("plain.tif", mpp=None)
    with pytest.raises(ResolutionError, match=r"plain.tif: no pixel size .* Give it with --mpp"):
        open_slide(path)
    with open_slide(path, 0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "option --mpp")


def test_an_absurd_pixel_size_is_refused(make_squares: Callable[..., Path]) -> None:
    with pytest.raises(ResolutionError, match=r"mpp is 0.005 um per pixel, expected"):
        open_slide(make_squares(mpp=0.005))


@pytest.mark.parametrize("override", [0.0, -1.0, float("nan"), 1000.0])
def test_an_absurd_override_is_refused(squares: Path, override: float) -> None:
    with pytest.raises(ResolutionError, match="expected"):
        open_slide(squares, override)


def test_what_lies_outside_takes_the_background_colour_and_is_counted(squares: Path) -> None:
    with open_slide(squares) as slide:
        pixels, empty = slide.read(slide.levels[0], 2044, 0, 8, 8)
        assert empty == 0.5
        assert (pixels[:, 4:] == 255).all()


def test_half_transparent_pixels_are_laid_on_the_background() -> None:
    rgba = np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [100, 0, 0, 51]]], np.uint8)
    rgb, scanned = composite(rgba, (200, 200, 200))
    assert rgb[0].tolist() == [[100, 0, 0], [200, 200, 200], [180, 160, 160]]
    assert scanned is not None
    assert scanned[0].tolist() == [True, False, True]


def test_one_damaged_tile_does_not_spoil_the_others(make_squares: Callable[..., Path]) -> None:
    path = make_squares(jpeg=True)
    zero_tiles(path, [10])  # 8 tiles a row: row 1, column 2, x 512 to 768, y 256 to 512
    with open_slide(path) as slide:
        level = slide.levels[0]
        outcomes = []
        for y in range(0, 1536, 256):
            for x in range(0, 2048, 256):
                try:
                    slide.read(level, x, y, 256, 256)
                    outcomes.append(True)
                except TileReadError as error:
                    assert "tile 10 is damaged" in str(error)
                    outcomes.append(False)
        assert [i for i, good in enumerate(outcomes) if not good] == [10]


def test_label_and_macro_are_never_opened(maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = maker.make_slide(tmp_path, maker.SampleSpec(name="s", seed=1, size=(1500, 1500), tumour_fraction=0.2))
    assert {"label", "macro"} <= set(openslide.OpenSlide(path).associated_images)

    def opened(self: object) -> None:
        raise AssertionError("associated images were opened")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(opened))
    with open_slide(path) as slide:
        assert slide.vendor == "aperio"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_flat_images_are_slides_once_their_pixel_size_is_given(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flat{suffix}"
    Image.fromarray(squares_picture()).save(path, quality=95)
    with pytest.raises(ResolutionError, match="--mpp"):
        open_slide(path)
    with open_slide(path, 0.5) as slide:
        assert slide.size == (2048, 1536)
        assert np.abs(slide.read(slide.levels[0], 600, 300, 1, 1)[0][0, 0].astype(int) - PINK).max() <= GRAIN + 3


def test_a_text_file_named_svs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "note.svs"
    path.write_text("not a slide")
    with pytest.raises(SlideOpenError, match=r"note.svs: OpenSlide cannot open it"):
        open_slide(path)


def test_the_drift_of_truncated_levels_is_undone(shared: Path) -> None:
    with open_slide(shared / "atlas/40x/lung-squamous-cell-carcinoma_HE3_40x.svs") as slide:
        assert [level.downsample[0] for level in slide.levels] == [1, 4, 16, 64]  # OpenSlide says 4.0007, 16.01, 64.1
        fine = slide.read(slide.levels[0], 4 * 2500, 4 * 1800, 800, 800)[0].reshape(200, 4, 200, 4, 3).mean((1, 3))
        shifts = {}
        for dx in (-1, 0, 1):
            coarse = slide.read(slide.levels[1], 2500 + dx, 1800, 200, 200)[0]
            shifts[dx] = np.abs(fine - coarse).mean()
        assert min(shifts, key=shifts.__getitem__) == 0


def test_every_vendor_file_opens_or_says_why(shared: Path) -> None:
    for path in sorted(p for p in (shared / "vendor").rglob("*") if p.suffix in (".svs", ".tiff", ".tif", ".dcm")):
        try:
            open_slide(path).close()
        except (SlideOpenError, ResolutionError) as error:
            assert str(error).startswith(path.name)  # either outcome is right; the message must name the file
            assert str(path.parent) not in str(error)


class Uneven:
    """A pyramid whose second level is 3.5 times as coarse as the first, and damaged."""

    path, size, mpp, background = Path("s.svs"), (3500, 2800), (0.5, 0.5), (255, 255, 255)
    levels = (Level(0, (3500, 2800), (1.0, 1.0), (0.5, 0.5)), Level(1, (1000, 800), (3.5, 3.5), (1.75, 1.75)))

    def best_level(self, mpp: XY, tolerance: float, exact: bool = True) -> Level:
        return self.levels[1]

    def read_scanned(self, level: Level, x: int, y: int, width: int, height: int, scale: int = 1) -> tuple[np.ndarray, None]:
        if level.index:
            raise TileReadError(self.path, "damaged")
        across = np.arange(x, x + width) / 3500 * 255
        down = np.arange(y, y + height) / 2800 * 255
        return np.stack(np.broadcast_arrays(across[None], down[:, None], 0.0), 2).astype(np.uint8), None


@pytest.mark.parametrize("to_look_at", [False, True])
def test_a_sharper_level_stands_in_where_it_belongs(to_look_at: bool) -> None:
    picture, scanned, unread, scale, _ = read_part(Uneven(), 1.75, Box(0, 0, 3500, 2800), to_look_at)
    assert (picture.shape, scale) == ((800, 1000, 3), (3.5, 3.5))
    assert scanned.all()
    assert not unread.any()
    assert np.abs(picture[400, :, 0] - (np.arange(1000) + 0.5) / 1000 * 255).max() < 2
    assert np.abs(picture[:, 500, 1] - (np.arange(800) + 0.5) / 800 * 255).max() < 2


def test_a_closed_slide_is_not_read(squares: Path) -> None:
    """Its descriptor may be another file's by then."""
    slide = open_slide(squares)
    slide.close()
    slide.close()
    for read in (lambda: slide.read(slide.levels[0], 0, 0, 64, 64), slide.thumbnail):
        with pytest.raises(SettingsError, match="the slide is closed"):
            read()


@pytest.mark.parametrize("mpp", ["0.5", "11", b"1", (0.5, 0.5, 0.5), (0.5,), None.__class__, {}, "abc"])
def test_a_pixel_size_that_is_no_number_is_refused_and_not_taken_apart(mpp: Any, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a number, or two"):
        open_slide(squares, mpp=mpp)
    with pytest.raises(SettingsError, match="expected a number"):
        pathovit.run_folder(squares, tmp_path / "out", mpp=mpp, progress=False)


def test_arguments_that_cannot_be_are_named(squares: Path) -> None:
    with pytest.raises(SettingsError, match="reader is 'fast', expected auto"):
        open_slide(squares, reader="fast")
    with open_slide(squares) as slide:
        with pytest.raises(SettingsError, match="it has no level 9, but 0"):
            slide.level(9)
        with pytest.raises(SettingsError, match="longer_px is 0"):
            slide.thumbnail(0)
