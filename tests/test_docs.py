"""The site builds without a warning, every link in it leads somewhere, and every command of its guides works on real files."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from made_hub import only_hub
from typer.main import get_command
from typer.testing import CliRunner

from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted([DOCS / "index.md", DOCS / "upgrade.md", *(DOCS / "guides").glob("*.md")])
SHORT = {"--steps": "2", "--batch-tiles": "2"}  # of hours of work, in the place of what the page has
REFUSED = {"pathovit compare judged judged_plain": "at least 20 are needed to compare them"}  # of so few slides
SERVES = {"pathovit review out"}  # until it is stopped: tests/review has a browser before it


class Links(HTMLParser):
    """Where a page leads, and what in it can be led to."""

    def __init__(self) -> None:
        super().__init__()
        self.to: list[str] = []
        self.loads: list[str] = []  # what the browser fetches without being asked
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if tag in ("a", "link", "img", "script") and (place := found.get("href") or found.get("src")):
            self.to.append(place)
            self.loads += [place] if tag != "a" else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    copied = shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("build"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", copied, folder / "html"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_link_of_the_site_leads_somewhere_and_none_off_this_computer(site: Path) -> None:
    pages = {}
    for path in site.rglob("*.html"):
        pages[path.resolve()] = Links()
        pages[path.resolve()].feed(path.read_text("utf-8"))
    assert len(pages) > 15
    for page, links in pages.items():
        for link in links.to:
            place, _, anchor = link.partition("#")
            if re.match(r"https?://", place):
                assert link not in links.loads, f"{page.name} asks the network for {link}"
                continue
            if place.startswith(("data:", "mailto:")):
                continue
            target = (page.parent / place.split("?")[0]).resolve() if place else page
            assert target.is_file(), f"{page.name}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].ids, f"{page.name}: {link}"


def test_every_command_and_every_public_object_has_its_place(site: Path) -> None:
    said = (site / "reference" / "commands.html").read_text("utf-8")
    commands = getattr(get_command(app), "commands", {})
    assert len(commands) > 20
    for name in commands:
        assert f"pathovit {name}" in said
    assert "research use only" in (site / "index.html").read_text("utf-8").lower()
    assert 'id="pathovit.analyse_slide"' in (site / "reference" / "python.html").read_text("utf-8")


def commands_of(page: Path) -> list[str]:
    """Lines of code that call pathovit, in their order."""
    return [line.strip() for line in page.read_text("utf-8").splitlines() if line.startswith("    pathovit ")]


def drawn_on(outline: dict[str, Any]) -> dict[str, Any]:
    """The maker's outline of tumour as somebody would export it, and that all of it is drawn."""
    whole = {"type": "Polygon", "coordinates": [[[0, 0], [3000, 0], [3000, 2600], [0, 2600], [0, 0]]]}
    shapes = [*((one["geometry"], "tumour") for one in outline["features"]), (whole, "complete")]
    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "geometry": at, "properties": {"classification": {"name": name}}} for at, name in shapes
        ],
    }


@pytest.fixture
def bench(tmp_path: Path, maker: ModuleType) -> Path:
    """What the guides take for given: slides, labels, and what was drawn on two of them."""
    rows = []
    for index in range(1, 9):
        share = 0.3 if index % 2 else 0.0
        made = maker.make_slide(
            tmp_path / "slides", maker.SampleSpec(name=f"S{index:02d}", seed=index, size=(3000, 2600), tumour_fraction=share)
        )
        outline = made.with_suffix(".geojson")
        (tmp_path / "drawn").mkdir(exist_ok=True)
        if index in (1, 3):
            (tmp_path / "drawn" / outline.name).write_text(json.dumps(drawn_on(json.loads(outline.read_text()))))
        outline.unlink(missing_ok=True)
        if index == 2:
            whole = {"type": "Polygon", "coordinates": [[[0, 0], [3000, 0], [3000, 2600], [0, 2600], [0, 0]]]}
            (tmp_path / "outlines").mkdir()
            (tmp_path / "outlines" / outline.name).write_text(
                json.dumps({"type": "Feature", "geometry": whole, "properties": {}})
            )
        rows.append({"slide": made.name, "patient": f"P{index}", "label": "tumour" if share else "normal"})
    (tmp_path / "more").mkdir()
    shutil.copy(
        maker.make_slide(tmp_path / "made", maker.SampleSpec(name="S09", seed=9, size=(3000, 2600), tumour_fraction=0.3)),
        tmp_path / "more",
    )
    others = []
    for index in (11, 12):
        share = 0.3 if index % 2 else 0.0
        made = maker.make_slide(
            tmp_path / "others", maker.SampleSpec(name=f"S{index}", seed=index, size=(3000, 2600), tumour_fraction=share)
        )
        made.with_suffix(".geojson").unlink(missing_ok=True)
        others.append({"slide": made.name, "patient": f"P{index}", "label": "tumour" if share else "normal"})
    for name, table in (("labels.csv", rows), ("others.csv", others)):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_guide_works(page: Path, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench)
    lines = commands_of(page)
    assert lines
    with only_hub(bench / "caches", monkeypatch, *(["kaiko_small"] if page.stem == "offline" else [])):
        for line in lines:
            if line in SERVES:
                continue
            words = shlex.split(line)[1:]
            for option, value in SHORT.items():
                if option in words:
                    words[words.index(option) + 1] = value
            done = CliRunner().invoke(app, words)
            if line in REFUSED:
                assert REFUSED[line] in str(done.exception)
                continue
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
