"""JPEG decoded by the encoder's device. On a CPU nvImageCodec uses libjpeg-turbo, so that its pixels must be ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_slides import MeanColourEncoder, exact_mask, squares_picture, truncate_tile, write_tiff, zero_tiles

from pathovit.errors import SettingsError, SlideError
from pathovit.outputs.features import TileVerdict
from pathovit.run.embed import make_embedder
from pathovit.run.embedder import Embedder, fetch_tile
from pathovit.settings import EmbedSettings, Settings, TileSpec, TissueSettings, fill_spec
from pathovit.slides.readers.compressed import CodedTile, Piece
from pathovit.slides.readers.device_decoder import DeviceDecoder, shrink
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, lay_grid, read_tile, resize_tile
from pathovit.slides.tissue import find_tissue

codec = pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed")
CPU = torch.device("cpu")


def embed(slide: Slide, grid: TileGrid, decoder: DeviceDecoder | None) -> list[Any]:
    with Embedder(MeanColourEncoder(tile_px=grid.spec.tile_px, mpp=0.5), 2, decoder=decoder) as embedder:
        return list(embedder.embed(slide, grid, list(range(-(-len(grid) // 16))), chunk_tiles=16, batch_tiles=4))


@pytest.mark.parametrize(("tile_px", "mpp"), [(224, 0.263), (224, 0.526), (200, 0.4)])
def test_tiles_of_a_real_slide_are_those_that_are_read(shared: Path, tile_px: int, mpp: float) -> None:
    decoder = DeviceDecoder(CPU)
    with open_slide(shared / "atlas/40x/lung-squamous-cell-carcinoma_HE3_40x.svs", sha256="0" * 64, reader="device") as slide:
        assert slide.reader == "device"
        mask = find_tissue(slide, TissueSettings())
        grid = lay_grid(slide, mask, fill_spec(TileSpec(), tile_px, mpp), max_tiles=12, scaled_decoding=False)
        coded = [fetch_tile(slide, grid, index)[0] for index in range(len(grid))]
        assert all(isinstance(tile, CodedTile) for tile in coded)
        pixels = decoder.read(slide.path, coded, grid.read_px, tile_px, pytest.fail)
        wanted = np.stack([read_tile(slide, grid, index) for index in range(len(grid))]).astype(int)
    assert np.abs(pixels.numpy() - wanted).max() <= (0 if mpp < 0.5 and tile_px == 224 else 2)
    assert np.abs(pixels.numpy() - wanted).mean() < 0.25


def test_features_and_verdicts_are_those_of_the_direct_reader(tmp_path: Path) -> None:
    """Also where compressed tiles are empty or broken, and where the grid's tiles lie across several of them."""
    path = write_tiff(tmp_path / "bad.tif", squares_picture(), jpeg=True)
    zero_tiles(path, [10])
    truncate_tile(path, 20)
    found = {}
    for reader, decoder in (("direct", None), ("device", DeviceDecoder(CPU))):
        with open_slide(path, 0.5, reader=reader) as slide:
            grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 160, 0.5))
            found[reader] = embed(slide, grid, decoder)
    for ours, theirs in zip(found["device"], found["direct"], strict=True):
        assert np.array_equal(ours[1], theirs[1], equal_nan=True)
        assert np.array_equal(ours[2], theirs[2])
    verdicts = np.concatenate([verdict for _, _, verdict in found["device"]])
    assert {TileVerdict.OK, TileVerdict.UNREADABLE} == set(verdicts)


def test_tiles_that_have_been_read_and_lost_ones_need_no_decoder(tmp_path: Path) -> None:
    decoder = DeviceDecoder(CPU)
    tile = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    broken = CodedTile([Piece(0, 0, b"no JPEG", 0, 0)], (256, 256))
    assert np.array_equal(decoder.read(tmp_path, [tile, tile], (256, 256), 128, pytest.fail), [tile, tile])
    assert np.array_equal(decoder.read(tmp_path, [broken, tile], (256, 256), 128, lambda place: None), [tile])
    assert len(decoder.read(tmp_path, [broken], (256, 256), 128, lambda place: None)) == 0


@pytest.mark.parametrize(("size", "tile_px"), [(512, 256), (384, 96), (300, 224)])
def test_the_device_averages_as_the_cpu_does(size: int, tile_px: int) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    wanted = np.stack([resize_tile(tile, tile_px) for tile in tiles]).astype(int)
    assert np.abs(shrink(torch.from_numpy(tiles), tile_px).numpy() - wanted).max() <= 1


def test_a_decoder_that_sees_other_colours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "slide.tif", squares_picture(), jpeg=True)
    decoder = DeviceDecoder(CPU)
    right = decoder._tensor
    monkeypatch.setattr(decoder, "_tensor", lambda image: right(image).flip(-1))  # BGR
    with open_slide(path, 0.5, reader="device") as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        with pytest.raises(SlideError, match="otherwise than libjpeg"):
            embed(slide, grid, decoder)


def test_what_is_decoded_is_kept_for_neighbours_but_not_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathovit.slides.readers.device_decoder.KEPT_BYTES", 6 * 256 * 256 * 3)
    path = write_tiff(tmp_path / "slide.tif", squares_picture(), jpeg=True)
    decoder = DeviceDecoder(CPU)
    with open_slide(path, 0.5, reader="device") as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        tiles = [fetch_tile(slide, grid, index)[0] for index in range(len(grid))]
        pixels = decoder.read(path, tiles, grid.read_px, 128, pytest.fail)
        assert len(decoder._kept) == 6
        assert np.array_equal(pixels[-1], read_tile(slide, grid, len(grid) - 1))


def test_where_it_cannot_be_had_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="nothing decodes JPEG on mps"):
        DeviceDecoder(torch.device("mps"))
    encoder = MeanColourEncoder(tile_px=128, mpp=0.5)
    encoder.compiled, encoder.engine = len, "openvino"
    with pytest.raises(SettingsError, match="cannot feed --engine openvino"):
        make_embedder(encoder, Settings(embed=EmbedSettings(reader="device")))
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    monkeypatch.delattr("nvidia.nvimgcodec")
    with pytest.raises(SettingsError, match=r'pip install "pathovit\[gpu\]"'):
        DeviceDecoder(CPU)


def test_a_run_says_which_reader_it_had(maker: Any, tmp_path: Path) -> None:
    slide = maker.make_slide(tmp_path, maker.SampleSpec("s", 1, (3000, 3000), tumour_fraction=0.2))
    command = [sys.executable, "-m", "pathovit", "embed", str(slide), "--out", str(tmp_path / "out"), "--reader", "device"]
    done = subprocess.run([*command, "--device", "cpu", "--max-tiles", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "out").glob("slides/*/slide.json")
    assert json.loads(found.read_text())["slide"]["reader"] == "device"


def test_a_slide_that_was_replaced_is_decoded_anew(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "slide.tif", squares_picture(), jpeg=True)
    decoder = DeviceDecoder(CPU)

    def first() -> Any:
        with open_slide(path, 0.5, reader="device") as slide:
            grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
            return embed(slide, grid, decoder)[0][1]

    before = first()
    write_tiff(path, 255 - squares_picture(), jpeg=True)
    assert not np.array_equal(first(), before, equal_nan=True)
