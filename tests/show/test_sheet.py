"""What pictures are put together from: the file, and the view of the slide."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathovit import RESEARCH_USE
from pathovit.show.sheet import save_sheet, wrapped
from pathovit.show.views import thumbnail
from pathovit.slides.readers.compressed import CompressedTiles
from pathovit.slides.slide import open_slide


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (33, 50)])
def test_a_sheet_is_a_png_with_the_same_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    save_sheet(Image.fromarray(pixels), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()  # checks all sums
        assert np.array_equal(np.asarray(image), pixels)
        assert image.text == {"Software": "pathovit", "Comment": RESEARCH_USE}


@pytest.mark.parametrize("longer_px", [2967, 1000, 700, 370])
def test_a_view_that_was_decoded_smaller_shows_the_slide(shared: Path, longer_px: int) -> None:
    with open_slide(shared / "vendor/CMU-1-Small-Region.svs", sha256="0" * 64) as slide:
        view = thumbnail(slide, slide.bounds, longer_px)
        exact = thumbnail(replace(slide, compressed=None), slide.bounds, longer_px)
    assert view.extent == exact.extent
    assert view.picture.shape == exact.picture.shape
    assert np.abs(view.picture.astype(int) - exact.picture).mean() < 2


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "CMU-1-Small-Region.jpeg.tiff"])
def test_a_slide_that_was_compared_is_opened_the_same_without(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(shared / "vendor" / name, 0.5, sha256="0" * 64) as first:
        compared, levels, reader = first.compared, first.levels, first.reader
        pixels = first.read(first.levels[-1], 0, 0, 256, 256)[0]
    assert compared
    monkeypatch.setattr(CompressedTiles, "compare", lambda *asked, **more: pytest.fail("it is compared again"))
    with open_slide(shared / "vendor" / name, 0.5, sha256="0" * 64, compared=compared) as again:
        assert (again.compared, again.levels, again.reader) == (compared, levels, reader)
        assert np.array_equal(again.read(again.levels[-1], 0, 0, 256, 256)[0], pixels)


def test_a_line_break_in_a_name_is_a_space_on_the_sheet() -> None:
    assert wrapped("a\nb: 0.9\tx", 14, 700) == ["a b: 0.9 x"]
    assert wrapped("tumour: 0.9    tissue 4.3 mm²", 14, 700) == ["tumour: 0.9    tissue 4.3 mm²"], "room between figures stays"
