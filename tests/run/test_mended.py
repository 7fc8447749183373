"""What is damaged is mended by what made it, and never by something else."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import folder_of
from typer.testing import CliRunner

import pathovit
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.outputs.folder import OutFolder, SlideFolder
from pathovit.outputs.records import Outcome
from pathovit.outputs.store import FeatureStore
from pathovit.outputs.verify import verify
from pathovit.reasons import Code
from pathovit.run import redraw
from pathovit.run.diary import Diary
from pathovit.run.worker import Failed
from pathovit.show.table import Contents

FEW = ("--max-tiles", 9)


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_an_answer_is_not_lost_where_the_last_run_had_no_model(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    made = pathovit.load_results(out)
    (tmp_path / "more").mkdir()
    other = Path(shutil.copy(slides[0], tmp_path / "more" / "other.svs"))
    with other.open("ab") as file:
        file.write(b"\0" * 16)  # another content
    assert call("embed", other, "--out", out, *FEW).exit_code == 0
    (folder_of(out, "one") / "overview.png").unlink()
    done = call("verify", out, "--repair")
    assert "another model answered it than that of the last run" in done.stderr
    after = pathovit.load_results(out)
    assert after[after["slide_id"].isin(made["slide_id"])]["answer"].tolist() == made["answer"].tolist()
    assert call("run", slides[0], "--out", out).exit_code == 0
    assert (folder_of(out, "one") / "overview.png").is_file()


def test_damaged_features_of_other_settings_are_not_thrown_away(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("embed", slides[0], "--out", out, *FEW).exit_code == 0
    store = folder_of(out, "one") / "features.zarr"
    kept = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    torn = store / "xy" / "c" / "0" / "0"
    torn.write_bytes(torn.read_bytes()[:-3] + b"abc")
    done = call("embed", slides[0], "--out", out, "--max-tiles", 5)
    assert done.exit_code == 3
    assert "made by another recipe" in done.stderr
    assert all(path.read_bytes() == content for path, content in kept.items() if path != torn)
    assert call("embed", slides[0], "--out", out, *FEW).exit_code == 0
    assert torn.read_bytes() == kept[torn], "by the same settings it is made again"


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(
    "harm", ["gone", "zarr.json", "features/zarr.json", "xy/c/0/0", "gone with the seal", "zarr.json and the seal"]
)
def test_whatever_happened_to_features_they_are_made_again(
    harm: str, answered: bool, finished: Path, slides: list[Path], tmp_path: Path
) -> None:
    """By what the messages name (embed), to what a seal vouches for; and an answer stays."""
    out = tmp_path / "out"
    if answered:
        shutil.copytree(finished, out)
    else:
        assert call("embed", slides[0], "--out", out).exit_code == 0
    folder = folder_of(out, "one")
    wanted = pathovit.load_features(out, "one")
    if harm.startswith("gone"):
        shutil.rmtree(folder / "features.zarr")
    else:
        torn = folder / "features.zarr" / harm.split()[0]
        torn.write_bytes(torn.read_bytes()[:-9])
    if harm.endswith("seal"):
        (folder / "features.json").unlink()
    if harm == "xy/c/0/0":  # as another machine would make it: device is no part of the recipe, and stands in the attributes
        about = folder / "features.zarr" / "zarr.json"
        about.write_text(about.read_text().replace('"device":', '"Device":', 1))
    done = call("embed", slides[0], "--out", out)
    assert done.exit_code == 0, done.output
    found = pathovit.load_features(out, "one")
    assert np.array_equal(found.features, wanted.features)
    assert np.array_equal(found.xy, wanted.xy)
    assert FeatureStore(SlideFolder(folder), folder).is_sound()
    if answered:
        assert pathovit.load_results(out)["answer"].notna().all()
    checked = call("verify", out)
    assert checked.exit_code == 0, checked.output


def test_the_log_of_another_user_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Diary(tmp_path, ["run"])
    (log,) = tmp_path.iterdir()
    before = log.read_text()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != log)
    Diary(tmp_path, ["run"]).note("more")
    assert log.read_text() == before


def test_embedding_takes_no_answer_away(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    made = pathovit.load_results(out)
    picture = folder_of(out, "one") / "overview.png"
    features = folder_of(out, "two") / "features.zarr" / "features" / "c" / "0" / "0"
    picture.unlink()
    features.write_bytes(features.read_bytes()[:-1] + b"x")
    done = call("embed", *slides, "--out", out)
    assert done.exit_code == 3
    assert "one.svs: failed: it has an answer, and overview.png missing or changed since it was written" in done.stderr
    assert "two.svs: failed" not in done.stderr, "features are made again, and the answer stays true"
    assert not [fault for fault in verify(pathovit.OutFolder(out)).faults if folder_of(out, "two").name in fault.where]
    kept = pathovit.load_results(out)
    assert kept[kept["verdict"] != "failed"]["answer"].tolist() == made["answer"].tolist()
    assert not picture.exists()
    assert call("run", *slides, "--out", out).exit_code == 0
    assert picture.is_file()
    assert pathovit.load_results(out)["answer"].tolist() == made["answer"].tolist()
    assert call("embed", *slides, "--out", out).exit_code == 0, "what is whole stays as it is"


def test_slides_that_the_model_does_not_fit_leave_the_others_their_answers(
    finished: Path, slides: list[Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    other = tmp_path / "other.svs"
    other.write_bytes(slides[0].read_bytes() + b"\0" * 16)
    assert call("embed", other, "--out", out, "--encoder", "resnet50", "--weights", "random", *FEW).exit_code == 0
    done = call("predict", out)
    assert done.exit_code == 3
    assert len(done.stdout.splitlines()) == 1 + len(slides)
    assert "was trained on features with encoder = reference, and these have resnet50" in done.stderr


def test_a_slide_that_failed_in_a_run_and_is_analysed_after_it_has_its_answer(
    finished: Path, slides: list[Path], tmp_path: Path
) -> None:
    out = OutFolder(Path(shutil.copytree(finished, tmp_path / "out")))
    name = folder_of(out.path, "one").name
    out.settle(tmp_path / "elsewhere.svs", name, Outcome("elsewhere.svs", "it took longer than 1 minutes", name))
    assert len(Contents.of(out).records) == 2
    pathovit.analyse_slide(slides[0], out=out.path)
    assert len(Contents.of(out).records) == 3


def test_a_drawing_process_that_dies_fails_slides_and_not_the_command(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=redraw._begin) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN, "Ctrl+C is for its parent"
        begun = pool.submit(os._exit, 9)  # as the system ends one for its memory
        found = redraw._result(begun, tmp_path / "a.svs")
        later = redraw._result(redraw._handed(pool, 1), tmp_path / "b.svs")
    for one in (found, later):
        assert isinstance(one, Failed)
        assert one.error.code == Code.KILLED


def test_reasons_tell_no_folder_around_the_results(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "Mueller_Anna" / "out"
    assert call("embed", slides[0], "--out", out, *FEW).exit_code == 0
    assert call("embed", slides[0], "--out", out, "--max-tiles", 5).exit_code == 3
    told = (out / "run.json").read_text()
    assert "made by another recipe" in told
    assert "Mueller" not in told


def test_a_run_that_was_refused_changes_nothing_of_what_lies_there(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    """Its settings are none of the stored features', and the answers are as they were."""
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = pathovit.load_results(out)
    assert call("run", *slides, "--out", out, "--max-tiles", 5).exit_code == 3
    after = pathovit.load_results(out)
    assert after["answer"].tolist() == before["answer"].tolist()
    assert call("heatmap", *slides, "--out", out, "--hot-score", 0.9).exit_code == 0


def test_a_slide_refused_for_its_settings_takes_no_other_failure_along(slides: list[Path], tmp_path: Path) -> None:
    """Of a refused slide it is not known which one it is; nor is it of a file that could not be opened."""
    out, empty = tmp_path / "out", tmp_path / "zero.svs"
    empty.touch()
    assert call("embed", slides[0], empty, "--out", out, *FEW).exit_code == 3
    done = call("embed", slides[0], "--out", out, "--max-tiles", 5)
    assert done.exit_code == 3
    assert "made by another recipe" in done.stderr
    found = pathovit.load_results(out)
    assert sorted(found["verdict"]) == ["failed", "ok"], "what lies there stays true, and zero.svs has failed"


def test_a_slide_without_an_answer_that_is_refused_for_its_settings_has_failed(slides: list[Path], tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "out")
    assert call("embed", slides[0], "--out", out.path, *FEW).exit_code == 0
    (OutFolder(out.path).slides()[0].path / "slide.json").unlink()
    assert call("embed", slides[0], "--out", out.path, "--max-tiles", 5).exit_code == 3
    assert [outcome.code for outcome in out.outcomes()] == [Code.OTHER_RECIPE]
