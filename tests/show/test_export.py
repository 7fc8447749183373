"""What other programs are given: read back by their own readers where these can be installed, else by what their readers check."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr
from made_runs import folder_of
from scipy.stats import spearmanr
from typer.testing import CliRunner

from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.encoders import known_record
from pathovit.encoders.elsewhere import IN_STAMP, IN_TRIDENT
from pathovit.errors import SettingsError, StorageError
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore
from pathovit.show.export.formats import FORMATS, export
from pathovit.show.export.hdf5 import nominal_magnification
from pathovit.show.export.slides import ExportedSlide
from pathovit.show.ome_tiff import read_ome_tiff
from pathovit.show.qupath import read_annotations
from pathovit.slides.slide import open_slide
from pathovit.slides.tiling import read_tile


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, words)], catch_exceptions=False)


@pytest.fixture
def one(finished: Path) -> tuple[str, SlideFeatures]:
    """The slide called `one`: its id, and what is stored of it."""
    folder = OutFolder(finished).slide(folder_of(finished, "one").name)
    return folder.slide_id, FeatureStore(folder, Path("one.svs")).read()


def test_every_format_writes_every_slide_and_says_which_is_which(finished: Path, tmp_path: Path) -> None:
    ids = {folder.slide_id for folder in OutFolder(finished).slides()}
    for to in (to for to, format in FORMATS.items() if not format.whole and not format.of_files and to != "spatialdata"):
        done = call(finished, "--to", to, "--folder", tmp_path / to)
        assert done.exit_code == 0, done.output
        assert f"3 slides written to {tmp_path / to}" in done.stderr
        with (tmp_path / to / "slides.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {row["slide_id"] for row in rows} == {row["name"] for row in rows} == ids
        assert not any(row["file"] for row in rows), "names stay where they are"
        for name in ids:
            assert any(path.name.startswith(name) for path in (tmp_path / to).rglob("*")), (to, name)
        assert not list((tmp_path / to).rglob("*.partial"))


def test_trident_finds_features_and_tiles_as_it_would_have_laid_them(
    finished: Path, one: tuple[str, SlideFeatures], tmp_path: Path
) -> None:
    name, stored = one
    assert call(finished, "--to", "trident", "--folder", tmp_path).exit_code == 0
    here = tmp_path / "10x_96px_0px_overlap"
    with h5py.File(here / "features_reference" / f"{name}.h5") as file:
        assert file["features"].dtype == np.float32
        assert np.array_equal(file["features"][:], stored.features[stored.ok].astype(np.float32))
        assert file["coords"].dtype == np.int64
        assert np.array_equal(file["coords"][:], stored.xy[stored.ok])
        about = dict(file["coords"].attrs)
        assert (about["level0_width"], about["level0_height"]) == stored.attributes.level0_size
        assert int(about["patch_size_level0"]) == round(stored.tile_l0[0])
        assert (about["patch_size"], about["overlap"]) == (96, 0)
        assert (about["mpp_x"], about["target_mpp"]) == (stored.mpp[0], 1.0)
    with h5py.File(here / "patches" / f"{name}_patches.h5") as file:  # read_coords, which --task feat needs
        attrs, coords = dict(file["coords"].attrs), file["coords"][:]
        assert None not in [attrs.get(key) for key in ("patch_size", "level0_magnification", "target_magnification")]
        assert np.array_equal(coords, stored.xy[stored.ok])
        assert attrs["target_magnification"] == 10


def test_clam_reads_tensors_by_name_and_tiles_by_level(finished: Path, one: tuple[str, SlideFeatures], tmp_path: Path) -> None:
    name, stored = one
    assert call(finished, "--to", "clam", "--folder", tmp_path, "--names", "stem").exit_code == 0
    tensor = torch.load(tmp_path / "pt_files" / "one.pt", weights_only=True)
    assert np.array_equal(tensor.numpy(), stored.features[stored.ok].astype(np.float32))
    with h5py.File(tmp_path / "h5_files" / "one.h5") as file:
        assert np.array_equal(file["features"][:], tensor.numpy())
        assert file["coords"].dtype == np.int32
        about = file["coords"].attrs
        assert (about["patch_level"], about["patch_size"]) == (0, round(stored.tile_l0[0]))
        assert tuple(about["level_dim"]) == stored.attributes.level0_size
        assert np.array_equal(file["coords"][:], stored.xy[stored.ok])
    with (tmp_path / "slides.csv").open() as file:
        assert {row["name"]: row["slide_id"] for row in csv.DictReader(file)}["one"] == name


def test_stamp_finds_micrometres(finished: Path, one: tuple[str, SlideFeatures], tmp_path: Path) -> None:
    """The checks of `get_coords` and `_read_h5` of STAMP 2.1 and later."""
    name, stored = one
    assert call(finished, "--to", "stamp", "--folder", tmp_path).exit_code == 0
    with h5py.File(tmp_path / f"{name}.h5") as file:
        about = dict(file.attrs)
        assert about["unit"] == "um"
        assert about["stamp_version"] == "2.1.0"
        assert about["extractor"] == "reference"
        assert about["feat_type"] == "tile"
        assert about["tile_size_um"] / about["tile_size_px"] == pytest.approx(stored.tile_l0[0] * stored.mpp[0] / 96)
        back = file["coords"][:] / np.asarray(stored.mpp)
        assert np.abs(back - stored.xy[stored.ok]).max() < 0.01, "level-0 pixels"
        assert np.array_equal(file["feats"][:], stored.features[stored.ok])


def test_tables_hold_every_tile_and_what_the_map_shows_of_it(
    finished: Path, one: tuple[str, SlideFeatures], tmp_path: Path
) -> None:
    parquet, anndata = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("anndata")
    name, stored = one
    for to in ("csv", "parquet", "anndata"):
        assert call(finished, "--to", to, "--folder", tmp_path).exit_code == 0
    names, layers = read_ome_tiff(folder_of(finished, "one") / "heatmap.ome.tiff")
    column, row = stored.grid.lattice().T
    scores = layers[names.index("score: tumour")][row, column]
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[int(row["x"]), int(row["y"])] for row in rows] == stored.xy.tolist()
    assert [float(row["score: tumour"]) for row in rows] == pytest.approx(scores.tolist(), rel=1e-5)
    assert {row["verdict"] for row in rows} == {"ok"}
    table = parquet.read_table(tmp_path / f"{name}.parquet")
    assert np.array_equal(np.stack(table["features"].to_numpy()), stored.features)
    assert np.array_equal(table["score: tumour"].to_numpy(), scores)
    assert table.schema.metadata[b"slide_id"].decode() == name
    found = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
    assert np.array_equal(found.X, stored.features[stored.ok].astype(np.float32))
    assert np.allclose(found.obsm["spatial"], stored.centres_um()[stored.ok])
    assert np.array_equal(found.obs["score: tumour"].to_numpy(), scores[stored.ok])
    assert found.uns["pathovit"]["encoder"] == "reference"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_valid_and_lies_where_the_tiles_are(
    version: str, finished: Path, one: tuple[str, SlideFeatures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, stored = one
    monkeypatch.setattr("pathovit.show.export.ome_zarr.SMALLEST_PX", 8)
    assert call(finished, "--to", "ome-zarr" if version == "0.5" else "ome-zarr-0.4", "--folder", tmp_path).exit_code == 0
    group = zarr.open_group(tmp_path / f"{name}.ome.zarr", mode="r")
    assert group.metadata.zarr_format == (3 if version == "0.5" else 2)
    about = group.attrs["ome"] if version == "0.5" else group.attrs
    (scales,) = about["multiscales"]
    sharpest = scales["datasets"][0]["coordinateTransformations"]
    scale, shift = np.asarray(sharpest[0]["scale"][1:]), np.asarray(sharpest[1]["translation"][1:])
    names, layers = read_ome_tiff(folder_of(finished, "one") / "heatmap.ome.tiff")
    assert np.array_equal(group["0"][:], layers, equal_nan=True)
    assert [channel["label"] for channel in about["omero"]["channels"]] == list(names)
    column, row = stored.grid.lattice().T
    centres = np.stack([column * scale[1] + shift[1], row * scale[0] + shift[0]], 1)
    assert np.abs(centres - stored.centres_um()).max() < 1.0, "micrometres"
    second = scales["datasets"][1]["coordinateTransformations"]
    assert np.allclose(second[0]["scale"][1:], 2 * scale)
    assert np.allclose(second[1]["translation"][1:], shift + scale / 2)
    cells = group["labels/regions/0"][:]
    hot = layers[names.index("score: tumour")] >= 0.5
    assert np.array_equal(cells > 0, hot)
    assert hot.any()
    if version == "0.4":
        assert group["0"].metadata.dimension_separator == "/"
        assert group["0"].metadata.compressor.codec_id == "zlib"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_what_the_models_of_its_specification_say(version: str, finished: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models")
    assert call(finished, "--to", "ome-zarr" if version == "0.5" else "ome-zarr-0.4", "--folder", tmp_path).exit_code == 0
    paths = list(tmp_path.glob("*.ome.zarr"))
    assert len(paths) == 3
    for path in paths:
        image = models.open_ome_zarr(zarr.open_group(path, mode="r"))
        assert type(image).__name__ == "Image"
        assert image.ome_zarr_version == version
        labels = models.open_ome_zarr(zarr.open_group(path / "labels" / "regions", mode="r"))
        assert type(labels).__name__ == "ImageLabel"


def test_two_slides_of_one_name_are_refused_before_anything_is_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutFolder, "name_of", lambda self, known: "Same.svs" if "one" not in known else "same.tiff")
    with pytest.raises(SettingsError, match=r"Same.svs.*same.tiff|would be one file.*Nothing was written. Use --names id"):
        export(OutFolder(finished), "clam", tmp_path / "made", "stem")
    assert not (tmp_path / "made").exists()
    monkeypatch.setattr(OutFolder, "name_of", lambda self, known: "")
    with pytest.raises(SettingsError, match="is not known here"):
        export(OutFolder(finished), "clam", tmp_path / "made", "stem")


def test_a_file_is_whole_or_not_there(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for to in ("trident", "csv", "ome-zarr"):
        assert call(finished, "--to", to, "--folder", tmp_path / to).exit_code == 0
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / to).rglob("*") if path.is_file()}

        def full(*given: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("pathovit.files.fsync", full)
            with pytest.raises(StorageError, match="cannot be written"):
                export(OutFolder(finished), to, tmp_path / to)
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / to).rglob("*") if path.is_file()}


def test_wsinfer_gets_a_network_that_says_of_a_tile_what_the_map_does(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    done = call(finished, "--to", "wsinfer", "--folder", tmp_path)
    assert done.exit_code == 0, done.output
    assert re.search(
        r"each tile is seen alone: on slides left out its rank correlation to our map is 0\.\d\d \(\d+ tiles of 3 slides\)",
        done.stderr,
    )
    config = json.loads((tmp_path / "config.json").read_text())
    network = torch.jit.load(tmp_path / "torchscript_model.pt")
    assert config["class_names"] == ["normal", "tumour"]
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (96, 1.0)
    stored = FeatureStore(OutFolder(finished).slide(folder_of(finished, "one").name), Path("one.svs")).read()
    names, layers = read_ome_tiff(folder_of(finished, "one") / "heatmap.ome.tiff")
    column, row = stored.grid.lattice().T
    shown = layers[names.index("score: tumour")][row, column]
    with open_slide(slides[0]) as slide:
        tiles = np.stack([read_tile(slide, stored.grid, index) for index in range(len(stored.xy))])
    steps = {step["name"]: step.get("arguments", {}) for step in config["transform"]}
    assert steps["Resize"] == {"size": 96}
    mean, std = (torch.tensor(steps["Normalize"][key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        chances = torch.softmax(network((torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - mean) / std), 1)[:, 1].numpy()
    assert spearmanr(chances, shown).statistic > 0.7
    assert ((chances > 0.5) == (shown > 0.5)).mean() > 0.9


def test_the_config_is_what_the_schema_of_wsinfer_asks_for(finished: Path, tmp_path: Path) -> None:
    schemas = pytest.importorskip("wsinfer_zoo.client")
    assert call(finished, "--to", "wsinfer", "--folder", tmp_path).exit_code == 0
    assert schemas.validate_config_json(json.loads((tmp_path / "config.json").read_text()))


def test_a_map_that_single_tiles_say_nothing_of_is_not_given_to_wsinfer(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = np.random.default_rng(0)
    monkeypatch.setattr(
        ExportedSlide,
        "measured",
        property(lambda self: {"score: tumour": chance.random(len(self.features.xy)).astype(np.float32)}),
    )
    done = CliRunner().invoke(app, ["export", str(finished), "--to", "wsinfer", "--folder", str(tmp_path / "none")])
    assert "a tile by itself says too little of this map" in str(done.exception)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"score: tumour": lambda tiles: np.full(tiles, 0.3)}, "a tile by itself says too little of this map"),
        (
            {"score: a": lambda tiles: np.full(tiles, 0.1), "score: b": lambda tiles: np.linspace(0, 0.2, tiles)},
            "this model scores each class by itself",
        ),
    ],
)
def test_maps_that_wsinfer_cannot_show_are_not_given_to_it(
    layers: dict[str, Any], said: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(self: ExportedSlide) -> dict[str, Any]:
        return {name: values(len(self.features.xy)).astype(np.float32) for name, values in layers.items()}

    monkeypatch.setattr(ExportedSlide, "measured", property(shown))
    done = CliRunner().invoke(app, ["export", str(finished), "--to", "wsinfer", "--folder", str(tmp_path / "none")])
    assert said in str(done.exception)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["heatmap.geojson", "heatmap.geojson.gz"])
def test_a_slide_whose_map_is_torn_fails_alone(name: str, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    whole = (folder_of(out, "one") / "heatmap.geojson").read_bytes()
    (folder_of(out, "one") / "heatmap.geojson").unlink()
    torn = gzip.compress(whole)[:600] if name.endswith(".gz") else whole[: whole.index(b"annotation") - 300]
    (folder_of(out, "one") / name).write_bytes(torn)
    done = call(out, "--to", "ome-zarr", "--folder", tmp_path / "to")
    assert done.exit_code == 3
    assert f"{folder_of(out, 'one').name}: its {name} is damaged, or of an older pathovit. Draw it again" in done.stderr
    assert "2 slides written" in done.stderr


def test_a_disk_that_is_full_says_so(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise RuntimeError("Unable to flush file's cached information (file write failed: errno = 28)")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    done = CliRunner().invoke(app, ["export", str(finished), "--to", "stamp", "--folder", str(tmp_path)])
    assert isinstance(done.exception, StorageError)
    assert "it cannot be written" in str(done.exception)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_cannot_be_is_said(finished: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(finished), "--to", "tirdent"])
    assert isinstance(done.exception, SettingsError)
    assert "'tirdent' is unknown. Use trident, clam" in str(done.exception)
    done = CliRunner().invoke(app, ["export", str(finished), "--names", "file"])
    assert "Use id or stem" in str(done.exception)


def test_resolutions_that_no_objective_has_are_told(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FeatureStore.read

    def coarse(self: FeatureStore) -> SlideFeatures:
        stored = read(self)
        return replace(stored, grid=replace(stored.grid, spec=replace(stored.grid.spec, mpp=0.7)))

    monkeypatch.setattr(FeatureStore, "read", coarse)
    done = call(finished, "--to", "trident", "--folder", tmp_path)
    assert "0.7 um/px is called 10x there, which stands for 1" in done.stderr
    assert [nominal_magnification(mpp) for mpp in (0.11, 0.25, 0.5, 1.0, 2.0, 4.0)] == [80, 40, 20, 10, 5, 1]


def test_names_in_other_programs_are_of_encoders_that_we_have() -> None:
    for name in (*IN_TRIDENT, *IN_STAMP):
        assert known_record(name).name == name


def test_regions_are_read_back_in_level_0_pixels(finished: Path, one: tuple[str, SlideFeatures]) -> None:
    found = read_annotations(folder_of(finished, "one"), one[1])
    assert {one.name for one in found} == {"tumour"}
    left, top, right, bottom = np.array([shape.bounds for _, shape, _ in found]).T
    assert left.min() >= 0
    assert right.max() <= one[1].attributes.level0_size[0]
    assert top.min() >= 0
    assert bottom.max() <= one[1].attributes.level0_size[1]
