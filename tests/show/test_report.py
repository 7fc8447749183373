"""The report in a real browser: what it counts, how it is filtered, sorted and enlarged, and that it asks nobody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made import made_record
from made_browser import CHROMIUM, FLAGS
from playwright.sync_api import Page, sync_playwright

from pathovit.files import csv_table
from pathovit.outputs.records import Answer, Outcome
from pathovit.show.report import summary
from pathovit.show.table import Contents, table
from pathovit.text import say_mm2


@pytest.fixture(scope="module")
def page(finished: Path) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        shown = browser.new_page(viewport={"width": 1300, "height": 900})
        said: list[str] = []
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        shown.goto((finished / "report.html").as_uri())
        yield shown
        assert not said
        browser.close()


def visible(page: Page) -> list[str]:
    return [row.locator("td").first.inner_text() for row in page.locator("#slides tbody tr:visible").all()]


def test_answers_are_counted_and_a_click_shows_those_alone(page: Page) -> None:
    chips = {chip.get_attribute("data-state"): int(chip.locator("b").inner_text()) for chip in page.locator(".state").all()}
    assert sum(chips.values()) == 3
    assert "3 slides" in page.locator("h2").first.inner_text()
    chip = page.locator(".state[data-state=tumour]")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert len(visible(page)) == chips["tumour"] < 3
    assert page.locator("#count").inner_text() == f"{chips['tumour']} of 3 shown"
    assert page.locator("section[id^=slide-]:visible").count() == chips["tumour"]
    chip.click()
    assert len(visible(page)) == 3


def test_words_filter_and_a_column_sorts_up_down_and_back(page: Page) -> None:
    before = visible(page)
    page.fill("#words", before[1])
    assert visible(page) == [before[1]]
    page.fill("#words", "")
    head = page.locator("#slides th", has_text="tumour").first
    column = head.evaluate("cell => cell.cellIndex")

    def numbers() -> list[float]:
        return [float(row.locator("td").nth(column).inner_text()) for row in page.locator("#slides tbody tr").all()]

    head.locator("button").click()
    assert (head.get_attribute("aria-sort"), numbers()) == ("ascending", sorted(numbers()))
    head.locator("button").click()
    assert (head.get_attribute("aria-sort"), numbers()) == ("descending", sorted(numbers(), reverse=True))
    head.locator("button").click()
    assert visible(page) == before


def test_an_overview_is_enlarged_and_put_back(page: Page) -> None:
    picture = page.locator(".frame img").first
    before = picture.bounding_box()
    picture.click(position={"x": 40, "y": 40})
    large = picture.bounding_box()
    assert before
    assert large
    assert large["width"] == pytest.approx(2 * before["width"], rel=0.1)
    page.keyboard.press("Escape")
    after = picture.bounding_box()
    assert after
    assert after["width"] == before["width"]


def test_slides_of_a_patient_are_together_and_every_state_is_counted() -> None:
    answer = Answer("m", "a: 0.5", "a", {"prob_a": 0.5}, (("a",),), ("a", "b"), (0.5, 0.5), None, 0.2, False)
    records = [
        made_record(name, f"{name}.svs", patient=patient, prediction=replace(answer, answer=said))
        for name, patient, said in (("a-1", "P2", "a"), ("b-2", "P1", "unsure"), ("c-3", "P2", "b"), ("d-4", None, "a"))
    ]
    _, rows = table(Contents(tuple(records), (), (Outcome("e.svs", "empty"),), frozenset()))
    assert [row["file"] for row in rows] == ["a-1.svs", "c-3.svs", "b-2.svs", "d-4.svs", "e.svs"]
    assert summary(rows) == [("a", 2), ("b", 1), ("unsure", 1), ("failed", 1)]


def test_states_are_told_from_classes_of_the_same_name_and_numbers_are_one_state() -> None:
    rows = [
        {"verdict": "ok", "answer": "failed", "prob_failed": "0.9"},
        {"verdict": "failed"},
        {"verdict": "ok", "answer": "1", "prob_1": "0.8"},
    ]
    assert summary(rows) == [("1", 1), ("answered failed", 1), ("failed", 1)]
    measured = [{"verdict": "ok", "answer": f"{-0.01 * at:.4g}", "predicted_age": "1"} for at in range(50)]
    assert summary(measured) == [("answered", 50)]


def test_numbers_below_zero_and_signs_are_no_formulas() -> None:
    found = csv_table(["a"], [{"a": text} for text in ("-0.53219", "+", "-1e-07", "-2+3", "=1", "-,5", "@x")])
    assert found.decode().split() == ["a", "-0.53219", "+", "-1e-07", "'-2+3", "'=1", '"-,5"', "'@x"]


def test_areas_are_said_in_plain_numbers() -> None:
    assert [say_mm2(area) for area in (0.0123, 1.25, 9.99, 124.4, 1234.5)] == [
        "0.012 mm²",
        "1.2 mm²",
        "10 mm²",
        "124 mm²",
        "1,234 mm²",
    ]
