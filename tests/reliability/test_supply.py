"""What is installed beside pathovit: versions with known holes are kept out, and looked for."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pathovit.cli import app
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.maintenance import FLOORS, WHY, _numbers

ROOT = Path(__file__).parents[2]
FORBIDDEN = re.compile(
    r"(?<!\.)\beval\(|\bexec\(|pickle\.loads?\(|yaml\.load\(|shell=True|weights_only=False|trust_remote_code=True|os\.system\("
)


def test_an_installation_cannot_have_versions_below_the_floors() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = {re.split(r"[>\[]", line)[0]: _numbers(line.partition(">=")[2]) for line in asked}
    floors["distributed"] = floors["dask"]  # they are released together
    assert FLOORS.keys() == WHY.keys()
    for name, floor in FLOORS.items():
        assert floors[name] >= floor, name


@pytest.mark.parametrize("name", list(FLOORS))
def test_doctor_names_a_version_with_a_known_hole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda asked: "0.0.1" if asked == name else whole(asked))
    from pathovit.outputs.provenance import _versions

    _versions.cache_clear()
    try:
        done = CliRunner().invoke(app, ["doctor"])
    finally:
        monkeypatch.undo()
        _versions.cache_clear()
    assert done.exit_code != 0
    assert "TOO OLD" in done.output
    assert WHY[name] in str(done.exception) + done.output


def test_no_code_comes_from_data() -> None:
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "pathovit").rglob("*.py")
        if "node_modules" not in path.parts
        for line in path.read_text().splitlines()
        if FORBIDDEN.search(line)
    ]
    assert not found


def test_the_locked_versions_have_hashes_and_no_known_hole() -> None:
    locked = dict(
        re.findall(
            r"^([a-z0-9._-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", (ROOT / "requirements.lock").read_text(), re.MULTILINE
        )
    )
    assert len(locked) == len(re.findall(r"^[a-z0-9._-]+==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for line in asked:
        name, _, floor = re.sub(r"\[.*?\]", "", line).partition(">=")
        assert _numbers(locked[name]) >= _numbers(floor), name
    for name, floor in FLOORS.items():
        assert _numbers(locked[name]) >= floor, name
