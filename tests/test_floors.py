"""The house: each room imports only from the rooms below it, no module from one that imports it, and the map names them all."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pathovit"
# From the ground up: what a module imports lies before it, or in its own room.
GROUND = ("reasons", "errors", "signals", "text", "files", "geometry", "machine", "tables", "manifest", "settings")
ROOMS = (*GROUND, "slides", "encoders", "outputs", "model", "show", "study", "run", "review", "bench", "cli", "__main__")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not {"__pycache__", "node_modules"} & set(path.parts))
MOST_LINES = 350


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path) -> set[str]:
    """Modules of pathovit that a module imports, whether at once, late or for its types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in NAMES}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pathovit":
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in NAMES else node.module)
    return found - {"pathovit"}  # its version and its words are everybody's


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path))
def test_a_module_imports_only_from_its_own_room_and_those_below(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    here = room_of(name_of(path))
    above = {module for module in imports(path) if ROOMS.index(room_of(module)) > ROOMS.index(here)}
    assert not above


def test_no_two_modules_import_each_other() -> None:
    graph = {name_of(path): imports(path) - {name_of(path)} for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_top_floor_is_easily_overlooked() -> None:
    shown = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed", "__init__.py", "__init__.pyi")]
    assert {path.stem for path in shown} == set(ROOMS)
    assert len(shown) <= 21


@pytest.mark.parametrize("folder", ["pathovit", "tests", "workflows", "sample_data"])
def test_no_module_holds_more_than_one_idea_can_take(folder: str) -> None:
    long = {
        path.name: count
        for path in (ROOT / folder).rglob("*.py")
        if "node_modules" not in path.parts and (count := len(path.read_text("utf-8").splitlines())) > MOST_LINES
    }
    assert not long


def test_the_map_names_every_module_and_no_other() -> None:
    text = (ROOT / "docs" / "map.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([a-z_/]+)` \| (.*) \|$", text, re.MULTILINE))
    assert [room.rstrip("/") for room in rows] == [room for room in ROOMS if room != "__main__"]
    for room, said in rows.items():
        if room.endswith("/"):
            there = {path.stem for path in MODULES if path.is_relative_to(PACKAGE / room)} - {"__init__"}
            assert set(re.findall(r"`([a-z_0-9]+)\.py`", said)) == there, room


def test_records_are_records() -> None:
    """Dicts whose keys are known belong into a frozen record; what is left is JSON at its border."""
    found = sum(path.read_text("utf-8").count("dict[str, Any]") for path in MODULES)
    assert found < 25
