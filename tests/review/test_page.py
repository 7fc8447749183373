"""The review page in a real browser, over a real server: read, decide, paint, teach, by keyboard and mouse."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_browser import LOADED, judge, open_slide_page, serving, show_answer, until
from made_runs import HOSTILE
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page

from pathovit.outputs.folder import OutFolder
from pathovit.review.audit import verify
from pathovit.review.record import Record


def painted(page: Page) -> dict[str, int]:
    return dict(
        page.evaluate("[...pathovit.reading.painted.value.values()].reduce((n, l) => ({...n, [l]: (n[l] ?? 0) + 1}), {})")
    )


def pixels(picture: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(np.int64)


def saved(page: Page) -> None:
    until(page, "pathovit.reading.saving.value === 0")


def test_a_slide_is_read_decided_and_signed_by_keyboard(page: Page, out: Path) -> None:
    with serving(out, "--reader", "Dr. A") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        assert "token" not in page.url
        assert page.locator(".row").count() == 3
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Your first impression")
        file = page.locator(".title h1").text_content()
        assert page.locator(".ruo").is_visible()
        assert page.locator(".legend").count() == 0
        page.keyboard.press("2")
        show_answer(page)
        judge(page, "d", "normal")
        page.get_by_label("Note").fill("<img src=x onerror=alert(1)>")
        page.get_by_role("button", name="Keep").click()
        page.wait_for_selector("text=First impression: tumour")
        assert page.locator(".note").text_content() == "<img src=x onerror=alert(1)>"
        page.keyboard.press("s")
        page.wait_for_selector(".signed")
        page.reload()
        page.wait_for_selector(".signed")
        page.keyboard.press("Escape")
        page.wait_for_selector(f".row:has-text('{file[:5] if file else ''}') .signed")
    record = Record(OutFolder(out))
    audit = verify(record)
    assert audit.broken == ()
    said = [event for event in audit.events if event.kind != "opened"]
    kinds = ["opened", *(event.kind for event in said)]
    assert kinds[:3] == ["opened", "first_impression", "shown"]
    assert kinds[-2:] == ["decision", "signed"]
    assert {event.reader for event in audit.events} == {"Dr. A"}
    assert not audit.events[1].seen["answer"]
    assert said[-1].seen["answer"]
    assert said[-1].seen["threshold"] == 0.5


def test_names_that_hurt_are_text(page: Page, out: Path) -> None:
    with serving(out) as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, f"{HOSTILE}.svs")
        assert page.locator(".title h1").text_content() == f"{HOSTILE}.svs"
        assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("drawer", ["webgl", "canvas"])
def test_the_map_lies_on_its_tissue_at_every_zoom(page: Page, out: Path, drawer: str) -> None:
    """The corner of the scanned picture, found in the pixels on the screen, is where the map puts it."""
    with serving(out, "--open") as url:
        base, token = url.split("#")
        page.goto(f"{base}?drawer={drawer}#{token}")
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        assert page.evaluate("pathovit.viewer.osd.drawer.getType()") == drawer
        for um in (4.0, 1.5, 0.5):
            page.evaluate(f"pathovit.viewer.goTo(0, 0, {um}, true)")
            until(page, LOADED)
            page.wait_for_timeout(300)
            x, y = page.evaluate("pathovit.viewer.screenOf(0, 0)")
            box = page.locator(".osd").bounding_box()
            assert box
            edge = _edge(page, box)
            assert abs(edge[0] - x) <= 1, um
            assert abs(edge[1] - y) <= 1, um
            wide = page.evaluate("pathovit.viewer.screenOf(100, 0)[0]") - x
            assert wide * page.evaluate("pathovit.viewer.umPerPixel") == pytest.approx(
                100 * page.evaluate("pathovit.viewer.mpp[0]"), rel=0.005
            )


def _edge(page: Page, box: object) -> tuple[int, int]:
    """Where the picture begins on the screen: first column and row that are not the page's own grey, right and below of the middle."""
    assert isinstance(box, dict)
    page.evaluate("document.querySelector('.tools-on').style.display = 'none'")
    shot = pixels(page.locator(".osd").screenshot())
    height, width = shot.shape[:2]
    glass = np.array([241, 241, 240])
    other = np.abs(shot - glass).max(2) > 3
    row, column = other[height // 2 + 60, :], other[:, width // 2 + 60]
    return int(np.flatnonzero(row[width // 2 - 40 :])[0]) + width // 2 - 40, int(
        np.flatnonzero(column[height // 2 - 40 :])[0]
    ) + height // 2 - 40


def test_without_a_graphics_card_a_plain_canvas_draws(page: Page, out: Path) -> None:
    """WebGL in software would take a fifth of a second for a frame."""
    with serving(out, "--open") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        named = page.evaluate(
            """() => {
              const context = document.createElement('canvas').getContext('webgl2');
              return context?.getParameter(context.getExtension('WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL) ?? 'software';
            }"""
        )
        in_software = any(word in named.lower() for word in ("swiftshader", "llvmpipe", "software"))
        assert page.evaluate("pathovit.viewer.osd.drawer.getType()") == ("canvas" if in_software else "webgl")


def test_a_lost_context_is_survived(page: Page, out: Path) -> None:
    with serving(out, "--open") as url:
        base, token = url.split("#")
        page.goto(f"{base}?drawer=webgl#{token}")
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        lost = page.evaluate(
            """() => {
              const context = pathovit.viewer.osd.drawer._glContext.getContext();
              context.getExtension('WEBGL_lose_context').loseContext();
              return context.isContextLost();
            }"""
        )
        assert lost
        page.wait_for_timeout(500)
        page.keyboard.press("+")
        until(page, LOADED)
        page.keyboard.press("h")  # the map lies on a canvas of its own
        page.wait_for_timeout(500)
        assert pixels(page.locator(".osd").screenshot()).std() > 10  # tissue, not an empty canvas


def test_regions_are_gone_through_and_the_threshold_moves_them(page: Page, out: Path) -> None:
    with serving(out, "--open") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        until(page, "pathovit.reading.regions.value.length > 0")
        page.keyboard.press("n")
        assert page.locator(".region[aria-current=true] b").text_content() == "1"
        until(page, "Math.abs(pathovit.viewer.umPerPixel - 0.5) < 0.01")
        area = page.evaluate("pathovit.reading.regions.value[0].mm2")
        cells = page.evaluate("pathovit.reading.regions.value.reduce((n, r) => n + r.cells.length, 0)")
        assert cells == page.evaluate("pathovit.reading.cells.value.filter((b) => b >= 128).length")
        for _ in range(8):
            page.keyboard.press("]")
        assert page.evaluate("pathovit.reading.threshold.value") == pytest.approx(0.9)
        until(page, "!pathovit.reading.searching.value")
        assert page.evaluate("pathovit.reading.regions.value[0]?.mm2 ?? 0") < area
        page.keyboard.press("h")
        assert page.evaluate("pathovit.viewer.overlay.map") is None
        page.keyboard.press("h")
        page.keyboard.down(" ")
        assert page.evaluate("pathovit.viewer.overlay.map") is None
        page.keyboard.up(" ")
        assert page.evaluate("pathovit.viewer.overlay.map !== null")
        for _ in range(8):
            page.keyboard.press("[")
        page.keyboard.press("n")
        page.keyboard.press("d")  # of the region
        saved(page)
        assert set(painted(page)) == {"not tumour"}


def test_tiles_are_painted_by_mouse_and_keyboard_and_taken_back(page: Page, out: Path) -> None:
    with serving(out, "--open") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        page.keyboard.press("1")
        box = page.locator(".osd").bounding_box()
        assert box
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 150, y, steps=9)
        page.mouse.up()
        saved(page)
        (label,) = painted(page)
        count = painted(page)[label]
        assert count >= 3
        page.keyboard.press("2")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        saved(page)
        assert sorted(painted(page).values()) == [1, count]
        page.keyboard.press("z")
        saved(page)
        assert painted(page) == {label: count}
        page.keyboard.press("e")
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 4, y)
        page.mouse.up()
        saved(page)
        assert painted(page)[label] < count
        before = painted(page)
        page.reload()
        until(page, "globalThis.pathovit?.reading.painted.value.size > 0")
        assert painted(page) == before


def test_what_was_painted_teaches_and_the_map_follows(page: Page, out: Path, tmp_path: Path) -> None:
    with serving(out, "--open") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        paint_from_the_map(page)
        page.keyboard.press("L")
        page.wait_for_selector("text=Learning…")
        page.wait_for_selector("text=Learn now", timeout=120_000)
        page.wait_for_selector("text=model taught")
        assert "AUROC" in (page.locator(".curve").text_content() or "") or "Paint at least" in (
            page.locator(".curve").text_content() or ""
        )
        page.wait_for_selector(".asked img")
        page.keyboard.press("q")
        page.wait_for_selector("text=what is it?")
        before = sum(painted(page).values())
        page.keyboard.press("1")
        saved(page)
        assert sum(painted(page).values()) == before + 1
        until(page, LOADED)
    assert json.loads((out / "review" / "taught" / "model.json").read_text())["taught"]["slides"] == 1
    assert verify(Record(OutFolder(out))).broken == ()


def paint_from_the_map(page: Page) -> None:
    """Five strokes of each class, where the map of the slide is surest, as a person would who sees it."""
    page.evaluate(
        """async () => {
          const { reading } = pathovit, cells = reading.cells.value, columns = reading.columns.value, tissue = reading.tissue.value;
          const run = (good) => {
            const found = [];
            for (let cell = 0; cell + 2 < cells.length && found.length < 5; cell++)
              if ([0, 1, 2].every((s) => tissue[cell + s] === 1 && good(cells[cell + s]) && (cell % columns) + 2 < columns) && found.every((f) => Math.abs(f - cell) > 4)) found.push(cell);
            return found;
          };
          for (const start of run((byte) => byte > 150)) await reading.paint([start, start + 1, start + 2], 'tumour');
          for (const start of run((byte) => byte < 20)) await reading.paint([start, start + 1, start + 2], 'normal');
        }"""
    )
    assert set(painted(page)) == {"tumour", "normal"}


def test_a_folder_without_slides_and_a_slide_that_failed_are_said(page: Page, out: Path) -> None:
    bare = out.parent / "bare"
    (bare / "slides").mkdir(parents=True)
    with serving(bare) as url:
        page.goto(url)
        page.wait_for_selector("text=No slide here yet")
    shutil.copytree(out, out.parent / "copy")
    damaged = next((out.parent / "copy" / "slides").iterdir()) / "slide.json"
    damaged.write_text("{")
    with serving(out.parent / "copy") as url:
        page.goto(url)
        page.wait_for_selector("text=Failed")
        page.locator(".row").first.click()
        page.wait_for_selector(".panel >> text=run it again")
