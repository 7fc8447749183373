"""A real server, and a real browser before it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-background-networking"]
OF_THE_DRIVER = (
    "GPU stall due to ReadPixels",
    "GroupMarkerNotSet",
    "Automatic fallback to software WebGL",
)  # said by the browser's own graphics
LOST = "WebGL context"  # lost, as a test wants it
LATE = "Ignoring tile"  # it came after its viewer was closed, says OpenSeadragon
GONE = "ERR_CONNECTION_REFUSED"  # the server ended before the page did


@contextmanager
def serving(out: Path, *options: str) -> Iterator[str]:
    """The address that `pathovit review` prints."""
    command = [sys.executable, "-m", "pathovit", "review", str(out), "--no-browser", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        said = ""
        try:
            for line in server.stderr:
                said += line
                if found := re.search(r"Open (http\S+)", line):
                    yield found.group(1)
                    break
            else:
                raise AssertionError(f"it did not start: {said}")
        finally:
            server.terminate()
            server.wait(20)


def until(page: Page, wanted: str, seconds: float = 60) -> None:
    """Wait until an expression is true on the page. (Playwright's own way needs eval, which the page forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(wanted):
        if time.monotonic() > end:
            raise AssertionError(f"never true: {wanted}")
        page.wait_for_timeout(30)


LOADED = "!!globalThis.pathovit?.viewer?.osd.world.getItemAt(0)?.getFullyLoaded()"


def open_slide_page(page: Page, file: str) -> None:
    page.get_by_text(file, exact=True).first.click()
    page.wait_for_selector(".panel")
    until(page, f"globalThis.pathovit?.reading.page.value?.file === {file!r} && {LOADED}")


def show_answer(page: Page) -> None:
    """After the first impression: the answer, also of a slide of which the model is not sure."""
    page.wait_for_selector("text=Your decision")
    if page.locator("text=Show anyway").count():
        page.keyboard.press("x")
    page.wait_for_selector(".legend")


def judge(page: Page, key: str, label: str) -> None:
    """By key where there is an answer to agree or disagree with; else by what the slide is."""
    if page.locator("[data-judgement]").count():
        page.keyboard.press(key)
    else:
        page.get_by_role("group", name="What the slide is").get_by_role("button", name=label).click()
