"""A slide answers to every name by which it was given, and to no other slide's."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pathovit
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.errors import NoSlidesError, SettingsError
from pathovit.manifest import read_manifest
from pathovit.outputs.folder import OutFolder
from pathovit.study.cohort import find_features

FEW = ("--max-tiles", 6)


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def other_slide(slide: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(slide, path)
    with path.open("ab") as file:
        file.write(b"\0" * 16)
    return path


def found_in(out: Path, *lines: str) -> list[str]:
    table = out.parent / "t.csv"
    table.write_text("slide,label\n" + "".join(f"{line},a\n" for line in lines))
    found = find_features(read_manifest(table), OutFolder(out), lambda said: None)
    return [folder.name for folder in found.values()]


@pytest.mark.parametrize("keep", [(), ("--keep-names",)])
def test_a_slide_keeps_its_names_where_links_and_copies_have_others(
    keep: tuple[str, ...], slides: list[Path], tmp_path: Path
) -> None:
    """A link took the name of its file away, and another slide of that name answered to it."""
    first, out = tmp_path / "A" / "S01.svs", tmp_path / "out"
    first.parent.mkdir()
    shutil.copy(slides[0], first)
    second = other_slide(slides[0], tmp_path / "B" / "S01.svs")
    assert call("embed", first, "--out", out, *FEW, *keep).exit_code == 0
    (tmp_path / "C").mkdir()
    os.symlink(first, tmp_path / "C" / "alias.svs")
    shutil.copy(first, tmp_path / "C" / "copy.svs")
    assert (
        call("embed", tmp_path / "C" / "alias.svs", second, tmp_path / "C" / "copy.svs", "--out", out, *FEW, *keep).exit_code == 0
    )
    if not keep:  # where names are kept in results there is no list of all of them
        with pytest.raises(SettingsError, match="2 slides are called 'S01.svs'"):
            pathovit.load_features(out, "S01.svs")
        with pytest.raises(SettingsError, match="S01.svs can mean"):
            found_in(out, "S01.svs")
        assert pathovit.load_features(out, "alias.svs").slide_id == pathovit.load_features(out, "copy").slide_id
        assert len(set(found_in(out, "A/S01.svs", "B/S01.svs"))) == 2
    assert pathovit.load_features(out, "copy.svs").slide_id
    assert found_in(out, "copy.svs") == [pathovit.load_features(out, "copy.svs").slide_id]


def test_an_accent_is_one_sign_or_two(slides: list[Path], tmp_path: Path) -> None:
    path, out = tmp_path / unicodedata.normalize("NFD", "\u00e9t\u00e9.svs"), tmp_path / "out"
    shutil.copy(slides[0], path)
    assert call("embed", path, "--out", out, *FEW).exit_code == 0
    name = unicodedata.normalize("NFC", path.name)
    assert name != path.name
    assert found_in(out, name) == [pathovit.load_features(out, name).slide_id]


def test_a_slide_that_failed_is_said_to_have_failed(slides: list[Path], tmp_path: Path) -> None:
    (tmp_path / "zero.svs").touch()
    out = tmp_path / "out"
    assert call("embed", tmp_path / "zero.svs", slides[0], "--out", out, *FEW).exit_code == 3
    with pytest.raises(NoSlidesError, match="zero.svs failed: the file is empty"):
        pathovit.load_features(out, "zero.svs")
    with pytest.raises(SettingsError, match="no such file of regions"):
        find_regions_of(out, tmp_path / "nothere.geojson")


def find_regions_of(out: Path, path: Path) -> None:
    from pathovit.study.regions import find_regions

    find_regions([path], OutFolder(out), lambda said: None)


@pytest.mark.parametrize(("column", "said"), [("patient", "two patients"), ("label", "two labels")])
def test_one_slide_of_two_patients_is_refused(column: str, said: str, slides: list[Path], tmp_path: Path) -> None:
    """A mix-up, or a leak between the parts of a cohort."""
    out, table = tmp_path / "out", tmp_path / "m.csv"
    for name in ("X.svs", "Y.svs"):
        shutil.copy(slides[0], tmp_path / name)
    table.write_text(f"slide,{column}\nX.svs,P1\nY.svs,P2\n")
    done = call("embed", "--manifest", table, "--out", out, *FEW)
    assert done.exit_code == 3
    assert f"the manifest has {said} for it" in done.stderr
    assert len(pathovit.load_results(out)) == 2
    told = [path for path in out.rglob("*") if path.suffix in (".json", ".csv", ".html") and ".private" not in path.name]
    assert len(told) > 5
    assert not [path for path in told if "X.svs" in path.read_text() or "Y.svs" in path.read_text()]
    assert pathovit.load_results(out)["verdict"].tolist().count("failed") == 1
    table.write_text(f"slide,{column}\nX.svs,P1\nY.svs,P1\n")
    assert call("embed", "--manifest", table, "--out", out, *FEW).exit_code == 0
    assert "failed" not in pathovit.load_results(out)["verdict"].tolist()
