"""Landmarks: planted tiles must be found again, through independent readers, where they were planted."""

import csv
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from made import made_record
from made_maps import CASES, COLUMNS, corner_of, heat, planted
from PIL import ImageDraw

from pathovit.errors import StoreError
from pathovit.files import csv_table
from pathovit.geometry import Box
from pathovit.outputs.features import TileVerdict
from pathovit.outputs.records import Answer, Outcome, SlideRecord
from pathovit.show import overview
from pathovit.show.heatmap import Heatmap
from pathovit.show.ome_tiff import halve, read_ome_tiff, write_ome_tiff
from pathovit.show.overview import About, Said, compose
from pathovit.show.paint import Layer
from pathovit.show.qupath import dissolve, write_geojson
from pathovit.show.sheet import drawable, font
from pathovit.show.table import Contents, table
from pathovit.show.views import Kinds, View, scanned_parts
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.tissue import KINDS


@pytest.mark.parametrize("case", CASES)
def test_ome_tiff_landmarks_lie_within_half_a_heatmap_pixel(case: str, tmp_path: Path) -> None:
    slide, scores, corners = planted(case)
    write_ome_tiff(tmp_path / "heatmap.ome.tiff", heat(slide, scores))
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tiff") as tiff:
        assert tiff.is_ome
        series = tiff.series[0]
        assert (series.axes, series.dtype) == ("CYX", np.float32)
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        image = series.asarray()[0]
    assert pixels["PhysicalSizeXUnit"] == "µm"
    assert [channel["Name"] for channel in pixels["Channel"]] == ["score: tumour", "attention", "unread"]
    rows, columns = np.nonzero(image > 0.5)
    size_um = np.array([pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]])
    start = corner_of(slide)
    found = np.stack([columns, rows], -1) * size_um / slide.mpp[0] + start  # corners in level-0 pixels, from the file alone
    distance = np.abs(found[:, None] - corners[None]).max(-1).min(1)
    assert len(found) == 9
    assert distance.max() <= size_um[0] / slide.mpp[0] / 2


def test_ome_tiff_is_a_pyramid_of_means_that_skips_what_was_not_read(tmp_path: Path) -> None:
    layer = np.full((1, 88, 120), np.nan, np.float32)
    layer[0, 0, 0] = 0.8
    big = Heatmap(("a",), layer, np.zeros((88, 120), bool), np.zeros((88, 120), bool), (0, 0), (192, 192), (0.5, 0.5))
    write_ome_tiff(tmp_path / "h.ome.tiff", big)
    with tifffile.TiffFile(tmp_path / "h.ome.tiff") as tiff:
        levels = tiff.series[0].levels
        assert [level.shape[-2:] for level in levels] == [(88, 120), (44, 60)]
        assert np.nanmax(levels[1].asarray()) == pytest.approx(0.8)  # not 0.2: three unread neighbours do not count as cold
    assert np.isnan(halve(np.full((1, 4, 4), np.nan, np.float32))).all()
    write_ome_tiff(tmp_path / "again.ome.tiff", big)
    assert (tmp_path / "again.ome.tiff").read_bytes() == (tmp_path / "h.ome.tiff").read_bytes()


def test_overlapping_tiles_are_averaged_and_unreadcells_are_marked() -> None:
    slide, scores, _ = planted("plain", stride=0.5)
    scores[:] = np.arange(len(scores)) % COLUMNS / COLUMNS
    made = heat(slide, scores)
    assert made.layers[0][5, 10] == pytest.approx((9 + 10) / 2 / COLUMNS, abs=1e-6)  # under the tiles of columns 9 and 10
    slide, scores, _ = planted("plain")
    slide.verdict[31], scores[31] = TileVerdict.MISSING, np.nan
    made = heat(slide, scores)
    assert np.argwhere(made.unread).tolist() == [[1, 1]]
    assert np.isnan(made.layers[0][1, 1])


def test_a_failed_slide_is_a_row_and_formulas_are_defused() -> None:
    names, rows = table(contents(outcomes=(Outcome("=cmd|'/c calc'!A0.svs", "truncated"),)))
    (row,) = csv.DictReader(csv_table(names, rows).decode().splitlines())
    assert row["file"].startswith("'=cmd")
    assert row["verdict"] == "failed"


def contents(*records: SlideRecord, outcomes: tuple[Outcome, ...] = (), older: frozenset[str] = frozenset()) -> Contents:
    return Contents(records, (), outcomes, older)


def test_a_table_says_what_was_left_out_what_is_a_trial_and_what_is_older() -> None:
    said = "a trial on 8 of 100 tiles (--max-tiles)"
    trial = made_record("b-2", "b.svs", trial=said, reason=said)
    one = made_record(survey=Survey(1.0, 8, left_out_mm2={"ink": 1.8, "grey": 0.2}))
    _, rows = table(contents(one, trial, older=frozenset({"a-1"})))
    assert rows[0]["left_out_mm2"] == 2.0
    assert rows[0]["reason"] == "an older answer: the file has other content now"
    assert rows[1]["trial"] == said


def test_a_table_has_columns_of_answers_only_where_there_is_one() -> None:
    names, _ = table(contents(made_record()))
    assert not {"answer", "novelty", "model"} & {*names}
    answer = Answer("m", "a: 0.5", "a", {"prob_a": 0.5}, (("a",),), ("a", "b"), (0.5, 0.5), None, 0.2, False)
    names, rows = table(contents(made_record(), made_record("b-2", "b.svs", prediction=answer)))
    assert names[4:7] == ["answer", "prob_a", "novelty"]
    assert (rows[1]["answer"], rows[1]["prob_a"]) == ("a", "0.5")


def test_the_second_name_of_a_slide_has_a_row_of_its_own() -> None:
    _, rows = table(contents(made_record(), outcomes=(Outcome("copy.svs", "", "a-1", twin=True),)))
    assert [(row["file"], row["slide_id"]) for row in rows] == [("a.svs", "a-1"), ("copy.svs", "a-1")]
    assert rows[1]["reason"] == "the same slide as a.svs, done once"


def test_a_failure_of_an_earlier_day_says_so_and_rows_are_in_one_order() -> None:
    old, new = Outcome("b.svs", "truncated", when="2026-01-31"), Outcome("c.svs", "empty", when=date.today().isoformat())
    _, rows = table(contents(made_record("d-1", "D.svs"), made_record("a-1", "a.svs"), outcomes=(new, old)))
    assert [row["file"] for row in rows] == ["a.svs", "b.svs", "c.svs", "D.svs"]
    assert [row["reason"] for row in rows[1:3]] == ["truncated (2026-01-31)", "empty"]


def test_letters_that_the_font_lacks_are_not_drawn_as_boxes() -> None:
    assert drawable("übel_Ж.svs", "a-1") == "übel_Ж.svs"
    assert drawable("肿瘤.svs", "a-1") == "a-1"


@pytest.mark.parametrize("size", [(60, 400), (300, 300), (400, 90)])
def test_panels_of_an_overview_are_aligned_and_everything_on_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Wide slides have their panels above each other; ink is outlined, the scale bar is seen on black, all words are on the sheet."""
    slide, scores, _ = planted("plain")
    height, width = size
    what = np.ones(size, np.uint8)
    what[10:20, 10:40] = KINDS.index("ink")
    l0 = 30.0
    view = View(np.zeros((height, width, 3), np.uint8), (0, width * l0, height * l0, 0))
    description = SlideDescription("肿瘤.svs", "made", (1, 1), (0.5, 0.5), "manifest", "direct")
    about = About("slide-1", description, Survey(1.0, len(scores), left_out_mm2={"ink": 0.3}))
    heatmap = heat(slide, scores)
    words: list[str] = []
    draw_text = overview.draw_text

    def noted(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, px: int, anchor: str = "lt", **more: Any) -> None:
        words.append(text)
        box = draw.textbbox(at, text, font=font(px), anchor=anchor)
        assert box[0] >= 0, text
        assert box[1] >= 0, text
        assert box[2] <= draw.im.size[0], text
        assert box[3] <= draw.im.size[1], text
        draw_text(draw, at, text, px, anchor, **more)

    monkeypatch.setattr(overview, "draw_text", noted)
    hot = dissolve(slide, scores >= 0.5, "tumour", scores)
    layer = Layer.of_scores("tumour", heatmap.layers[0], 0.5)
    sheet, (bare, found) = compose(
        [view], heatmap, layer, hot, Kinds(what, (l0, l0)), about, "tile score", Said("unsure", "x" * 300)
    )
    if width > 1.5 * height:
        assert (bare.left, bare.width) == (found.left, found.width)
        assert found.top >= bare.top + bare.height
    else:
        assert (bare.top, bare.height) == (found.top, found.height)
        assert found.left >= bare.left + bare.width
    assert words[0] == "slide-1"  # no character of the name can be drawn
    assert any("Outlined: left out (0.3 mm² ink)" in text for text in words)
    assert sum(text.count("x") for text in words if set(text) == {"x"}) == 300
    pixels = np.asarray(sheet)
    ours = pixels[bare.top : bare.top + bare.height, bare.left : bare.left + bare.width]
    lines = (ours > 120).all(-1)
    ink = bare.at(np.array([[10 * l0, 10 * l0], [40 * l0, 20 * l0]]))
    inside = lines[round(ink[0, 1]) - 2 : round(ink[1, 1]) + 3, round(ink[0, 0]) - 2 : round(ink[1, 0]) + 3]
    assert inside.any(0).mean() > 0.9  # a white line around it
    lines[: round(ink[1, 1]) + 4] = False
    assert lines.any()  # the scale bar has a white edge: black alone is not seen on black


@pytest.mark.parametrize(
    ("low", "expected"),
    [(0.5, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), (0.93, [0.94, 0.96, 0.98, 1.0]), (0.0, [0, 0.2, 0.4, 0.6, 0.8, 1])],
)
def test_ticks_are_round_numbers(low: float, expected: list[float]) -> None:
    assert overview.ticks(low, 1.0, 5) == pytest.approx(expected)


def test_only_what_was_scanned_is_shown() -> None:
    what = np.full((200, 300), KINDS.index("never scanned"), np.uint8)
    what[20:60, 30:70] = KINDS.index("tissue")
    bounds = Box(300, 200, 2000, 1500)
    slide = SimpleNamespace(bounds=bounds)
    assert scanned_parts(slide, Kinds(what, (10.0, 10.0))) == [bounds]  # one part: the bounds, as the file states them
    what[150:180, 200:260] = KINDS.index("glass")
    assert scanned_parts(slide, Kinds(what, (10.0, 10.0))) == [Box(300, 200, 400, 400), Box(2000, 1500, 600, 300)]


def test_a_trial_is_marked_in_what_other_programs_read(tmp_path: Path) -> None:
    slide, scores, _ = planted("plain")
    slide = replace(slide, grid=replace(slide.grid, total=10 * len(scores)))
    assert slide.trial == f"a trial on {len(scores):,} of {10 * len(scores):,} tiles (--max-tiles)"
    write_geojson(tmp_path, slide, scores, {}, "tumour", regions=[], marked={}, max_tiles=10)
    assert json.loads((tmp_path / "heatmap.geojson").read_text())["trial"] == slide.trial
    write_ome_tiff(tmp_path / "h.ome.tiff", heat(slide, scores), slide.trial)
    with tifffile.TiffFile(tmp_path / "h.ome.tiff") as tiff:
        assert slide.trial in tiff.ome_metadata


def test_a_damaged_map_is_said_to_be_so_whatever_byte_it_is(tmp_path: Path) -> None:
    slide, scores, _ = planted("plain")
    path = tmp_path / "heatmap.ome.tiff"
    write_ome_tiff(path, heat(slide, scores))
    good = path.read_bytes()
    noticed = 0
    for place in np.linspace(200, len(good) - 200, 40).astype(int):
        path.write_bytes(good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :])
        try:
            read_ome_tiff(path)
        except StoreError:
            noticed += 1
    assert noticed > 20
