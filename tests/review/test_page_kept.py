"""What is done on the page is kept, and as what it was done: sessions that end, keys that are fast, maps that are drawn anew meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from made_browser import open_slide_page, serving, until
from made_runs import folder_of
from playwright.sync_api import Browser, Page

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore


@contextmanager
def at_slide(browser: Browser, out: Path) -> Iterator[tuple[Page, str]]:
    """The page of a slide, and the token; what is refused stands in the console, and is no fault here."""
    with serving(out, "--open") as url:
        page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        until(page, "!!pathovit.reading.tissue.value && pathovit.reading.saving.value === 0")
        yield page, url.split("#token=")[1]
        page.context.close()


def painted(page: Page) -> dict[str, int]:
    return dict(
        page.evaluate("[...pathovit.reading.painted.value.values()].reduce((n, l) => ({...n, [l]: (n[l] ?? 0) + 1}), {})")
    )


FIRST = "[...pathovit.reading.tissue.value.keys()].filter((cell) => pathovit.reading.tissue.value[cell] === 1)"


def test_a_stroke_that_is_made_when_the_session_is_over_is_kept_after_one_has_entered_again(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, token):
        page.context.clear_cookies()
        page.evaluate(f"void pathovit.reading.paint({FIRST}.slice(0, 3), 'tumour')")
        page.wait_for_selector(".entering")
        assert page.locator("main.slide").count() == 1, "what was being done is still there"
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Enter").click()
        until(page, "pathovit.reading.saving.value === 0")
        assert page.locator(".entering").count() == 0
        assert painted(page) == {"tumour": 3}
        page.reload()
        until(page, "globalThis.pathovit?.reading.painted.value.size === 3")


def test_a_brush_that_is_picked_during_a_stroke_is_for_the_next(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, _):
        page.evaluate(
            f"""() => {{
              const reading = pathovit.reading, cells = {FIRST};
              reading.brushLabel.value = "tumour"; reading.beginStroke(); reading.strokeTo(cells[0]);
              reading.brushLabel.value = "normal"; reading.mode.value = "look"; reading.strokeTo(cells[5]);
              void reading.endStroke();
            }}"""
        )
        until(page, "pathovit.reading.saving.value === 0")
        assert painted(page) == {"tumour": 2}


def test_classes_keep_their_keys_whatever_is_painted_first(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, _):
        before = page.evaluate("pathovit.reading.classes.value")
        for name in ("zebra", "ant"):
            page.get_by_label("Another class").fill(name)
            page.get_by_role("button", name="Add").click()
        assert page.evaluate("pathovit.reading.classes.value") == [*before, "zebra", "ant"]
        for name in ("ant", "zebra"):
            page.evaluate(f"void pathovit.reading.paint({FIRST}.slice(0, 1), '{name}')")
            until(page, "pathovit.reading.saving.value === 0")
            assert page.evaluate("pathovit.reading.classes.value") == [*before, "zebra", "ant"]


def test_a_key_answers_the_tile_that_is_in_view_and_no_other(browser: Browser, out: Path) -> None:
    folder = folder_of(out, "one")
    stored = FeatureStore(OutFolder(out).slide(folder.name), Path("x")).read()
    squares = []
    for rank, (x, y) in enumerate(stored.xy[[4, 9]].tolist(), start=1):
        ring = [
            [x, y],
            [x + stored.tile_l0[0], y],
            [x + stored.tile_l0[0], y + stored.tile_l0[1]],
            [x, y + stored.tile_l0[1]],
            [x, y],
        ]
        squares.append({"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"name": f"suggested {rank}"}})
    (out / "suggested").mkdir()
    (out / "suggested" / f"{folder.name}.geojson").write_text(json.dumps({"features": squares}))
    with at_slide(browser, out) as (page, _):
        until(page, "pathovit.reading.asked.value.length === 2")
        page.keyboard.press("q")
        until(page, "pathovit.reading.askedAt.value === 0")
        page.evaluate("void Promise.all([pathovit.reading.answerAsked('normal'), pathovit.reading.answerAsked('tumour')])")
        until(page, "pathovit.reading.saving.value === 0 && pathovit.reading.askedHere.value.length === 1")
        page.evaluate("pathovit.viewer.fit(true)")
        page.evaluate("pathovit.viewer.goTo(-9000, -9000, 0.5, true)")
        page.keyboard.press("2")
        until(page, "pathovit.reading.mode.value === 'paint'")
        assert painted(page) == {"normal": 1}, "a key is meant for what is in view"
        page.keyboard.press("Escape")
        page.keyboard.press("q")
        assert painted(page) == {"normal": 1}, "the second key was no answer for a tile that nobody had seen"
        assert page.evaluate("pathovit.reading.askedTile.value.index") == 9
        page.evaluate(
            "void pathovit.reading.paint([pathovit.reading.asked.value[1]].map((t) => t.row * pathovit.reading.columns.value + t.column), 'tumour')"
        )
        until(page, "pathovit.reading.saving.value === 0")
        assert page.evaluate("pathovit.reading.askedAt.value") == -1, "it was painted, and is not asked for any more"


def test_what_was_said_of_another_tiling_is_refused_and_the_page_looks_again(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, _):
        page.evaluate(
            """() => {
              const page = pathovit.reading.page;
              page.value = {...page.value, drawn: "x", about: {...page.value.about, tiles_sha256: "x"}};
            }"""
        )
        page.evaluate(f"void pathovit.reading.paint({FIRST}.slice(0, 3), 'tumour')")
        page.wait_for_selector("text=This slide was drawn anew meanwhile: nothing was kept")
        until(page, "pathovit.reading.page.value.about.tiles_sha256.length === 64")
        assert painted(page) == {}


def test_nothing_is_kept_under_another_readers_name(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, _):
        page.evaluate(
            """() => {
              const page = pathovit.reading.page;
              page.value = {...page.value, opinion: {...page.value.opinion, reader: "Dr. Z"}};
            }"""
        )
        page.evaluate(f"void pathovit.reading.paint({FIRST}.slice(0, 3), 'tumour')")
        page.wait_for_selector("text=reads in this browser now, and not Dr. Z: nothing was kept")
        assert painted(page) == {}


def test_regions_are_judged_one_after_the_other_and_taken_back_by_name(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, _):
        page.evaluate(
            f"""() => {{
              const cells = {FIRST}, map = new Uint8Array(pathovit.reading.cells.value.length);
              map[cells[0]] = map[cells.at(-1)] = 255;
              pathovit.reading.cells.value = map;
            }}"""
        )
        until(page, "pathovit.reading.regions.value.length === 2")
        for expected in (0, 1):
            page.keyboard.press("n")
            until(page, f"pathovit.reading.region.value === {expected}")
            page.keyboard.press("a")
            until(page, "pathovit.reading.saving.value === 0")
            assert page.evaluate("pathovit.reading.region.value") == expected, "what was said leaves the choice as it is"
        runs = page.evaluate("pathovit.reading.page.value.opinion.regions.map((one) => JSON.stringify(one.runs))")
        assert len(set(runs)) == len(runs) == 2
        page.keyboard.press("z")
        page.wait_for_selector("text=Taken back: what you said of a region.")


def test_a_decision_that_is_not_kept_is_not_left_without_a_word(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, _):
        assert page.locator("[data-judgement]").count() == 3
        page.keyboard.press("a")
        until(page, "pathovit.reading.drafting.value")
        page.keyboard.press("s")
        page.wait_for_selector("text=Your decision is not kept yet: Enter keeps it. Then s signs.")
        page.keyboard.press("j")
        page.wait_for_selector("text=The same key again leaves without it.")
        assert page.evaluate("pathovit.reading.page.value.file") == "one.svs"
        page.keyboard.press("Enter")
        until(page, "pathovit.reading.page.value.opinion.judgement === 'agree' && !pathovit.reading.drafting.value")
        page.keyboard.press("s")
        until(page, "pathovit.reading.page.value.opinion.signed === 'agreed'")


def test_keys_before_the_login_do_nothing_and_what_was_said_elsewhere_comes(browser: Browser, out: Path) -> None:
    with at_slide(browser, out) as (page, token):
        page.context.clear_cookies()
        page.evaluate(f"void pathovit.reading.paint({FIRST}.slice(0, 1), 'tumour')")
        page.wait_for_selector(".entering")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Token", "what is typed goes there"
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("b")
        assert page.evaluate("pathovit.reading.mode.value") == "look"
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Enter").click()
        until(page, "pathovit.reading.saving.value === 0")
        other = page.context.new_page()
        other.goto(page.url)
        other.wait_for_selector("[data-judgement]")
        until(other, "!!pathovit.reading.tissue.value && pathovit.reading.saving.value === 0")
        other.keyboard.press("a")
        other.keyboard.press("Enter")
        until(other, "pathovit.reading.page.value.opinion.judgement === 'agree'")
        page.keyboard.press("u")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=This changes a decision: say why.")
        until(page, "pathovit.reading.page.value.opinion.judgement === 'agree'")
        assert page.locator("text=This changes a decision: say why.").count() == 1, "it stays"
