"""The review page in a real browser, over a real server: read, decide, paint, teach, by keyboard and mouse."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import pathovit
from made_browser import CHROMIUM, FLAGS, GONE, LOADED, OF_THE_DRIVER, open_slide_page, serving, until
from made_runs import HOSTILE
from playwright.sync_api import Browser, Page, sync_playwright

from pathovit.outputs.folder import OutFolder
from pathovit.review.audit import verify
from pathovit.review.record import Record
from pathovit.review.server import BUILT

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(not (BUILT / "review.js").is_file(), reason="the page was not built: the npm registry was out of reach"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
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
    assert [said for said in complaints if not any(known in said for known in (*OF_THE_DRIVER, GONE))] == []


def painted(page: Page) -> dict[str, int]:
    return dict(
        page.evaluate("[...pathovit.reading.painted.value.values()].reduce((n, l) => ({...n, [l]: (n[l] ?? 0) + 1}), {})")
    )


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
        page.keyboard.press("1")
        page.wait_for_selector("text=Your decision")
        if page.locator("text=Show anyway").count():
            page.keyboard.press("x")
        page.wait_for_selector(".legend")
        if page.locator("[data-judgement=disagree]").count():
            page.keyboard.press("d")
        else:
            page.get_by_role("group", name="What the slide is").get_by_role("button", name="normal").click()
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
    kinds = [event.kind for event in audit.events]
    assert kinds[:3] == ["opened", "first_impression", "shown"]
    assert kinds[-2:] == ["decision", "signed"]
    assert {event.reader for event in audit.events} == {"Dr. A"}
    assert not audit.events[1].seen["answer"]
    assert audit.events[-1].seen["answer"]
    assert audit.events[-1].seen["threshold"] == 0.5


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
    import io

    from PIL import Image

    assert isinstance(box, dict)
    page.evaluate("document.querySelector('.tools-on').style.display = 'none'")
    shot = np.asarray(Image.open(io.BytesIO(page.locator(".osd").screenshot())).convert("RGB")).astype(int)
    height, width = shot.shape[:2]
    glass = np.array([241, 241, 240])
    other = np.abs(shot - glass).max(2) > 3
    row, column = other[height // 2 + 60, :], other[:, width // 2 + 60]
    return int(np.flatnonzero(row[width // 2 - 40 :])[0]) + width // 2 - 40, int(
        np.flatnonzero(column[height // 2 - 40 :])[0]
    ) + height // 2 - 40


def test_a_lost_context_is_survived(page: Page, out: Path) -> None:
    with serving(out, "--open") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        page.evaluate(
            """() => { for (const c of document.querySelectorAll('.openseadragon-canvas canvas')) c.getContext('webgl2')?.getExtension('WEBGL_lose_context')?.loseContext() }"""
        )
        page.wait_for_timeout(500)
        page.keyboard.press("+")
        until(page, LOADED)
        assert page.evaluate("pathovit.viewer.zoom") > 0


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
            page.keyboard.press("1")
            page.wait_for_selector("text=Your decision")
            if page.locator("text=Show anyway").count():
                page.keyboard.press("x")
                page.wait_for_selector(".legend")
            if page.locator("[data-judgement]").count():
                page.keyboard.press(key)
            else:
                page.get_by_role("group", name="What the slide is").get_by_role(
                    "button", name="tumour" if key == "a" else "normal"
                ).click()
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


STATES = ["light", "dark"]


@pytest.mark.parametrize("scheme", STATES)
def test_nobody_is_kept_out(page: Page, out: Path, scheme: str, axe: str) -> None:
    """No serious finding of axe-core in any state of the page."""
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
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


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    found = Path(__file__).parents[2] / "pathovit" / "review" / "page" / "node_modules" / "axe-core" / "axe.min.js"
    if not found.is_file():
        pytest.skip("axe-core is not here: make page")
    return found.read_text()


def _require_accessible(page: Page, axe: str, state: str) -> None:
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for one in found["violations"] if one["impact"] in ("serious", "critical") for node in one["nodes"]
    ]  # fmt: skip
    assert serious == [], state


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
