"""The direct path against OpenSlide and, on the levels that OpenSlide interpolates, against tifffile."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from conftest import squares_picture, write_tiff, zero_tiles
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import PathovitError, SlideOpenError, TileReadError
from pathovit.outputs.features import TileVerdict
from pathovit.settings import TileSpec, TissueSettings, fill_spec
from pathovit.slides.readers import openjpeg
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
    from test_tiling import exact_mask

    from pathovit.run.embedder import judge_tile

    path = write_tiff(tmp_path / "bad.tif", squares_picture(), jpeg=True)
    zero_tiles(path, [10])
    truncate_tile(path, 20)
    with open_slide(path, 0.5, reader=reader) as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 256, 0.5))
        verdicts = [judge_tile(slide, grid, index)[1] for index in range(len(grid))]
    tiles = (grid.xy[:, 1] // 256 * 8 + grid.xy[:, 0] // 256).tolist()
    assert {tile for tile, verdict in zip(tiles, verdicts, strict=True) if verdict == TileVerdict.UNREADABLE} == {10, 20}


def truncate_tile(path: Path, tile: int) -> None:
    """The second half of a compressed tile becomes zeros, as after a broken transfer."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[tile], tiff.pages[0].databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(offset + count // 2)
        file.write(bytes(count - count // 2))


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
        failures += [5] * 6
        with pytest.raises(TileReadError, match="Input/output error"):
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


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """A picture with detail at every scale, as tissue has."""
    chance = np.random.default_rng(height * width)
    picture = np.full((height, width, 3), 230.0)
    for side in (4, 16, 64, 256):
        cells = chance.normal(0, 18, (-(-height // side), -(-width // side), 3))
        picture += np.kron(cells, np.ones((side, side, 1)))[:height, :width]
    return picture.clip(0, 255).astype(np.uint8)


def write_pyramid(path: Path, picture: NDArray[np.uint8], factor: int, compression: str) -> Path:
    """Levels that are means of factor x factor pixels, an odd edge rounded up; JPEG with all its colours, or lossless."""
    levels = [
        picture,
        np.asarray(Image.fromarray(picture).reduce(factor)),
        np.asarray(Image.fromarray(picture).reduce(factor**2)),
    ]
    options: dict[str, Any] = {"tile": (256, 256), "metadata": None, "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    if compression == "jpeg":
        options |= {"compressionargs": {"level": 95}, "subsampling": (1, 1), "photometric": "ycbcr"}
    if compression == "predicted":
        compression, options["predictor"] = "lzw", True
    with tifffile.TiffWriter(path) as tiff:
        for index, level in enumerate(levels):
            scale = (1e4 * level.shape[1] / (0.5 * picture.shape[1]),) * 2
            tiff.write(level, subfiletype=int(index > 0), compression=compression, resolution=scale, **options)
    return path


@pytest.mark.parametrize("compression", ["jpeg", "deflate", "predicted", "zstd", "none"])
@pytest.mark.parametrize(("height", "width", "factor"), [(1537, 2049, 2), (1536, 2048, 2), (1539, 2051, 4), (1537, 2051, 3)])
def test_a_slide_has_one_set_of_pixels_whatever_the_reader(
    tmp_path: Path, height: int, width: int, factor: int, compression: str
) -> None:
    """The level's own pixels, as tifffile decodes them, at places that lie off its tiles; OpenSlide would move and soften them."""
    path = write_pyramid(tmp_path / "p.tif", noise(height, width), factor, compression)
    for reader in ("auto", "openslide"):
        with open_slide(path, reader=reader) as slide, tifffile.TiffFile(path) as tiff:
            assert [level.downsample for level in slide.levels] == [(factor**i, factor**i) for i in range(3)]
            assert all(level.exact for level in slide.levels)
            for level in slide.levels:
                stored = tiff.pages[level.index].asarray()
                x, y = level.size[0] // 3 + 1, level.size[1] // 3 + 1
                seen, empty = slide.read(level, x, y, 70, 50)
                assert np.array_equal(seen, stored[y : y + 50, x : x + 70]), (reader, level.index)
                over, empty = slide.read(level, level.size[0] - 20, 5, 40, 10)  # half of it beyond the edge
                assert np.array_equal(over[:, :20], stored[5:15, -20:]), (reader, level.index)
                assert empty == 0.5


def test_a_level_whose_pixels_cannot_be_had_is_not_read_for_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Separate colour planes are OpenSlide's alone, and it interpolates the odd level: the sharper one is averaged."""
    picture = noise(1537, 2049)
    path = tmp_path / "planes.tif"
    with tifffile.TiffWriter(path) as tiff:
        for index, level in enumerate((picture, np.asarray(Image.fromarray(picture).reduce(2)))):
            scale = (1e4 * level.shape[1] / (0.5 * picture.shape[1]),) * 2
            tiff.write(
                np.moveaxis(level, 2, 0), tile=(256, 256), subfiletype=int(index > 0), photometric="rgb", planarconfig="separate",
                compression="deflate", metadata=None, resolution=scale, resolutionunit="CENTIMETER",
            )  # fmt: skip
    with open_slide(path) as slide:
        assert [level.exact for level in slide.levels] == [True, False]
        assert slide.best_level((1.0, 1.0), 0.02).index == 0
        assert slide.best_level((1.0, 1.0), 0.02, exact=False).index == 1


@pytest.mark.parametrize("size", [(700, 1600), (741, 555)])
def test_a_tiled_macro_is_no_level_whatever_its_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    """Of another shape; and of the slide's own shape, but with another picture."""
    macro = noise(*size)[::-1]
    picture = noise(2967, 2220)
    path = tmp_path / "macro.tif"
    with tifffile.TiffWriter(path) as tiff:
        for index, page in enumerate((picture, macro)):
            options = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER", "subfiletype": index}
            tiff.write(page, tile=(256, 256), photometric="rgb", metadata=None, **options)
    with open_slide(path) as slide:
        assert [level.index for level in slide.levels] == [0]
        assert len(slide.remarks) == 1
        assert f"its page of {size[1]} x {size[0]} pixels" in slide.remarks[0]


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_a_tile_of_which_the_decoder_complains_is_unreadable(tmp_path: Path, reader: str) -> None:
    """libjpeg warns of data that end too soon, and fills the rest with grey."""
    path = write_pyramid(tmp_path / "p.tif", noise(1536, 2048), 4, "jpeg")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[10], tiff.pages[0].databytecounts[10]
    content = bytearray(path.read_bytes())
    content[offset + count // 2 : offset + count // 2 + 2] = b"\xff\xd9"  # the end of the image, in its middle
    path.write_bytes(content)
    with open_slide(path, reader=reader) as slide:
        with pytest.raises(TileReadError, match="tile 10 is damaged"):
            slide.read(slide.levels[0], 512, 256, 256, 256)
        slide.read(slide.levels[0], 768, 256, 256, 256)


def test_damaged_jpeg_2000_is_told_from_sound(shared: Path) -> None:
    """One byte changed in each tile of a real slide: OpenJPEG by itself complains of hardly any."""
    path = shared / "vendor/CMU-1-Small-Region.jp2.tiff"
    with tifffile.TiffFile(path) as tiff:
        spans = [(o, n) for o, n in zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True) if n > 2000][:40]
    content, chance = path.read_bytes(), np.random.default_rng(0)
    found = 0
    for offset, length in spans:
        tile = bytearray(content[offset : offset + length])
        whole = openjpeg.decode(bytes(tile))
        assert np.array_equal(whole, imagecodecs.jpeg2k_decode(bytes(tile)))
        tile[int(chance.integers(300, length))] ^= 255
        try:
            openjpeg.decode(bytes(tile))
        except openjpeg.Damaged:
            found += 1
    assert found >= 0.7 * len(spans)


def test_the_check_of_block_ends_is_left_where_an_encoder_ends_them_otherwise(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared / "vendor/tcga-cr-7395-01a-01-ts1.svs"
    decode = openjpeg.decode

    def picky(coded: bytes, check_ends: bool = True) -> NDArray[np.uint8]:
        if check_ends:
            raise openjpeg.Damaged("every block of this encoder", 60)
        return decode(coded, check_ends)

    monkeypatch.setattr(openjpeg, "decode", picky)
    with open_slide(path, 1.0) as slide:
        assert slide.compressed
        assert slide.read(slide.levels[0], 0, 0, 256, 256)[0].shape == (256, 256, 3)


def test_damage_in_a_flat_jpeg_2000_file_is_found_tile_by_tile(shared: Path, tmp_path: Path) -> None:
    """A file that OpenSlide does not open is held in memory; what is damaged of it is unreadable, and the rest is not."""
    path = tmp_path / "damaged.tiff"
    content = bytearray((shared / "vendor/CMU-1-Small-Region.jp2.tiff").read_bytes())
    with tifffile.TiffFile(shared / "vendor/CMU-1-Small-Region.jp2.tiff") as tiff:
        page = tiff.pages.first
        tile = int(np.argmax(page.databytecounts))
        wide, high, columns = page.tilewidth, page.tilelength, -(-page.imagewidth // page.tilewidth)
        for at in range(page.dataoffsets[tile] + 400, page.dataoffsets[tile] + 2000, 40):
            content[at] ^= 255
    path.write_bytes(content)
    with open_slide(path, 1.0) as slide, open_slide(shared / "vendor/CMU-1-Small-Region.jp2.tiff", 1.0) as sound:
        x, y = tile % columns * wide, tile // columns * high
        with pytest.raises(TileReadError, match="damaged"):
            slide.read(slide.levels[0], x + 5, y + 5, 20, 20)
        assert np.array_equal(
            slide.read(slide.levels[0], x - 40, y, 40, 40)[0], sound.read(sound.levels[0], x - 40, y, 40, 40)[0]
        )
        mask, whole = find_tissue(slide, TissueSettings()), find_tissue(sound, TissueSettings())
        assert mask.unread.any()
        assert mask.tissue.sum() < 1.2 * whole.tissue.sum()  # not all around it
