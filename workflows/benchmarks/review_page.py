"""How fast the review page is, and what it stands: a real server before a real browser.

python workflows/benchmarks/review_page.py --slide SLIDE --work WORK [--repeats 5] [--seconds 30]

SLIDE is a real slide. Beside it a slide of 102,400 x 102,400 pixels is made of its own tissue, and a worklist of 5,000 slides. Measured: from the
click on a slide to its first pixels and to a whole view; the time of a tile asked for again; from `n` to a whole view of a region; from another
threshold to the picture on the screen; from the address to the first rows of the worklist; two rounds of teaching with 40 tiles; and what
64 connections do to the server. Writes review_page.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import tifffile
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pathovit.outputs.sealed import write_sealed
from pathovit.slides.slide import open_slide

BLOCK, REPEATED, TILE = 4096, 25, 512  # pixels of the tissue that is repeated, how often on each side, and of a tile
MANY = 5000
LOADED = "!!globalThis.pathovit?.viewer?.osd.world.getItemAt(0)?.getFullyLoaded()"
CONNECTIONS = 64


def make_large(slide: Path, path: Path) -> None:
    """A pyramid of a block of real tissue, side by side; each level holds the block at its own scale."""
    with open_slide(slide) as opened:
        box = opened.bounds
        level = opened.level(0)
        x, y = box.x + (box.width - BLOCK) // 2, box.y + (box.height - BLOCK) // 2
        block = Image.fromarray(opened.read(level, x, y, BLOCK, BLOCK)[0])
        mpp = opened.mpp[0]
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for factor in (1, 4, 16, 64):
            size = BLOCK // factor
            small = np.asarray(block.resize((size, size), Image.Resampling.BOX))
            side = BLOCK * REPEATED // factor
            wide = np.tile(small, (max(1, 2 * TILE // size), max(1, 2 * TILE // size), 1)) if size < TILE else small

            def tiles(wide: np.ndarray = wide, side: int = side) -> Iterator[np.ndarray]:
                for top in range(0, side, TILE):
                    for left in range(0, side, TILE):
                        y, x = top % wide.shape[0], left % wide.shape[1]
                        yield (
                            np.roll(wide, (-y, -x), (0, 1))[:TILE, :TILE]
                            if wide.shape[0] < y + TILE or wide.shape[1] < x + TILE
                            else wide[y : y + TILE, x : x + TILE]
                        )

            tiff.write(
                tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), compression="jpeg", compressionargs={"level": 75},
                photometric="ycbcr", subfiletype=int(factor > 1), resolution=(1e4 / (mpp * factor),) * 2, resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip


def run(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "pathovit", *map(str, arguments)], check=True)


def make_many(one: Path, out: Path) -> None:
    """A folder of 5,000 finished slides, without their features."""
    (record,) = one.glob("slides/*/slide.json")
    known = json.loads(record.read_text())
    chance = random.Random(0)
    (out / "slides").mkdir(parents=True)
    for number in range(MANY):
        name = f"slide-{number:04d}-{number:012x}"
        known["slide"] |= {
            "slide_id": name,
            "sha256": f"{number:064x}",
            "file": f"S{number:04d}.svs",
            "patient": f"P{number // 3}",
        }
        risk = chance.random()
        known["prediction"] |= {
            "answer": chance.choice(["normal", "tumour", "unsure", "outside"]), "columns": {"prob_normal": 1 - risk, "prob_tumour": risk}, "strange": False,
        }  # fmt: skip
        (out / "slides" / name).mkdir()
        write_sealed(out / "slides" / name / "slide.json", known)


@contextmanager
def serving(out: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "pathovit", "review", str(out), "--no-browser", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        url = next(found.group(1) for line in server.stderr if (found := re.search(r"Open (http\S+)", line)))
        yield url, psutil.Process(server.pid)
        server.terminate()


def until(page: Page, wanted: str, seconds: float = 120) -> None:
    end = time.perf_counter() + seconds
    while not page.evaluate(wanted):
        assert time.perf_counter() < end, wanted
        page.wait_for_timeout(5)


def timed(action: Callable[[], object], done: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    done()
    return time.perf_counter() - began


def show(page: Page) -> None:
    """The map, of a slide that the model is not sure of, too."""
    if page.evaluate("!pathovit.reading.page.value.may_see"):
        page.keyboard.press("x")
    until(page, "!!pathovit.reading.cells.value")


FILL = """() => {
  let state = 1;
  pathovit.reading.cells.value = pathovit.reading.cells.value.map(() => 1 + ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24) % 255);
}"""


def look(page: Page, url: str, repeats: int, fill: bool) -> dict[str, list[float]]:
    """Opening, jumping and recolouring on the first slide of a folder; `fill`: with a value in every cell of its grid."""
    found: dict[str, list[float]] = {"first pixels": [], "whole view": [], "jump, first": [], "jump, again": [], "threshold": []}
    page.goto(url)
    page.wait_for_selector(".row")
    for _ in range(repeats):
        began = time.perf_counter()
        page.locator(".row").first.click()
        until(page, "!!globalThis.pathovit?.viewer?.osd.world.getItemAt(0)?._tilesToDraw?.flat?.().length || " + LOADED)
        found["first pixels"].append(time.perf_counter() - began)
        until(page, LOADED)
        found["whole view"].append(time.perf_counter() - began)
        show(page)
        for name in ("jump, first", "jump, again"):
            page.keyboard.press("f")
            page.wait_for_timeout(600)
            page.evaluate("pathovit.reading.region.value = -1")
            found[name].append(timed(lambda: page.keyboard.press("n"), lambda: (page.wait_for_timeout(20), until(page, LOADED))))
        page.keyboard.press("f")
        page.wait_for_timeout(800)
        if fill:
            page.evaluate(FILL)
        took = page.evaluate(
            """async () => {
              const found = [];
              for (let step = 0; step < 20; step++) {
                const began = performance.now();
                pathovit.reading.threshold.value = 0.2 + 0.03 * step;
                await new Promise((shown) => requestAnimationFrame(() => setTimeout(shown, 0)));
                found.push((performance.now() - began) / 1000);
              }
              return found;
            }"""
        )
        found["threshold"].append(statistics.median(took))
        page.keyboard.press("Escape")
        page.wait_for_selector(".row")
        page.evaluate("delete globalThis.pathovit")
    return found


def session_of(url: str) -> tuple[str, int, dict[str, str]]:
    host, port, token = re.findall(r"//([\d.]+):(\d+)/#token=(\S+)", url)[0]
    origin = f"http://{host}:{port}"
    link = http.client.HTTPConnection(host, int(port))
    link.request("POST", "/api/enter", json.dumps({"token": token}), {"content-type": "application/json", "origin": origin})
    answer = link.getresponse()
    answer.read()
    return host, int(port), {"cookie": answer.headers["set-cookie"].split(";")[0]}


def tile_names(host: str, port: int, headers: dict[str, str]) -> list[str]:
    link = http.client.HTTPConnection(host, port)
    link.request("GET", "/api/worklist", headers=headers)
    key = json.loads(link.getresponse().read())["rows"][0]["key"]
    link.request("GET", f"/api/slides/{key}", headers=headers)
    levels = json.loads(link.getresponse().read())["levels"]
    chance = random.Random(0)
    names = []
    for _ in range(400):
        level = chance.choice(levels)
        columns, rows = (-(-side // tile) for side, tile in zip(level["size"], level["tile"], strict=True))
        names.append(f"/api/slides/{key}/tile/{level['index']}/{chance.randrange(columns)}/{chance.randrange(rows)}")
    return names


def tiles(url: str) -> dict[str, float]:
    host, port, headers = session_of(url)
    names = tile_names(host, port, headers)
    link = http.client.HTTPConnection(host, port)
    found = {}
    for name in ("first", "again"):
        took = []
        for path in names:
            began = time.perf_counter()
            link.request("GET", path, headers=headers)
            answer = link.getresponse()
            answer.read()
            assert answer.status == 200, (path, answer.status)
            took.append(time.perf_counter() - began)
        found |= {f"tile, {name}, median": statistics.median(took), f"tile, {name}, p95": float(np.quantile(took, 0.95))}
    return found


def load(url: str, server: psutil.Process, seconds: float) -> dict[str, object]:
    """64 connections that ask for tiles as fast as they can."""
    host, port, headers = session_of(url)
    names, statuses, peak = tile_names(host, port, headers), Counter[int](), 0
    end = time.monotonic() + seconds

    def ask(seed: int) -> None:
        link, chance = http.client.HTTPConnection(host, port), random.Random(seed)
        while time.monotonic() < end:
            try:
                link.request("GET", chance.choice(names), headers=headers)
                answer = link.getresponse()
                answer.read()
                statuses[answer.status] += 1
            except (OSError, http.client.HTTPException):
                statuses[-1] += 1
                link = http.client.HTTPConnection(host, port)

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(CONNECTIONS)]
    for one in asking:
        one.start()
    while any(one.is_alive() for one in asking):
        peak = max(peak, server.memory_info().rss)
        time.sleep(0.1)
    return {"statuses": dict(statuses), "peak MB": round(peak / 1e6)}


PAINT = """async ([high, low]) => {
  const { reading } = pathovit, cells = reading.cells.value, columns = reading.columns.value, tissue = reading.tissue.value;
  const order = [...cells.keys()].filter((c) => cells[c] > 0).sort((a, b) => cells[b] - cells[a]);
  const strokes = (from) => {
    const found = [];
    for (const cell of from) {
      if (found.length === 5) break;
      if ([0, 1, 2, 3].every((s) => tissue[cell + s] === 1) && (cell % columns) + 3 < columns && found.every((f) => Math.abs(f - cell) > 3 * columns || Math.abs((f - cell) % columns) > 6)) found.push(cell);
    }
    return found;
  };
  for (const [label, from] of [[high, order], [low, order.toReversed()]])
    for (const start of strokes(from)) {
      await reading.paint([start, start + 1, start + 2, start + 3], label);
      await new Promise((painted) => setTimeout(painted, 1000));
    }
}"""


def teach(page: Page, url: str) -> dict[str, float]:
    """Forty tiles, a stroke a second, a lesson, twelve answers, a lesson; the seconds that one waits for the map of the slide, and for all of it."""
    page.goto(url)
    page.wait_for_selector(".row")
    page.locator(".row").first.click()
    until(page, LOADED)
    show(page)
    page.evaluate(PAINT, ["tumour", "normal"])
    found: dict[str, float] = {"tiles": page.evaluate("pathovit.reading.painted.value.size")}
    for lesson in ("first lesson", "second lesson"):
        drawn = page.evaluate("pathovit.reading.page.value.drawn")
        began = time.perf_counter()
        page.keyboard.press("L")
        until(page, f"pathovit.reading.page.value.drawn !== {drawn!r}")
        found[f"{lesson}, map there"] = time.perf_counter() - began
        page.wait_for_selector("text=Learning…", state="detached", timeout=300_000)
        found[f"{lesson}, ended"] = time.perf_counter() - began
        until(page, "pathovit.reading.askedHere.value.length > 0", 20)
        for _ in range(12):
            page.keyboard.press("q")
            page.keyboard.press("1")
            until(page, "pathovit.reading.saving.value === 0")
    return found


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    large = work / "large.tif"
    if not large.is_file():
        make_large(options.slide, large)
    for name, slide, more in (("real", options.slide, ()), ("large", large, ("--max-tiles", 2000))):
        if not (work / name).is_dir():
            run("run", slide, "--out", work / name, *more)
    shutil.rmtree(work / "many", ignore_errors=True)
    make_many(work / "real", work / "many")
    found: dict[str, object] = {}
    with sync_playwright() as driver:
        chromium = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        for name in ("real", "large"):
            copy = work / f"{name}-copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(work / name, copy)
            with serving(copy, "--open") as (url, server):
                page = browser.new_page(viewport={"width": 1366, "height": 768})
                found[name] = medians(look(page, url, options.repeats, name == "large")) | {
                    key: round(value, 4) for key, value in tiles(url).items()
                }
                print(name, found[name], flush=True)
                if name == "real":
                    found["teaching"] = {key: round(value, 1) for key, value in teach(page, url).items()}
                    print("teaching", found["teaching"], flush=True)
                page.close()
                if name == "large":
                    found["64 connections"] = load(url, server, options.seconds)
                    print("64 connections", found["64 connections"], flush=True)
        with serving(work / "many") as (url, _):
            base, entered = url.split("#")
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            page.goto(f"{base}#{entered}")
            page.wait_for_selector(".row")
            took = [timed(page.reload, lambda: page.wait_for_selector(".row")) for _ in range(options.repeats)]
            found["worklist of 5,000"] = round(statistics.median(took), 3)
            print("worklist of 5,000", found["worklist of 5,000"], flush=True)
            page.screenshot(path=work / "many.png")
        browser.close()
    (work / "review_page.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
