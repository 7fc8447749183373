"""Whole runs: real slides on disk, real Dask workers, real kills."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from command import pathovit
from made_runs import HOSTILE, folder_of, rows_of
from made_slides import squares_picture, write_tiff, zero_tiles
from PIL import Image

from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.outputs.names import LOG, PRIVATE


def test_a_run_leaves_every_product_of_the_design(finished: Path) -> None:
    assert {p.name for p in finished.iterdir() if not p.name.startswith(".")} == {
        "run.json",
        "predictions.csv",
        "report.html",
        "slides",
        "tissue",
        PRIVATE,
        LOG,
    }
    for folder in (finished / "slides").iterdir():
        names = {p.name for p in folder.iterdir()}
        assert names == {
            "slide.json",
            "features.json",
            "features.zarr",
            "heatmap.ome.tiff",
            "heatmap.geojson",
            "overview.png",
            "top_tiles",
            "views",
        }
        done = json.loads((folder / "slide.json").read_text())
        assert done["verdict"] == "ok"
        assert "research use only" in done["research_use"].lower()
        with Image.open(folder / "overview.png") as picture:
            assert min(picture.size) > 300
    record = json.loads((finished / "run.json").read_text())
    assert record["exit_code"] == 0
    assert record["versions"]["torch"]


def test_the_store_holds_what_the_design_says(finished: Path) -> None:
    group = zarr.open_group(folder_of(finished, "one") / "features.zarr", mode="r")
    tiles = group["xy"].shape[0]
    assert (group["features"].dtype, group["features"].shape) == (np.float16, (tiles, 256))
    assert (group["xy"].dtype, group["coverage"].dtype, group["verdict"].dtype) == (np.int64, np.float32, np.uint8)
    assert group["features"].chunks == (1024, 256)
    for name in ("recipe", "mpp_x", "mpp_y", "mpp_source", "tile_px", "tile_l0", "level0_size", "bounds"):
        assert name in group.attrs
    assert np.isfinite(group["features"][:]).all()


def test_predictions_are_one_row_per_slide(finished: Path) -> None:
    rows = rows_of(finished)
    assert len(rows) == 3
    assert {row["file"] for row in rows} == {"one.svs", "two.svs", f"{HOSTILE}.svs"}
    for row in rows:
        if row["answer"] != "outside":
            assert float(row["prob_normal"]) + float(row["prob_tumour"]) == pytest.approx(1, abs=1e-5)


def test_the_heatmap_lies_on_the_tumour(finished: Path, slides: list[Path]) -> None:
    from shapely.geometry import box, shape
    from shapely.ops import unary_union
    from sklearn.metrics import roc_auc_score

    for path in slides[:2]:
        truth = unary_union([shape(f["geometry"]) for f in json.loads(path.with_suffix(".geojson").read_text())["features"]])
        found = json.loads((folder_of(finished, path.stem) / "heatmap.geojson").read_text())["features"]
        tiles = [f for f in found if f["properties"]["objectType"] == "tile"]
        squares = [box(*shape(f["geometry"]).bounds) for f in tiles]
        inside = [truth.intersection(square).area > 0.5 * square.area for square in squares]
        scores = [f["properties"]["measurements"]["Score: tumour"] for f in tiles]
        assert roc_auc_score(inside, scores) > 0.9, path.name


def test_names_with_markup_stay_text_in_the_report(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "onerror" not in html  # names are not kept
    shutil.copytree(finished, tmp_path / "out")
    done = pathovit("run", slides[2], "--keep-names", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert "research use only" in html.lower()


def test_the_ome_tiff_covers_the_slide(finished: Path) -> None:
    with tifffile.TiffFile(folder_of(finished, "one") / "heatmap.ome.tiff") as tiff:
        image = tiff.series[0].asarray()
    assert image.shape == (4, -(-2600 // 192), -(-3000 // 192))
    scores = image[0][np.isfinite(image[0])]
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_the_same_command_again_does_nothing_twice(finished: Path, slides: list[Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.glob("slides/**/*") if p.is_file()}
    done = pathovit("run", *slides, "--out", finished, "--json")
    assert done.returncode == 0
    assert all(slide["skipped"] for slide in json.loads(done.stdout)["slides"])
    assert before == {p: p.stat().st_mtime_ns for p in finished.glob("slides/**/*") if p.is_file()}


def test_every_stored_byte_is_checked(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    assert pathovit("verify", out).returncode == 0
    file = folder_of(out, "two") / "features.zarr" / "xy" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    done = pathovit("verify", out)
    assert done.returncode == 3
    assert "features.zarr/xy/c/0/0: changed since it was written" in done.stdout


def number(text: str) -> float | None:
    return float(text) if text else None


def test_export_and_predict_need_no_slides(finished: Path, tmp_path: Path) -> None:
    assert pathovit("export", finished, "--to", "h5", "--folder", tmp_path).returncode == 0
    assert len(list(tmp_path.glob("10x_96px_0px_overlap/features_reference/*.h5"))) == 3
    done = pathovit("predict", finished)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    with (finished / "predictions.csv").open(newline="") as file:
        stored = {row["slide_id"]: number(row["prob_tumour"]) for row in csv.DictReader(file)}
    assert {row["slide_id"]: pytest.approx(number(row["prob_tumour"]), abs=1e-5) for row in rows} == stored


def test_the_heatmap_is_checked_and_the_report_says_so(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    done = pathovit("heatmap", *slides, "--out", out, "--check", "--error-rate", "0.2")
    assert done.returncode == 0, done.stderr
    check = json.loads((folder_of(out, "one") / "slide.json").read_text())["heatmap_check"]
    assert check["sum_error"] < 1e-4
    assert check["class"] == "tumour"
    assert check["deletion"]["evidence"] < check["deletion"]["random"]
    assert check["insertion"]["evidence"] > check["insertion"]["random"]
    assert "Heatmap check" in (out / "report.html").read_text()


def test_every_output_names_answer_and_novelty(finished: Path) -> None:
    with (finished / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["answer"] in ("normal", "tumour", "unsure", "outside")
        strange = float(row["novelty"]) > 1
        assert strange == (row["answer"] == "outside") == (row["prob_tumour"] == "") == ("pathovit teach" in row["reason"])
    with tifffile.TiffFile(folder_of(finished, "one") / "heatmap.ome.tiff") as tiff:
        assert tiff.series[0].shape[0] == 4  # score, attention, novelty, unread


def test_a_damaged_slide_does_not_stop_the_answers_of_the_others(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    shutil.rmtree(folder_of(out, "two") / "features.zarr" / "features")
    done = pathovit("predict", out)
    assert done.returncode == 3
    assert len(list(csv.DictReader(done.stdout.splitlines()))) == 2
    assert "two.svs" in done.stderr
    done = pathovit("export", out, "--folder", tmp_path / "h5")
    assert done.returncode == 3
    assert "2 slides written" in done.stderr


def test_another_recipe_is_refused_by_name_until_overwriting_is_asked_for(squares: Path, tmp_path: Path) -> None:
    """So a pixel size that was given by mistake can be taken back, too."""
    out = tmp_path / "out"
    assert pathovit("embed", squares, "--out", out, "--mpp", 0.6, "--max-tiles", 8).returncode == 0
    done = pathovit("embed", squares, "--out", out, "--max-tiles", 9)
    assert done.returncode == 3
    assert "embed.max_tiles: 8 there, 9 now" in done.stderr
    assert "mpp: [0.6, 0.6] there, [0.5" in done.stderr
    assert pathovit("embed", squares, "--out", out, "--max-tiles", 9, "--overwrite").returncode == 0


def test_good_slides_finish_and_each_bad_one_has_its_own_reason(slides: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "batch"
    folder.mkdir()
    (folder / "good.svs").symlink_to(slides[1])
    whole = slides[0].read_bytes()
    (folder / "truncated.svs").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.svs").write_bytes(b"")
    (folder / "text.svs").write_text("hello")
    os.mkfifo(folder / "pipe.svs")
    write_tiff(folder / "no-mpp.tif", squares_picture(), mpp=None)
    write_tiff(folder / "no-tissue.tif", np.full((1024, 1024, 3), 244, np.uint8))
    zeroed = write_tiff(folder / "zeroed.tif", squares_picture(), jpeg=True)
    zero_tiles(zeroed, [18, 19])
    bomb = write_tiff(folder / "bomb.tif", squares_picture(), levels=(1,))
    with tifffile.TiffFile(bomb, mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tiff.pages.first.tags[tag].overwrite(60_000)
    names = [str(p) for p in sorted(folder.iterdir())]
    done = pathovit("run", *names, "--out", tmp_path / "out", "--json")
    assert done.returncode == 3, done.stderr
    found = {slide["file"]: slide for slide in json.loads(done.stdout)["slides"]}
    reasons = {
        "truncated.svs": "truncated",
        "empty.svs": "empty (0 bytes)",
        "text.svs": "OpenSlide cannot open it",
        "pipe.svs": "not a regular file",
        "no-mpp.tif": "no pixel size",
        "no-tissue.tif": "no tissue found",
        "bomb.tif": "more than can be decoded safely",
    }
    assert found["good.svs"]["verdict"] == "ok"
    assert found["zeroed.tif"]["verdict"] == "degraded"
    assert "tissue tiles could not be read" in found["zeroed.tif"]["reason"]
    assert {name: slide["stage"] for name, slide in found.items() if name in reasons} == dict.fromkeys(reasons, "failed")
    for name, reason in reasons.items():
        assert reason in found[name]["reason"], name
    rows = {row["file"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 9
    assert int(rows["zeroed.tif"]["tiles_unread"]) > 0
    again = pathovit("run", zeroed, folder / "good.svs", "--out", tmp_path / "out")
    assert again.returncode == 3  # a degraded slide stays degraded when it is skipped
    kept = {row["file"]: row for row in rows_of(tmp_path / "out")}
    assert kept == rows  # what failed before is still in the table, with its reason


def test_a_slide_that_kills_its_worker_fails_alone(slides: list[Path], squares: Path, tmp_path: Path) -> None:
    """A decoder that never comes back: the watchdog ends the worker, twice; then the slide is given up."""
    (tmp_path / "s.toml").write_text("[run]\nread_timeout_s = 0.0001\n")
    done = pathovit("embed", squares, "--out", tmp_path / "out", "--settings", tmp_path / "s.toml", "--json")
    assert done.returncode == 3, done.stderr
    (slide,) = json.loads(done.stdout)["slides"]
    assert "reading it hung, twice" in slide["reason"]


def test_a_slide_given_twice_is_done_once(slides: list[Path], tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / slides[0].name
    copy.write_bytes(slides[0].read_bytes())
    done = pathovit("embed", slides[0], copy, "--out", tmp_path / "out", "--max-tiles", 8, "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["slides"]
    assert (first["skipped"], second["skipped"]) == (False, True)
    assert "given twice" in second["reason"]
    again = pathovit("embed", slides[0], copy, "--out", tmp_path / "out", "--max-tiles", 8, "--overwrite")
    assert again.returncode == 0, again.stderr
    rows = rows_of(tmp_path / "out")
    assert [(row["file"], row["verdict"], row["tiles"]) for row in rows] == [(copy.name, "ok", "8")] * 2
    assert not (tmp_path / "out" / ".replaced").exists()


def test_a_name_that_is_no_utf8_harms_nobody(slides: list[Path], tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.svs"))
    odd.symlink_to(slides[1])
    done = pathovit("run", os.fsdecode(os.fsencode(odd)), "--out", tmp_path / "out", "--max-tiles", 8)
    assert done.returncode == 0, done.stderr
    assert "a trial on 8 of" in (tmp_path / "out" / "predictions.csv").read_text()


def test_a_full_disk_ends_the_run_with_its_own_code(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        done = pathovit("run", slides[0], "--out", out)
    finally:
        subprocess.run(["umount", str(out)], check=True)
    assert done.returncode == 6, done.stderr
    assert "cannot be written" in done.stderr


def test_every_record_of_a_run_follows_its_published_schema(finished: Path) -> None:
    from jsonschema import Draft202012Validator

    schemas = Path(__file__).parents[2] / "docs" / "schemas"
    found = {"run": [finished / "run.json", *(finished / ".runs").iterdir()]}
    found |= {name: list(finished.glob(f"slides/*/{name}.json")) for name in ("slide", "features")}
    for name, files in found.items():
        assert files
        validator = Draft202012Validator(json.loads((schemas / f"{name}.schema.json").read_text("utf-8")))
        for file in files:
            validator.validate(json.loads(file.read_bytes()))
