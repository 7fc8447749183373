"""Drives that fail now and then, for ever, or fill up: nothing is lost, no slide is blamed."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import PATHOVIT

from pathovit import files
from pathovit.files import open_patiently, read_bytes, take_retries

HERE, PACKAGE = Path(__file__).parent, Path(__file__).parents[2] / "pathovit"


@pytest.fixture(scope="session")
def flaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes reads fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    made = tmp_path_factory.mktemp("flaky") / "flaky.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, HERE / "flaky.c", "-ldl"], check=True)
    return made


def run(slides: list[Path], out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*PATHOVIT, "run", *map(str, slides), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def stored(out: Path) -> dict[str, dict[str, str]]:
    """Digests of the features of every slide."""
    found = {path.parent.name: json.loads(path.read_bytes()) for path in out.glob("slides/*/features.json")}
    return {name: record["files"] for name, record in found.items()}


def test_slides_finish_on_a_drive_that_fails_now_and_then(slides: list[Path], flaky: Path, tmp_path: Path) -> None:
    """Of the slides, and of the results: both lie under the folder."""
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    shaken.mkdir()
    copies = [Path(shutil.copy(slide, shaken)) for slide in slides]
    assert run(copies, calm).returncode == 0
    done = run(copies, shaken / "out", LD_PRELOAD=str(flaky), FLAKY_P="0.01", FLAKY_MATCH=str(shaken))
    assert done.returncode == 0, done.stderr
    before, after = stored(calm), stored(shaken / "out")
    assert before.keys() == after.keys()
    for name, files_of in before.items():
        for file, digest in files_of.items():
            if not file.startswith("features/c"):  # whose bits depend on the process on some processors
                assert after[name][file] == digest, (name, file)
    record = json.loads((shaken / "out" / "run.json").read_bytes())
    assert record["retries"] > 0
    assert f"{record['retries']} reads failed and had to be tried again" in done.stderr


def test_a_drive_that_goes_on_failing_is_told_as_such(slides: list[Path], flaky: Path, tmp_path: Path) -> None:
    shaken = tmp_path / "shaken"
    shaken.mkdir()
    copies = [Path(shutil.copy(slide, shaken)) for slide in slides]
    done = run(copies, tmp_path / "out", LD_PRELOAD=str(flaky), FLAKY_P="0.9", FLAKY_MATCH=str(shaken))
    assert done.returncode == 3, done.stderr
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["code"] for row in rows] == ["io_error"] * len(slides)
    assert all("the slide may be sound" in row["reason"] for row in rows)


def test_a_file_is_read_whole_where_single_reads_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a read fails after some of it was read already."""
    content = os.urandom(3 * 2**20)
    (tmp_path / "file").write_bytes(content)
    calls = []

    def failing(file: io.FileIO, size: int = -1) -> bytes | None:
        calls.append(size)
        if len(calls) % 2 == 0:
            raise OSError(errno.EIO, "Input/output error")
        return io.FileIO.read(file, min(size, 2**20))

    monkeypatch.setattr(files, "io", SimpleNamespace(FileIO=SimpleNamespace(read=failing), BufferedReader=io.BufferedReader))
    take_retries()
    with open_patiently(tmp_path / "file") as file:
        assert file.read() == content
    assert read_bytes(tmp_path / "file") == content
    assert take_retries() > 4


ELSEWHERE = {"files.py", "machine.py", "hatch_build.py", "records.py"}  # /proc, and sources of installed packages


def test_nothing_is_read_without_patience() -> None:
    """Single reads are tried again in `files.py`, so it is the door to all files that may lie on a network."""
    pattern = re.compile(
        r'\.read_bytes\(\)|\.read_text\(|\.open\("r[b"]|\.open\((encoding|newline|\))|Image\.open\((?!file|open_patiently)'
    )
    found = {
        f"{path.name}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.name not in ELSEWHERE and "node_modules" not in path.parts
        for line in path.read_text().splitlines()
        if pattern.search(line)
    }
    assert not found
