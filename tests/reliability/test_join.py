"""Several runs on one folder: each slide is done by one of them, and the death of one costs nothing but its time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command import PATHOVIT, pathovit
from made_runs import rows_of, stored_bytes

from pathovit.errors import SettingsError
from pathovit.outputs.lease import LEASES, TABLES, Leases, lease


def begin(*arguments: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*PATHOVIT, *map(str, arguments)], stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def batch(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The slides, and the same files under other paths: as two machines see one share."""
    folder = tmp_path_factory.mktemp("mount")
    return [Path(shutil.copy2(path, folder / path.name)) for path in slides]


def test_two_runs_share_the_slides_and_both_end_with_all(
    slides: list[Path], batch: list[Path], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    runs = [begin("run", *given, "--join", "--out", out, "--json") for given in (slides, batch)]
    told = []
    for run in runs:
        stdout, stderr = run.communicate(timeout=300)
        assert run.returncode == 0, stderr
        told.append({slide["file"]: slide["skipped"] for slide in json.loads(stdout)["slides"]})
    assert all(told[0][name] != told[1][name] for name in told[0]), told  # each was done by one of them
    assert stored_bytes(out) == stored_bytes(finished)
    assert len(rows_of(out)) == 3
    assert pathovit("verify", out).returncode == 0
    assert [path.name for path in (out / LEASES).iterdir()] == [TABLES]


def test_the_slides_of_a_run_that_was_killed_are_done_by_the_other(
    slides: list[Path], batch: list[Path], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = begin("run", *slides, "--join", "--out", out)
    while not list(out.glob("slides/*/journal/*")):
        time.sleep(0.05)
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGSTOP)  # it has a slide, and does nothing
    second = begin("run", *batch, "--join", "--out", out, "--json")
    lines = []
    assert second.stderr
    while "other runs are at" not in (lines or [""])[-1]:
        lines.append(second.stderr.readline())
        assert lines[-1], lines
    os.killpg(first.pid, signal.SIGKILL)
    stdout, stderr = second.communicate(timeout=300)
    assert second.returncode == 0, stderr
    assert all(slide["stage"] == "done" for slide in json.loads(stdout)["slides"])
    assert stored_bytes(out) == stored_bytes(finished)


def test_a_run_that_joins_and_one_that_does_not_refuse_each_other(slides: list[Path], tmp_path: Path) -> None:
    with lease(tmp_path, join=True):
        done = pathovit("run", slides[0], "--out", tmp_path)
        assert (done.returncode, "join it with --join" in done.stderr) == (5, True)
    with lease(tmp_path):
        done = pathovit("run", slides[0], "--join", "--out", tmp_path)
        assert (done.returncode, "begin both with --join" in done.stderr) == (5, True)
    done = pathovit("run", slides[0], "--join", "--overwrite", "--out", tmp_path)
    assert (done.returncode, "do not go together" in done.stderr) == (2, True)


def test_a_slide_has_one_owner_whatever_becomes_of_its_file(tmp_path: Path) -> None:
    a, b, c = (Leases(tmp_path, joined=True) for _ in range(3))
    (tmp_path / LEASES).mkdir()
    assert a.take("x")
    assert not b.take("x")
    assert a.take("x")  # it is theirs
    a.give_back("x")
    assert b.take("x")
    assert not c.take("x")
    b.close()
    assert c.take("x")
    assert list((tmp_path / LEASES).iterdir()) == [tmp_path / LEASES / "x"]


def test_where_there_are_no_locks_nobody_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(SettingsError, match="No locks available.*no run can join"), lease(tmp_path, join=True):
        pass
    with lease(tmp_path):
        pass


def test_a_link_is_no_folder_of_leases(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / LEASES).symlink_to(tmp_path / "else")
    with pytest.raises(SettingsError, match="is not followed"), lease(tmp_path, join=True):
        pass
    assert not list((tmp_path / "else").iterdir())


def test_what_others_are_writing_is_not_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    swept: list[str] = []
    with lease(out, join=True), lease(out, join=True, alone=lambda: swept.append("joined")):
        pass
    assert swept == []
    with lease(out, join=True, alone=lambda: swept.append("alone")):
        pass
    assert swept == ["alone"]
