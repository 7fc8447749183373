"""What is given out: the wheel holds all that runs, the archive of sources all that is kept here; and the wheel works where nothing else of ours is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKS = """
import sys, pathovit
assert pathovit.__file__.startswith(sys.argv[1]), pathovit.__file__
spec = pathovit.load_encoder("reference", device="cpu").record
print(spec.name, pathovit.load_model("reference").card.trained.encoder)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def kept() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout: which files are kept is not known")
    return {name for name in listed.stdout.splitlines() if not name.startswith(".")}


def test_the_archive_of_sources_is_whole(built: Path, kept: set[str]) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert not kept - inside
    assert {"CITATION.cff", "THIRD_PARTY.md", "LICENSE", "Makefile", "pathovit/review/built/index.html"} <= inside


def test_the_wheel_is_whole_and_works_alone(built: Path, kept: set[str], tmp_path: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        inside = set(archive.namelist())
    code = {name for name in kept if name.startswith("pathovit/") and not name.startswith("pathovit/review/page/")}
    assert not code - inside
    assert "pathovit/review/built/index.html" in inside
    assert not [name for name in inside if name.startswith(("tests/", "docs/"))]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site", path]
    subprocess.run(pip, check=True)
    place = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", WORKS, tmp_path / "site"], cwd=tmp_path, env=place, capture_output=True, text=True
    )
    assert done.stdout == "reference reference\n", done.stderr
