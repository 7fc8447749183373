"""The direct path against OpenSlide and, on the levels that OpenSlide interpolates, against tifffile."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from made_slides import squares_picture, truncate_tile, write_tiff, zero_tiles
from numpy.typing import NDArray

from pathovit.errors import PathovitError, SlideOpenError
from pathovit.files import TRIES
from pathovit.outputs.features import TileVerdict
from pathovit.settings import TileSpec, TissueSettings, fill_spec
from pathovit.slides.readers.compressed import CompressedTiles, TiledLevel, locate_tiles
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import lay_grid, read_tile
from pathovit.slides.tissue import find_tissue

REAL_40X = "atlas/40x/lung-squamous-cell-carcinoma_HE3_40x.svs"


def real_slides(shared: Path) -> list[Path]:
    return sorted(p for p in shared.rglob("*") if p.suffix in (".svs", ".tif", ".tiff"))


def opened(path: Path, reader: str, mpp: float = 0.5) -> Slide | None:
    try:
        return open_slide(path, mpp, sha256="0" * 64, reader=reader)
    except PathovitError:
        return None


def test_level_0_of_every_slide_equals_openslide_bit_for_bit(shared: Path) -> None:
    chance, direct = np.random.default_rng(0), 0
    for path in real_slides(shared):
        slide = opened(path, "direct")
        if slide is None:
            continue
        direct += 1
        with slide, openslide.OpenSlide(path) as plain:
            for _ in range(8):
                width, height = (int(min(chance.integers(1, 600), side)) for side in slide.size)
                x, y = int(chance.integers(0, slide.size[0] - width + 1)), int(chance.integers(0, slide.size[1] - height + 1))
                ours, empty = slide.read(slide.levels[0], x, y, width, height)
                assert empty == 0
                assert np.array_equal(ours, np.asarray(plain.read_region((x, y), 0, (width, height)))[..., :3]), path.name
    assert direct >= 20


def test_lower_levels_are_the_stored_pixels(shared: Path) -> None:
    """OpenSlide moves them by parts of a pixel (4.0007 for a true 4), and its interpolation blurs them."""
    compared = 0
    for path in real_slides(shared):
        slide = opened(path, "direct")
        if slide is None:
            continue
        with slide, tifffile.TiffFile(path) as tiff:
            for level in slide.levels[1:]:
                page = next(p for p in tiff.pages if p.is_tiled and (p.imagewidth, p.imagelength) == level.size)
                assert np.array_equal(slide.read(level, 0, 0, *level.size)[0], page.asarray()), path.name
                compared += 1
    assert compared >= 30


def test_both_readers_find_the_same_tiles_on_every_slide(shared: Path) -> None:
    for path in real_slides(shared):
        found = {}
        for reader in ("auto", "openslide"):
            slide = opened(path, reader)
            if slide is None:
                continue
            with slide:
                try:
                    grid = lay_grid(slide, find_tissue(slide, TissueSettings()), fill_spec(TileSpec(), 224, 0.5))
                except PathovitError as error:
                    found[reader] = str(error)
                    continue
                some = np.linspace(0, len(grid) - 1, 5).astype(int)
                found[reader] = [grid.xy.tolist(), [read_tile(slide, grid, index) is not None for index in some]]
        assert found.get("auto") == found.get("openslide"), path.name


@pytest.mark.parametrize(("asked_mpp", "scale"), [(0.526, 2), (1.052, 4)])
def test_scaled_decoding_is_close_to_averaging_all_pixels(shared: Path, asked_mpp: float, scale: int) -> None:
    tiles = {}
    for scaled in (True, False):
        with open_slide(shared / REAL_40X, sha256="0" * 64, reader="direct") as slide:
            only = replace(slide, levels=slide.levels[:1])
            spec = fill_spec(TileSpec(), 128, asked_mpp)
            grid = lay_grid(only, find_tissue(slide, TissueSettings()), spec, max_tiles=40, scaled_decoding=scaled)
            assert (grid.read_scale, grid.read_px) == (scale if scaled else 1, (128 * scale, 128 * scale))
            tiles[scaled] = np.stack([read_tile(only, grid, index) for index in range(len(grid))]).astype(int)
    difference = np.abs(tiles[True] - tiles[False])
    assert 0 < difference.mean() < 0.5
    assert np.percentile(difference, 99) <= 3


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_scaled_rectangle_is_where_the_whole_one_is(make_squares: Callable[..., Path], scale: int) -> None:
    """The pink square begins at x 512, y 256, and a block of it is found at those places, divided by the scale."""
    with open_slide(make_squares(jpeg=True), reader="direct") as slide:
        pixels, empty = slide.read(slide.levels[0], 256, 0, 1024, 512, scale)
        wanted = squares_picture()[0:512, 256:1280].reshape(512 // scale, scale, 1024 // scale, scale, 3).mean((1, 3))
        assert (pixels.shape, empty) == (wanted.shape, 0)
        assert np.abs(pixels - wanted).mean() < 1


def test_what_lies_beyond_the_edge_is_left_to_openslide(make_squares: Callable[..., Path]) -> None:
    with open_slide(make_squares(jpeg=True), reader="direct") as slide:
        pixels, empty = slide.read(slide.levels[0], 2044, 0, 8, 8)
        assert (pixels.shape, empty) == ((8, 8, 3), 0.5)


@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_missing_and_damaged_tiles_get_the_same_verdicts(tmp_path: Path, reader: str) -> None:
    from made_slides import exact_mask

    from pathovit.run.embedder import judge_tile

    path = write_tiff(tmp_path / "bad.tif", squares_picture(), jpeg=True)
    zero_tiles(path, [10])
    truncate_tile(path, 20)
    with open_slide(path, 0.5, reader=reader) as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 256, 0.5))
        verdicts = [judge_tile(slide, grid, index)[1] for index in range(len(grid))]
    tiles = (grid.xy[:, 1] // 256 * 8 + grid.xy[:, 0] // 256).tolist()
    assert {tile for tile, verdict in zip(tiles, verdicts, strict=True) if verdict == TileVerdict.UNREADABLE} == {10, 20}


def test_tiles_that_do_not_agree_with_openslide_are_not_read_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    path = write_tiff(tmp_path / "noise.tif", picture, jpeg=True)
    assert open_slide(path).reader == "direct"

    def misplaced(path: Path, sizes: list[tuple[int, int]]) -> dict[int, TiledLevel]:
        levels = locate_tiles(path, sizes)
        return {i: replace(level, offsets=level.offsets[::-1], lengths=level.lengths[::-1]) for i, level in levels.items()}

    monkeypatch.setattr("pathovit.slides.slide.locate_tiles", misplaced)
    assert open_slide(path).reader == "openslide"


def test_jpeg_2000_is_decoded_whole_and_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j2k.svs"
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    described = "Aperio Image Library v1\r\n1024x768 [0,0 1024x768] (256x256) J2K/KDU Q=70|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            picture, tile=(256, 256), photometric="rgb", compression="APERIO_JP2000_RGB", compressionargs={"level": 0},
            description=described, metadata=None,
        )  # fmt: skip
    with open_slide(path, reader="direct") as slide:
        monkeypatch.setattr(slide._source, "read", pytest.fail)
        pixels, _ = slide.read(slide.levels[0], 256, 0, 512, 256, 2)
        wanted = picture[0:256, 256:768].reshape(128, 2, 256, 2, 3).mean((1, 3))
        assert np.abs(pixels - wanted).max() <= 1


def test_a_read_that_fails_for_a_moment_is_tried_again(
    make_squares: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, failures = os.pread, [5, 5, 116]

    def fail(*args: int) -> bytes:
        if failures:
            raise OSError(failures.pop(), "Input/output error")
        return pread(*args)

    with open_slide(make_squares(jpeg=True), reader="direct") as slide:
        whole, _ = slide.read(slide.levels[0], 0, 0, 256, 256)
        assert slide.compressed
        slide.compressed.forget()
        monkeypatch.setattr("pathovit.files.os.pread", fail)
        monkeypatch.setattr("pathovit.files.FIRST_PAUSE_S", 0)
        again, _ = slide.read(slide.levels[0], 0, 0, 256, 256)
        assert np.array_equal(again, whole)
        slide.compressed.forget()
        failures += [5] * TRIES
        with pytest.raises(SlideOpenError, match="Input/output error"):
            slide.read(slide.levels[0], 0, 0, 256, 256)


def test_levels_of_a_philips_slide_are_cut_to_size(tmp_path: Path) -> None:
    """Its pages are filled up to whole tiles and say so; two of these have the same size."""
    path = write_philips(tmp_path / "philips.tiff", squares_picture()[:1536], levels=(1, 2, 4, 8, 16))
    with open_slide(path) as slide, openslide.OpenSlide(path) as plain:
        assert (slide.vendor, slide.reader, slide.mpp) == ("philips", "direct", (0.5, 0.5))
        assert [level.size for level in slide.levels] == [(2048, 1536), (1024, 768), (512, 384), (256, 192), (128, 96)]
        assert slide.compressed
        assert sorted(slide.compressed.levels) == [0, 1, 2, 3, 4]
        for level in slide.levels:
            ours = slide.compressed.read(level.index, 0, 0, *level.size)
            assert np.array_equal(ours, np.asarray(plain.read_region((0, 0), level.index, level.size))[..., :3])
            assert slide.compressed.read(level.index, 1, 0, *level.size) is None  # what fills the page up is no slide


def write_philips(path: Path, picture: NDArray[np.uint8], levels: tuple[int, ...]) -> Path:
    representation = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">'
        f"&quot;{factor * 0.0005:.6f}&quot; &quot;{factor * 0.0005:.6f}&quot;</Attribute></DataObject>"
        for factor in levels
    )
    description = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">'
        '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING">"0.000500" "0.000500"</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{representation}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path) as tiff:
        for index, factor in enumerate(levels):
            level = picture[::factor, ::factor]
            filled = np.full((-(-level.shape[0] // 512) * 512, -(-level.shape[1] // 512) * 512, 3), 255, np.uint8)
            filled[: level.shape[0], : level.shape[1]] = level
            tiff.write(
                filled, tile=(512, 512), photometric="ycbcr", compression="jpeg", subfiletype=int(index > 0), metadata=None,
                software="Philips DP v1.0" if index == 0 else None, description=description if index == 0 else None,
            )  # fmt: skip
    return path


def test_the_reader_can_be_forced(make_squares: Callable[..., Path]) -> None:
    path = make_squares(jpeg=True)
    assert open_slide(path, reader="openslide").reader == "openslide"
    assert open_slide(make_squares("lossless.tif")).reader == "direct"
    planes = make_squares("planes.tif", planarconfig="separate")
    assert open_slide(planes).reader == "openslide"
    with pytest.raises(SlideOpenError, match="planes.tif: it does not hold its pyramid as plain tiles"):
        open_slide(planes, reader="direct")


def test_neighbours_share_decoded_tiles_and_the_memory_is_bounded(
    make_squares: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_squares(jpeg=True)
    decoded: list[int] = []
    decode = CompressedTiles.decode
    monkeypatch.setattr(CompressedTiles, "decode", lambda self, *a: (decoded.append(a[1]), decode(self, *a))[1])
    tiles = CompressedTiles(path, locate_tiles(path, [(2048, 1536), (512, 384)]))
    for x in range(0, 1024, 64):
        tiles.read(0, x, 100, 128, 128)
    assert sorted(decoded) == [0, 1, 2, 3, 4]
    monkeypatch.setattr("pathovit.slides.readers.compressed.KEPT_BYTES", 2 * 256 * 256 * 3)
    tiles.read(0, 0, 0, 2048, 1536)
    assert len(tiles._kept) == 2
    tiles.close()
