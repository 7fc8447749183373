"""The review page on folders that are out of the ordinary: bounds, hostile names, 200,704 tiles, files from QuPath, TLS, all of one group."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import pathovit
from distributed.security import Security
from made_browser import LOADED, open_slide_page, serving, until
from made_large import SIDE, write_large, write_large_slide
from made_reader import SCRIPTS
from made_runs import folder_of, rewrite
from made_slides import LEICA_OFFSET, TISSUE, squares_picture, write_leica
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Dialog, Page

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore
from pathovit.review.opinion import painted_by_all
from pathovit.review.record import Record
from pathovit.text import plain


def still(page: Page) -> NDArray[np.int64]:
    """The slide on the screen, when it does not change any more."""
    before = b""
    while (now := page.locator(".osd").screenshot()) != before:
        before = now
        page.wait_for_timeout(150)
    return np.asarray(Image.open(io.BytesIO(now)).convert("RGB")).astype(np.int64)


def test_a_landmark_and_its_tile_coincide_where_the_scan_fills_a_corner_of_the_glass(page: Page, tmp_path: Path) -> None:
    """The corner of the tissue, and a painted tile, each found in the pixels on the screen, at three zooms."""
    slide = write_leica(tmp_path / "leica.scn", squares_picture())
    out = tmp_path / "out"
    done = pathovit("run", slide, "--out", out)
    assert done.returncode == 0, done.stderr
    stored = FeatureStore(OutFolder(out).slide(folder_of(out, "leica").name), slide).read()
    assert stored.attributes.has_bounds
    corner = tuple(float(place + offset) for place, offset in zip(TISSUE[:2], LEICA_OFFSET, strict=True))
    index = int(np.abs(stored.xy - np.array(corner) - 256).sum(1).argmin())  # a tile in the tissue
    column, row = (int(v) for v in stored.grid.lattice()[index])
    with serving(out, "--open") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "leica.scn")
        page.evaluate(
            "document.querySelectorAll('.tools-on, .scale, .ruo, .navigator').forEach((one) => (one.style.display = 'none'))"
        )
        page.evaluate("pathovit.reading.heat.value = false")
        columns = page.evaluate("pathovit.reading.columns.value")
        for um in (3.0, 1.5, 1.0):
            page.evaluate(f"pathovit.viewer.goTo({corner[0]} + 200, {corner[1]} + 120, {um}, true)")
            until(page, LOADED)
            x, y = page.evaluate(f"pathovit.viewer.screenOf({corner[0]}, {corner[1]})")
            bare = still(page)
            tissue = (bare.max(2) - bare.min(2)) > 30
            assert abs(np.flatnonzero(tissue[round(y) + 40])[0] - x) < 1.01, um
            assert abs(np.flatnonzero(tissue[:, round(x) + 40])[0] - y) < 1.01, um
            page.evaluate(f"pathovit.reading.paint([{row * columns + column}], 'tumour')")
            until(page, "pathovit.reading.saving.value === 0 && pathovit.reading.painted.value.size === 1")
            changed = np.abs(still(page) - bare).max(2) > 8
            rows, cols = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            scale = 0.5 / um  # screen pixels to a level-0 pixel
            middle = stored.xy[index] + np.array(stored.tile_l0) / 2 - corner
            assert (cols[0] + cols[-1] + 1) / 2 == pytest.approx(x + middle[0] * scale, abs=1), um
            assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(y + middle[1] * scale, abs=1), um
            wide = stored.tile_l0[0] * scale
            assert wide <= cols[-1] + 1 - cols[0] <= wide + 6, um  # with its outline
            page.keyboard.press("z")
            until(page, "pathovit.reading.saving.value === 0 && pathovit.reading.painted.value.size === 0")


FOREIGN = "body script, iframe, object, math, template, animate, [onerror], [onload], [ontoggle], [onfocus], .row img, body meta, body style"


SAY = """async ([key, said]) => {
  const body = JSON.stringify({said, seen: {answer: false}});
  return (await fetch(`/api/slides/${key}/events`, {method: 'POST', headers: {'content-type': 'application/json'}, body})).status;
}"""


def test_hostile_names_of_slides_patients_readers_and_classes_are_text(page: Page, out: Path) -> None:
    """25 of each, in the list and on a page of each slide: nothing of them becomes a part of the page."""
    known = json.loads((folder_of(out, "one") / "slide.json").read_text())
    for number, script in enumerate(SCRIPTS):
        name = f"s-{number:012x}"
        shutil.copytree(folder_of(out, "one"), out / "slides" / name)
        known["slide"] |= {"slide_id": name, "sha256": f"{number:064x}", "file": script, "patient": script, "label": script}
        rewrite(out / "slides" / name / "slide.json", **known)
    names, asked = {plain(script) for script in SCRIPTS}, list[str]()

    def refuse(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    with serving(out, "--reader", SCRIPTS[1]) as url:
        page.goto(url)
        page.wait_for_selector(".row")
        own = page.evaluate(f"document.querySelectorAll({FOREIGN!r}).length")
        for field in ("file", "patient"):
            assert names <= set(page.locator(f".row .{field}").all_text_contents())
        assert page.locator("header").get_by_text(SCRIPTS[1]).count() == 1
        rows = page.evaluate(
            "fetch('/api/worklist').then((answer) => answer.json()).then((list) => list.rows.map((row) => [row.file, row.key]))"
        )
        for file, key in rows:
            if file not in names:
                continue
            for said in (
                {"event": "first_impression", "label": file}, {"event": "shown", "anyway": True},
                {"event": "decision", "judgement": "none", "label": file, "note": file}, {"event": "painted", "label": file, "runs": [[0, 0, 1]]},
            ):  # fmt: skip
                assert page.evaluate(SAY, [key, said]) == 200
            page.evaluate(f"location.hash = '#/slide/{key}'")
            until(page, f"document.querySelector('.title h1')?.textContent === {json.dumps(file)}")
            until(page, f"document.querySelector('.panel .note')?.textContent === {json.dumps(file)}")
            assert page.locator(".panel").get_by_text(file).count() >= 2  # its name, and what it was decided to be
            assert page.evaluate(f"document.querySelectorAll({FOREIGN!r}).length") == own, file
        page.evaluate("location.hash = '#/'")
        page.wait_for_selector(".row")
        assert page.evaluate(f"document.querySelectorAll({FOREIGN!r}).length") == own
    assert asked == []


def test_200704_tiles_are_one_region_or_a_hundred_thousand(page: Page, out: Path, tmp_path: Path) -> None:
    slide = write_large_slide(tmp_path / "wide.tif")
    write_large(out, slide)
    with serving(out, "--open", "--slides", str(tmp_path)) as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "wide.tif")
        if page.locator("text=Show anyway").count():
            page.keyboard.press("x")
        until(page, "pathovit.reading.regions.value.length > 0")
        names = page.evaluate("pathovit.reading.page.value.layers.map((layer) => layer.name)")
        found = {}
        for name in ("tumour", "normal"):
            page.evaluate(f"pathovit.reading.showLayer({names.index(name)})")
            until(page, f"pathovit.reading.info.value.name === {name!r} && !pathovit.reading.searching.value")
            found[name] = page.evaluate("pathovit.reading.regions.value.map((region) => region.cells.length)")
        assert found["tumour"] == [SIDE * SIDE // 2]
        assert found["normal"] == [1] * (SIDE * SIDE // 2)
        assert page.locator(".regions .region").count() == 200
        page.keyboard.press("n")
        page.keyboard.press("d")
        until(page, "pathovit.reading.painted.value.size === 1 && pathovit.reading.saving.value === 0")


def test_a_drawing_comes_in_from_qupath_is_corrected_and_goes_back(page: Page, out: Path, tmp_path: Path) -> None:
    case = folder_of(out, "one").name
    stored = FeatureStore(OutFolder(out).slide(case), Path("one.svs")).read()
    x, y = (float(v) for v in stored.xy[5])
    ring = [[x, y], [x + 1, y], [x + stored.tile_l0[0], y + stored.tile_l0[1]], [x, y + stored.tile_l0[1]], [x, y]]
    ring[1] = [x + stored.tile_l0[0], y]
    feature = {
        "type": "Feature",
        "id": "f",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "tumour"}},
    }
    (tmp_path / "one.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    done = pathovit("review", out, "--import", tmp_path / "one.geojson", "--reader", "Dr. A")
    assert done.returncode == 0, done.stderr
    column, row = (int(v) for v in stored.grid.lattice()[5])
    with serving(out, "--open", "--reader", "Dr. A") as url:
        page.goto(url)
        page.wait_for_selector(".row")
        open_slide_page(page, "one.svs")
        until(page, "pathovit.reading.painted.value.size === 1")
        columns = page.evaluate("pathovit.reading.columns.value")
        assert page.evaluate("[...pathovit.reading.painted.value]") == [[row * columns + column, "tumour"]]
        page.evaluate(f"pathovit.reading.cursor.value = {row * columns + column}")
        page.keyboard.press("b")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        until(
            page,
            f"pathovit.reading.painted.value.get({row * columns + column}) === 'normal' && pathovit.reading.saving.value === 0",
        )
    done = pathovit("review", out, "--regions", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "back").iterdir()
    (back,) = json.loads(file.read_text())["features"]
    assert back["properties"]["classification"]["name"] == "normal"
    assert painted_by_all(Record(OutFolder(out)).events(case))[0] == {(row, column): "normal"}
    printed = pathovit("audit", "print", out)
    assert "imported" in printed.stdout
    assert "one" not in printed.stdout.replace("opened", "")  # files of regions are named after their slides
    assert pathovit("audit", "verify", out).returncode == 0


def test_it_is_read_over_tls(browser: Browser, out: Path, tmp_path: Path) -> None:
    made = Security.temporary()
    (tmp_path / "certificate.pem").write_text(made.tls_ca_file)
    (tmp_path / "key.pem").write_text(made.tls_scheduler_key)
    with serving(out, "--tls-certificate", str(tmp_path / "certificate.pem"), "--tls-key", str(tmp_path / "key.pem")) as url:
        assert url.startswith("https://")
        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector(".row")
        context.clear_cookies()
        page.reload()
        page.get_by_label("Token").wait_for()
        page.goto(url)  # again, in a page that is open: nothing but the part after the # is new
        page.wait_for_selector(".row")
        (cookie,) = context.cookies()
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
        context.close()
