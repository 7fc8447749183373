"""One set of pixels whatever the reader; pages that are no levels; damage that decoders overlook."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import TileReadError
from pathovit.settings import TissueSettings
from pathovit.slides.readers import openjpeg
from pathovit.slides.slide import open_slide
from pathovit.slides.tissue import find_tissue


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


@pytest.mark.parametrize("compression", ["deflate", "packbits"])
@pytest.mark.parametrize("channels", [(3, 3), (4, 4), (3, 4), (4, 3)])
def test_another_picture_is_no_level_however_it_is_stored(channels: tuple[int, int], compression: str, tmp_path: Path) -> None:
    """Where its tiles are not read by us, OpenSlide's pixels are compared."""
    picture, other = noise(1024, 1024), noise(2048, 512)[512:1024, :512]
    for page, levels in ((other, [0]), (np.asarray(Image.fromarray(picture).reduce(2)), [0, 1])):
        path = tmp_path / "p.tif"
        with tifffile.TiffWriter(path) as tiff:
            for index, (pixels, count) in enumerate(zip((picture, page), channels, strict=True)):
                stored = np.concatenate([pixels, np.full((*pixels.shape[:2], count - 3), 255, np.uint8)], 2)
                options = {"resolution": (2e4 / (index + 1),) * 2, "resolutionunit": "CENTIMETER", "subfiletype": index}
                options |= {"extrasamples": ["unassalpha"]} if count == 4 else {}
                tiff.write(stored, tile=(256, 256), photometric="rgb", compression=compression, metadata=None, **options)
        with open_slide(path) as slide:
            assert [level.index for level in slide.levels] == levels
            assert len(slide.remarks) == 2 - len(levels)


def test_levels_of_one_colour_are_levels(tmp_path: Path) -> None:
    """Nothing on them tells one picture from another."""
    path = write_pyramid(tmp_path / "flat.tif", np.full((1536, 2048, 3), (200, 120, 180), np.uint8), 4, "jpeg")
    with open_slide(path) as slide:
        assert len(slide.levels) == 3
        assert slide.remarks == ()


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
