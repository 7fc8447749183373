"""A folder of results that may be written to, and somebody at its page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_browser import CHROMIUM, FLAGS, GONE, LATE, LOST, OF_THE_DRIVER
from made_reader import Client, client_of
from playwright.sync_api import Browser, Page, sync_playwright

from pathovit.review.server import BUILT


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    return folder


@pytest.fixture
def client(out: Path) -> Iterator[Client]:
    found = client_of(out)
    found.enter()
    yield found
    found.review.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Skips where there is no browser, or no page."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    if not (BUILT / "review.js").is_file():
        pytest.skip("the page was not built: the npm registry was out of reach")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test when it complains."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    found = context.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    found.on(
        "request",
        lambda asked: (
            complaints.append(f"asks {asked.url}")
            if "127.0.0.1" not in asked.url and asked.url[:5] not in ("data:", "blob:")
            else None
        ),
    )
    yield found
    context.close()
    assert [said for said in complaints if not any(known in said for known in (*OF_THE_DRIVER, GONE, LATE, LOST))] == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    found = Path(__file__).parents[2] / "pathovit" / "review" / "page" / "node_modules" / "axe-core" / "axe.min.js"
    if not found.is_file():
        pytest.skip("axe-core is not here: make page")
    return found.read_text()
