"""The review page for several readers, and for all of them: in a real browser, over a real server."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Literal

import pytest
from command import pathovit
from made_browser import judge, open_slide_page, serving, show_answer, until
from made_runs import rewrite
from playwright.sync_api import Browser, Page


def test_two_readers_disagree_and_a_third_settles(browser: Browser, out: Path) -> None:
    done = pathovit("review", "users", out, "--add", "Dr. A", "--add", "Dr. B")
    settles = pathovit("review", "users", out, "--add", "Prof. Z", "--role", "adjudicator")
    tokens = dict(line.split("\t")[::2] for line in (done.stdout + settles.stdout).splitlines() if line.count("\t") == 2)
    assert set(tokens) == {"Dr. A", "Dr. B", "Prof. Z"}
    with serving(out) as url:
        assert "token" not in url
        for name, key in (("Dr. A", "a"), ("Dr. B", "d"), ("Prof. Z", "a")):
            page = browser.new_context().new_page()
            page.goto(url)
            page.get_by_label("Token").fill(tokens[name])
            page.get_by_role("button", name="Enter").click()
            page.wait_for_selector(".row")
            if name == "Prof. Z":
                page.get_by_role("button", name="Disagreement").click()
                assert page.locator(".row").count() == 1
            open_slide_page(page, "one.svs")
            page.keyboard.press("2")
            show_answer(page)
            judge(page, key, "tumour" if key == "a" else "normal")
            page.get_by_role("button", name="Keep").click()
            page.wait_for_selector("text=First impression: tumour")
            if name == "Prof. Z":
                page.wait_for_selector("text=Other readers")
                page.get_by_label("Settle as").fill("tumour")
                page.get_by_role("button", name="Settle").click()
                page.wait_for_selector("text=Settled as tumour by Prof. Z")
            else:
                assert page.locator("text=Other readers").count() == 0
            page.context.close()
    assert "1 of 1 slide alike" in pathovit("review", "users", out).stderr
    done = pathovit("review", out, "--export", out / "labels.csv")
    assert done.returncode == 0, done.stderr
    with (out / "labels.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["label"], row["reader"]) == ("tumour", "Prof. Z")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(page: Page, out: Path, scheme: Literal["light", "dark"], axe: str) -> None:
    """No serious finding of axe-core in any state of the page."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    with serving(out) as url:
        page.goto(url)
        page.wait_for_selector(".row")
        _require_accessible(page, axe, "worklist")
        page.keyboard.press("?")
        page.wait_for_selector("dialog")
        _require_accessible(page, axe, "keys")
        page.keyboard.press("Escape")
        open_slide_page(page, "one.svs")
        _require_accessible(page, axe, "first impression")
        page.keyboard.press("1")
        page.wait_for_selector("text=Your decision")
        if page.locator("text=Show anyway").count():
            _require_accessible(page, axe, "doubt")
            page.keyboard.press("x")
        page.wait_for_selector(".legend")
        page.keyboard.press("n")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card")
        page.keyboard.press("d")
        _require_accessible(page, axe, "slide")


def _require_accessible(page: Page, axe: str, state: str) -> None:
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for one in found["violations"] if one["impact"] in ("serious", "critical") for node in one["nodes"]
    ]  # fmt: skip
    assert serious == [], state


def test_two_slides_of_a_patient_move_together(page: Page, out: Path, axe: str) -> None:
    for record in sorted(out.glob("slides/*/slide.json"))[:2]:
        found = json.loads(record.read_text())
        found["slide"]["patient"] = "P-7"
        rewrite(record, **found)
    both = "[0, 1].every((i) => !!pathovit.viewers?.[i]?.osd.world.getItemAt(0)?.getFullyLoaded())"
    with serving(out, "--open") as url:
        page.goto(url)
        page.get_by_text("P-7").first.click()
        page.get_by_text("2 slides").click()
        page.wait_for_selector("text=Patient P-7")
        until(page, both)
        _require_accessible(page, axe, "patient")
        for key in ("+", "+", "ArrowRight"):
            page.keyboard.press(key)
            page.wait_for_timeout(700)
        left, right = (page.evaluate(f"[pathovit.viewers[{i}].umPerPixel, ...pathovit.viewers[{i}].fraction()]") for i in (0, 1))
        assert left == pytest.approx(right, abs=0.01)
        page.keyboard.press("y")
        page.keyboard.press("+")
        page.wait_for_timeout(700)
        assert page.evaluate("pathovit.viewers[0].umPerPixel / pathovit.viewers[1].umPerPixel") < 0.8
