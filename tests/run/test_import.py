"""Features of other programs: round trips through our exports, files as those programs write them, and what is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import pathovit
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.errors import NoSlidesError, SettingsError, StoreError
from pathovit.outputs.foreign_features import Asked, read_foreign, stride_of
from pathovit.outputs.verify import verify
from pathovit.run.import_features import import_features

SIDE = 256


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def lattice(columns: int = 4, rows: int = 3, step: int = SIDE) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * step


def numbers(tiles: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(tiles, dim)).astype(np.float32)


def write_trident(path: Path, xy: np.ndarray, features: np.ndarray, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20, "overlap": 0,
        "name": path.stem, "savetodir": "", "level0_width": 9000, "level0_height": 8000,
    } | changes  # fmt: skip
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features).attrs["encoder"] = "uni_v1"
        file.create_dataset("coords", data=xy).attrs.update({name: value for name, value in about.items() if value is not None})
    return path


@pytest.mark.parametrize("to", ["trident", "clam", "stamp"])
def test_what_is_exported_comes_back_where_it_was(to: str, finished: Path, tmp_path: Path) -> None:
    assert call("export", finished, "--to", to, "--folder", tmp_path / to, "--names", "stem").exit_code == 0
    more = ["--encoder", "reference"] if to == "clam" else []
    done = call("import", tmp_path / to, "--out", tmp_path / "in", *more)
    assert done.exit_code == 0, done.output
    assert "3 slides taken over" in done.stderr
    for stem in ("one", "two"):
        before, after = pathovit.load_features(finished, stem), pathovit.load_features(tmp_path / "in", stem)
        assert np.array_equal(after.features, before.features)
        assert after.recipe.encoder["encoder"] == "reference"
        assert after.grid.spec.tile_px == 96
        assert np.abs(after.centres_um() - before.centres_um()).max() < 0.5
        assert after.pitch_um == pytest.approx(before.pitch_um, rel=1e-3)
        if to != "stamp":  # whose frame is that of tiles
            assert np.array_equal(after.xy, before.xy)
            assert after.mpp == before.mpp
            assert after.attributes.level0_size == before.attributes.level0_size
    again = call("import", tmp_path / to, "--out", tmp_path / "in", *more)
    assert "0 slides taken over" in again.stderr
    assert "3 lay there already" in again.stderr
    found = verify(pathovit.OutFolder(tmp_path / "in"))
    assert not found.faults
    assert not found.remarks
    with (tmp_path / "in" / "predictions.csv").open() as file:
        assert {row["verdict"] for row in csv.DictReader(file)} == {"ok"}


def test_files_of_trident_itself_have_the_pixels_of_their_objective_and_that_is_said(tmp_path: Path) -> None:
    write_trident(tmp_path / "20x_256px_0px_overlap/features_uni_v1/S1.h5", lattice(step=512), numbers(12))
    done = call("import", tmp_path / "20x_256px_0px_overlap", "--out", tmp_path / "out")
    assert "1 slide: the pixel size is that of the objective they name" in done.stderr
    found = pathovit.load_features(tmp_path / "out", "S1")
    assert found.mpp == (0.25, 0.25)
    assert found.attributes.mpp_source == "nominal magnification (40x, TRIDENT)"
    assert found.recipe.encoder["encoder"] == "uni"
    assert (found.grid.spec.mpp, found.tile_l0, found.attributes.level0_size) == (0.5, (512.0, 512.0), (9000, 8000))
    given = call("import", tmp_path / "20x_256px_0px_overlap", "--out", tmp_path / "true", "--mpp", 0.243)
    assert "objective" not in given.stderr
    assert pathovit.load_features(tmp_path / "true").mpp == (0.243, 0.243)


def test_white_squares_in_place_of_unreadable_tiles_are_not_believed(tmp_path: Path) -> None:
    values = numbers(12)
    values[[3, 7]] = values[3]
    values[5, 2] = np.nan
    write_trident(tmp_path / "S1.h5", lattice(step=512), values)
    done = call("import", tmp_path / "S1.h5", "--out", tmp_path / "out")
    assert "2 tiles have the features of another tile to the last bit" in done.stderr
    found = pathovit.load_features(tmp_path / "out")
    assert [one.name for one in map(pathovit.TileVerdict, found.verdict[[3, 5, 7, 0]])] == [
        "UNREADABLE",
        "REJECTED",
        "UNREADABLE",
        "OK",
    ]
    assert np.isnan(found.features[[3, 5, 7]]).all()
    assert pathovit.load_results(tmp_path / "out")["verdict"].tolist() == ["degraded"]


def test_clam_says_neither_pixel_size_nor_encoder_and_both_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "feat/h5_files").mkdir(parents=True)
    (tmp_path / "feat/patches").mkdir()
    with h5py.File(tmp_path / "feat/h5_files/S1.h5", "w") as file:
        file.create_dataset("features", data=numbers(12))
        file.create_dataset("coords", data=lattice(step=1024).astype(np.int32))
    files = tmp_path / "feat/h5_files"
    with pytest.raises(SettingsError, match="it does not say how large its tiles are.*--patches"):
        import_features([files], tmp_path / "a", encoder="resnet50", mpp=0.25)
    with h5py.File(tmp_path / "feat/patches/S1.h5", "w") as file:
        coords = file.create_dataset("coords", data=lattice(step=1024).astype(np.int32))
        coords.attrs.update({"patch_size": 256, "patch_level": 1, "downsample": [4.0, 4.0], "level_dim": [2000, 1500]})
    with pytest.raises(SettingsError, match="S1.h5: CLAM stores no pixel size. Give it with --mpp"):
        import_features([files], tmp_path / "a", encoder="resnet50")
    with pytest.raises(SettingsError, match="CLAM does not say which encoder made it. Give its name with --encoder"):
        import_features([files], tmp_path / "a", mpp=0.25)
    import_features([files], tmp_path / "a", mpp=0.25, encoder="resnet50")
    found = pathovit.load_features(tmp_path / "a")
    assert (found.tile_l0, found.grid.spec.mpp, found.attributes.level0_size) == ((1024.0, 1024.0), 1.0, (8000, 6000))
    (tmp_path / "table.csv").write_text("slide,patient,mpp,label\nS1.svs,P1,0.5,benign\n")
    done = call("import", files, "--out", tmp_path / "b", "--manifest", tmp_path / "table.csv", "--encoder", "resnet50")
    assert done.exit_code == 0, done.output
    assert pathovit.load_features(tmp_path / "b").mpp == (0.5, 0.5)
    (record,) = [slide.record() for slide in pathovit.OutFolder(tmp_path / "b").slides()]
    assert record
    assert record.label == "benign"
    assert record.patient != "P1", "an id stands for the patient"
    (tmp_path / "pt_files").mkdir()
    (tmp_path / "pt_files/S1.pt").touch()
    with pytest.raises(NoSlidesError, match="there is no .h5 file in it. CLAM's .pt files hold no positions"):
        import_features([tmp_path / "pt_files"], tmp_path / "c")


def test_atlaspatch_keeps_several_encoders_in_a_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file.create_dataset(
            "coords", data=np.concatenate([lattice(step=512), np.tile([512, 512, 0], (12, 1))], 1).astype(np.int32)
        )
        for name in ("uni_v2", "resnet50"):
            file.create_dataset(f"features/{name}", data=numbers(12))
        file.attrs.update(
            {
                "patch_size": 256,
                "patch_size_level0": 512,
                "level0_magnification": 40,
                "target_magnification": 20,
                "overlap": 0,
                "mpp": 0.2428,
            }
        )
    with pytest.raises(SettingsError, match="it holds features of resnet50, uni_v2. Say which with --encoder"):
        import_features([tmp_path / "S1.h5"], tmp_path / "a")
    import_features([tmp_path / "S1.h5"], tmp_path / "a", encoder="uni2_h")
    found = pathovit.load_features(tmp_path / "a")
    assert found.recipe.encoder["encoder"] == "uni2_h"
    assert found.mpp == (0.2428, 0.2428)
    assert found.attributes.mpp_source == "AtlasPatch (mpp)"
    assert import_features([tmp_path / "S1.h5"], tmp_path / "a", encoder="uni_v2").there == 1, "its own name for the same"


def test_stamp_before_version_2_is_refused_for_its_units_are_not_said(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file.create_dataset("feats", data=numbers(12))
        file.create_dataset("coords", data=lattice(step=224))
        file.attrs["extractor"] = "uni"
    done = import_features([tmp_path / "S1.h5"], tmp_path / "a")
    (error,) = done.failed
    assert "it says no micrometres: it is of STAMP before version 2" in str(error)


def _link(file: h5py.File, away: Path) -> None:
    del file["coords"]
    file["coords"] = h5py.ExternalLink(str(away), "coords")


def _virtual(file: h5py.File, away: Path) -> None:
    del file["features"]
    layout = h5py.VirtualLayout((12, 8), "f4")
    layout[:] = h5py.VirtualSource(str(away), "features", shape=(12, 8))
    file.create_virtual_dataset("features", layout)


def _absurd(file: h5py.File, away: Path) -> None:
    del file["features"]
    file.create_dataset("features", (4_000_000, 60_000), "f4", chunks=(1, 60_000))


def _compound(file: h5py.File, away: Path) -> None:
    del file["features"]
    file.create_dataset("features", (12,), np.dtype([("a", "f4"), ("b", "S8")]))


def _fewer(file: h5py.File, away: Path) -> None:
    del file["features"]
    file.create_dataset("features", data=numbers(11))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_link, "its coords is a link, which is not followed"),
        (_virtual, "its features lies in other files, which are not read"),
        (_absurd, "its features claims 240,000,000,000 numbers"),
        (_compound, "its features is no plain array of numbers"),
        (_fewer, "11 features and 12 positions do not belong together"),
    ],
)
def test_what_leads_elsewhere_or_cannot_be_is_refused(spoil: Any, said: str, tmp_path: Path) -> None:
    away = write_trident(tmp_path / "away.h5", lattice(), numbers(12))
    path = write_trident(tmp_path / "S1.h5", lattice(), numbers(12))
    with h5py.File(path, "r+") as file:
        spoil(file, away)
    with pytest.raises(StoreError, match=said):
        read_foreign(path, Asked())
    done = call("import", path, write_trident(tmp_path / "S2.h5", lattice(step=512), numbers(12)), "--out", tmp_path / "out")
    assert done.exit_code == 3
    assert "failed: S1.h5" in done.stderr
    assert "1 slide taken over" in done.stderr, "the other goes on"


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "S1.h5", lattice(), numbers(12))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(StoreError, match="S1.h5: it cannot be read as HDF5 features"):
        read_foreign(path, Asked())
    (tmp_path / "S2.h5").write_bytes(b"PK\x03\x04")
    with pytest.raises(StoreError, match="S2.h5: it cannot be read as HDF5 features"):
        read_foreign(tmp_path / "S2.h5", Asked())


def test_an_import_that_was_interrupted_goes_on_with_the_same_patients(tmp_path: Path) -> None:
    write_trident(tmp_path / "f" / "A.h5", lattice(step=512), numbers(12))
    with h5py.File(tmp_path / "f" / "B.h5", "w") as file:  # of CLAM, which says no pixel size
        file.create_dataset("features", data=numbers(12))
        file.create_dataset("coords", data=lattice(step=512)).attrs.update({"patch_size": 512, "patch_level": 0})
    (tmp_path / "table.csv").write_text("slide,patient\nA.svs,P1\nB.svs,P1\nC.svs,P2\n")
    told: list[str] = []
    with pytest.raises(SettingsError, match="B.h5: CLAM stores no pixel size"):
        import_features([tmp_path / "f"], tmp_path / "out", manifest=tmp_path / "table.csv", encoder="uni")
    import_features([tmp_path / "f"], tmp_path / "out", manifest=tmp_path / "table.csv", encoder="uni", mpp=0.25, say=told.append)
    out = pathovit.OutFolder(tmp_path / "out")
    patients = {record.patient for folder in out.slides() if (record := folder.record())}
    assert len(patients) == 1
    assert out.names().patient_of(str(patients.pop())) == "P1"
    assert any("1 rows match no slide given: line 4, C" in text for text in told)


def test_pixel_sizes_that_are_none_are_refused_and_contradictions_said(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "S1.h5", lattice(step=512), numbers(12), mpp_x=0.25, mpp_y=0.25)
    with pytest.raises(SettingsError, match="--mpp 40 looks like a magnification"):
        import_features([path], tmp_path / "out", mpp=40)
    far = write_trident(tmp_path / "far.h5", lattice(step=512), numbers(12), mpp_x=250.0, mpp_y=250.0)
    (error,) = import_features([far], tmp_path / "out").failed
    assert "mpp is 250 um per pixel" in str(error)
    row = pathovit.load_results(tmp_path / "out").iloc[0]
    assert (row.verdict, "mpp is 250" in row.reason) == ("failed", True)
    done = call("import", path, "--out", tmp_path / "out", "--mpp", 0.3, "--encoder", "resnet50")
    assert "it says 0.25 um per pixel, and 0.3 was taken (option --mpp)" in done.stderr
    assert "it says that uni made it, and resnet50 was taken (--encoder)" in done.stderr
    assert "0.3 was taken" in pathovit.load_results(tmp_path / "out")["reason"].str.cat()


def test_our_own_name_of_an_encoder_comes_back_with_what_is_made_of_its_tokens(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "S1.h5", lattice(step=512), numbers(12))
    with h5py.File(path, "r+") as file:
        file["features"].attrs.update({"encoder": "virchow2_cls", "pathovit_encoder": "virchow2:cls"})
    assert read_foreign(path, Asked()).encoder == "virchow2:cls"
    with h5py.File(tmp_path / "S2.h5", "w") as file:
        file.create_dataset("feats", data=numbers(12))
        file.create_dataset("coords", data=lattice(step=112).astype(np.float32))
        file.attrs.update({"tile_size_um": 112.0, "tile_size_px": 224, "unit": "um", "extractor": "virchow"})
    assert read_foreign(tmp_path / "S2.h5", Asked()).encoder == "virchow:cls"
    assert read_foreign(tmp_path / "S2.h5", Asked(encoder="virchow")).encoder == "virchow", "ours has all tokens"


def test_features_of_slides_are_passed_over_and_folders_of_runs_are_refused(finished: Path, tmp_path: Path) -> None:
    write_trident(tmp_path / "t/features_uni_v1/S1.h5", lattice(step=512), numbers(12))
    write_trident(tmp_path / "t/slide_features_titan/S1.h5", lattice(step=512), numbers(12))
    assert import_features([tmp_path / "t"], tmp_path / "in").imported == 1
    with pytest.raises(SettingsError, match="it holds results of a run. Import into a folder of its own"):
        import_features([tmp_path / "t"], Path(shutil.copytree(finished, tmp_path / "out")))


def test_the_distance_of_tiles_is_measured_also_on_several_grids() -> None:
    assert stride_of(lattice(step=128), 256) == 128
    assert stride_of(lattice(step=512), 256) == 512, "room between tiles"
    holes = lattice(9, 9)[np.random.default_rng(0).permutation(81)[:30]]
    assert stride_of(holes, SIDE) == SIDE
    assert stride_of(holes * 2, SIDE) == 2 * SIDE
    assert stride_of(np.concatenate([lattice(), lattice() + (3001, 77)]), 999) == SIDE
    assert stride_of(np.array([[0, 0]]), 256) == 256
    assert stride_of(np.rint(lattice() * 1.0007).astype(np.int64), 256.18) == pytest.approx(256.18, abs=0.01), (
        "corners are rounded"
    )


def test_a_model_learns_from_what_was_taken_over(cohort: Path, tmp_path: Path) -> None:
    assert call("export", cohort / "features", "--to", "trident", "--folder", tmp_path / "trident").exit_code == 0
    assert call("import", tmp_path / "trident", "--out", tmp_path / "in").exit_code == 0
    with (tmp_path / "trident" / "slides.csv").open() as file:
        names = {row["slide_id"]: row["name"] for row in csv.DictReader(file)}
    assert len(names) == 28
    done = call(
        "train",
        cohort / "labels.csv",
        "--features",
        tmp_path / "in",
        "--kind",
        "mean",
        "--epochs",
        2,
        "--model",
        tmp_path / "model",
    )
    assert done.exit_code == 0, done.output
    done = call("predict", tmp_path / "in", "--model", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 29


def test_what_is_said_later_of_imported_features_is_taken_over(tmp_path: Path) -> None:
    xy = lattice(step=512)
    write_trident(tmp_path / "f" / "a.h5", xy, numbers(len(xy)))
    table = tmp_path / "m.csv"
    table.write_text("slide,patient\na.svs,P1\n")
    assert call("import", tmp_path / "f", "--out", tmp_path / "in", "--manifest", table).exit_code == 0
    before = pathovit.load_features(tmp_path / "in", "a")
    done = call("import", tmp_path / "f", "--out", tmp_path / "in", "--mpp", 0.2)
    assert "1 slide taken over" in done.stderr
    assert "taken over anew" in done.stderr
    after = pathovit.load_features(tmp_path / "in", "a")
    assert (after.mpp, before.mpp != after.mpp) == ((0.2, 0.2), True)
    (folder,) = pathovit.OutFolder(tmp_path / "in").slides()
    record = folder.record()
    assert record
    assert record.patient, "the patient of before stays"
    assert pathovit.OutFolder(tmp_path / "in").names().patient_of(record.patient) == "P1"
    again = call("import", tmp_path / "f", "--out", tmp_path / "in", "--mpp", 0.2)
    assert "0 slides taken over" in again.stderr
