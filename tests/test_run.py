"""Whole runs: real slides on disk, real Dask workers, real kills."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import zarr
from conftest import squares_picture, write_tiff, zero_tiles
from PIL import Image
from test_cli import PATHOVIT, pathovit
from typer.testing import CliRunner

from pathovit.cli import app
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.maintenance import slide_maker

HOSTILE = 'it\'s [b]a<img src=x onerror=alert(1)>  "ü" slide'


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, maker: ModuleType) -> list[Path]:
    """Three small made slides, one of them benign and with a name that hurts."""
    folder = tmp_path_factory.mktemp("slides")
    made = []
    for name, seed, share in (("one", 1, 0.3), ("two", 2, 0.15), ("three", 3, 0.0)):
        made.append(maker.make_slide(folder, maker.SampleSpec(name=name, seed=seed, size=(3000, 2600), tumour_fraction=share)))
    hostile = made[2].rename(folder / f"{HOSTILE}.svs")
    return [made[0], made[1], hostile]


@pytest.fixture(scope="module")
def finished(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    done = pathovit("run", *slides, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert all(slide["stage"] == "done" for slide in json.loads(done.stdout)["slides"])
    return out


def stored_bytes(out: Path) -> dict[str, bytes]:
    """Every file of every feature store, by path."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("slides/*/features.zarr/**/*")) if p.is_file()}


def folder_of(out: Path, stem: str) -> Path:
    (folder,) = (p for p in (out / "slides").iterdir() if p.name.startswith(stem + "-"))
    return folder


def test_a_run_leaves_every_product_of_the_design(finished: Path) -> None:
    assert {p.name for p in finished.iterdir() if not p.name.startswith(".")} == {
        "run.json",
        "predictions.csv",
        "report.html",
        "slides",
    }
    for folder in (finished / "slides").iterdir():
        names = {p.name for p in folder.iterdir()}
        assert names == {"slide.json", "features.zarr", "heatmap.ome.tiff", "heatmap.geojson", "overview.png", "top_tiles"}
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
    with (finished / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["file"] for row in rows} == {"one.svs", "two.svs", f"{HOSTILE}.svs"}
    for row in rows:
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
        scores = [f["properties"]["measurements"]["tumour score"] for f in tiles]
        assert roc_auc_score(inside, scores) > 0.9, path.name


def test_names_with_markup_stay_text_in_the_report(finished: Path) -> None:
    html = (finished / "report.html").read_text()
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


def test_export_and_predict_need_no_slides(finished: Path, tmp_path: Path) -> None:
    assert pathovit("export", finished, "--to", "h5", "--folder", tmp_path).returncode == 0
    assert len(list((tmp_path / "features_reference").glob("*.h5"))) == 3
    done = pathovit("predict", finished)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    with (finished / "predictions.csv").open(newline="") as file:
        stored = {row["slide_id"]: float(row["prob_tumour"]) for row in csv.DictReader(file)}
    assert {row["slide_id"]: pytest.approx(float(row["prob_tumour"]), abs=1e-5) for row in rows} == stored


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
        assert row["answer"] in ("normal", "tumour", "unsure")
        assert (float(row["novelty"]) > 1) == ("unlike the slides the model knows" in row["reason"])
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
    assert done.returncode == 2
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
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == 9
    assert int(rows["zeroed.tif"]["tiles_unread"]) > 0
    again = pathovit("run", zeroed, folder / "good.svs", "--out", tmp_path / "out")
    assert again.returncode == 3  # a degraded slide stays degraded when it is skipped


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


def test_a_running_scheduler_is_used(slides: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    commands = (
        ["dask", "scheduler", "--no-dashboard", "--host", "127.0.0.1", "--port", "0"],
        ["dask", "worker", "--nthreads", "3", "--resources", "embed=2 other=1", "--no-dashboard"],
    )
    python = [sys.executable, "-m"]
    processes = [
        subprocess.Popen(
            [*python, *command, "--scheduler-file", str(file)], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    try:
        done = pathovit("embed", slides[0].name, "--out", tmp_path / "out", "--scheduler-file", file, cwd=slides[0].parent)
        assert done.returncode == 0, done.stderr
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def test_every_command_of_the_readme_works_on_real_files(
    finished: Path, slides: list[Path], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of its table; in this process, but with real workers."""
    out, model, judged = tmp_path / "out", tmp_path / "model", tmp_path / "judged"
    shutil.copytree(finished, out)
    labels, features = cohort / "labels.csv", cohort / "features"
    maker = slide_maker()
    small = [maker.SampleSpec(name="demo", seed=1, size=(1500, 1500), tumour_fraction=0.3)]
    monkeypatch.setattr(maker, "demo_specs", lambda count, seed: small)
    monkeypatch.setattr("pathovit.cli.maintenance.slide_maker", lambda: maker)
    calls = {
        "run": ["run", slides[0], "--out", out],
        "info": ["info", *slides],
        "embed": ["embed", slides[0], "--out", tmp_path / "embedded", "--max-tiles", 8],
        "train": ["train", labels, "--features", features, "--model", model, "--epochs", 1, "--kind", "mean", "--folds", 0],
        "evaluate": ["evaluate", model, labels, "--features", features, "--out", judged],
        "compare": ["compare", judged, judged],
        "predict": ["predict", out],
        "heatmap": ["heatmap", slides[0], "--out", out, "--hot-score", 0.6],
        "export": ["export", out, "--to", "h5", "--folder", tmp_path / "h5"],
        "encoders": ["encoders"],
        "verify": ["verify", out],
        "doctor": ["doctor"],
        "bench": ["bench", slides[1], "--runs", 1, "--max-tiles", 8],
        "demo": ["demo", tmp_path / "demo"],
    }
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    commands = re.findall(r"^\| `pathovit (\w+)", readme, re.MULTILINE)
    assert sorted(commands) == sorted(calls)
    for name in commands:
        done = CliRunner().invoke(app, [str(word) for word in calls[name]])
        assert done.exit_code == 0, (name, done.output, done.exception)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed_while_workers_start(slides: list[Path], tmp_path: Path, number: signal.Signals) -> None:
    command = [*PATHOVIT, "embed", str(slides[0]), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    said = ""
    while "starting workers" not in said:
        said += process.stdout.readline()
    process.send_signal(number)
    begun = time.monotonic()
    said += process.communicate(timeout=30)[0]
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert time.monotonic() - begun < 20
    assert "Traceback" not in said
    assert "The same command goes on where it stopped" in said


def test_a_worker_that_is_killed_from_outside_costs_no_slide(slides: list[Path], tmp_path: Path) -> None:
    small_chunks(tmp_path)
    command = [*PATHOVIT, "embed", *map(str, slides[:1]), "--out", str(tmp_path / "out"), "--settings", str(tmp_path / "s.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list((tmp_path / "out").glob("slides/*/journal/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "a worker was killed from outside (SIGKILL); the worker is replaced" in said


def start(slides: list[Path], out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [*PATHOVIT, "embed", *map(str, slides), "--out", str(out), "--settings", str(out.parent / "s.toml"), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def small_chunks(folder: Path) -> None:
    (folder / "s.toml").write_text("[embed]\nbatch_tiles = 8\nchunk_tiles = 16\npart_tiles = 32\n")


def embed_undisturbed(slides: list[Path], folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    small_chunks(folder)
    process = start(slides, folder / "out")
    assert process.wait(timeout=300) == 0
    return stored_bytes(folder / "out")


def test_a_run_killed_at_any_point_goes_on_to_the_same_bytes(slides: list[Path], tmp_path: Path) -> None:
    expected = embed_undisturbed(slides, tmp_path / "calm")
    chance = random.Random(0)
    (tmp_path / "wild").mkdir()
    small_chunks(tmp_path / "wild")
    out = tmp_path / "wild" / "out"
    for kill in range(3):
        process = start(slides, out)
        chunks = 2 + 6 * kill + chance.randrange(4)  # of the 40 or so there are
        while process.poll() is None and len(list(out.glob("slides/*/features.zarr/features/c/*/0"))) < chunks:
            time.sleep(0.01)
        assert process.poll() is None, "the run was over before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(slides, out)
    assert process.wait(timeout=300) == 0
    assert stored_bytes(out) == expected
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_soon_and_leaves_it_resumable(
    slides: list[Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    small_chunks(tmp_path)
    process = start(slides, tmp_path / "out")
    give_up = time.monotonic() + 120
    while not list((tmp_path / "out").glob("slides/*/journal/*.json")):  # until something is stored
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    record: dict[str, Any] = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["exit_code"] == code


def test_two_runs_do_not_share_a_folder(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = pathovit("embed", slides[0], "--out", out)
    assert done.returncode == 5
    assert "another run is writing here" in done.stderr


def test_nothing_listens_beyond_this_machine(slides: list[Path], tmp_path: Path) -> None:
    small_chunks(tmp_path)
    process = start(slides, tmp_path / "out")
    try:
        seen: set[str] = set()
        for _ in range(24):
            time.sleep(0.25)
            seen |= listening_addresses(process.pid)
        assert seen
        assert seen <= {"0100007F"}  # 127.0.0.1, as the kernel writes it
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listening_addresses(session: int) -> set[str]:
    """Addresses on which processes of a session listen, from /proc."""
    sockets: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                sockets |= {os.readlink(handle) for handle in (folder / "fd").iterdir() if os.path.islink(handle)}
        except OSError:
            continue  # ended meanwhile
    inodes = {name[8:-1] for name in sockets if name.startswith("socket:[")}
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}
