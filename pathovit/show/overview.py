"""overview.png: the slide, and where something was found on it; legend, scale bar, unread tiles striped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pathovit import RESEARCH_USE
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import TopTile
from pathovit.settings import HeatmapSettings
from pathovit.show.heatmap import SCORE, Heatmap
from pathovit.show.ome_tiff import write_ome_tiff
from pathovit.show.paint import Layer, legend_colour, paint
from pathovit.show.qupath import OUTSIDE, UNREAD, UNTAUGHT, Area, dissolve, write_geojson
from pathovit.show.sheet import (
    BLACK,
    DARK,
    WHITE,
    Panel,
    draw_lines,
    draw_text,
    draw_upwards,
    drawable,
    font,
    save_sheet,
    shown_at,
    wrapped,
)  # fmt: skip
from pathovit.show.top_tiles import save_top_tiles
from pathovit.show.views import Kinds, View
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide
from pathovit.text import plain, say_left_out

if TYPE_CHECKING:
    from pathovit.model.prediction import SlidePrediction

AVERAGE = 0.5  # tile score above which measurements and risks are painted
NAMED_AREAS, LEAST_SHARE = 6, 0.02  # regions whose area is written beside them, and of the largest that they must have
TALL_PX, LEAST_TALL_PX, WIDE_PX = 760, 300, 1100  # of a picture: of the only one, of each of several, of a wide one's width
MARGIN, GAP, LINE, LEAST_WIDTH = 14, 16, 21, 760
TITLE_PX, WORDS_PX, FOOTER_PX, AREA_PX = 17, 14, 12, 12
RAMP_PX, RAMP_STEPS, RAMP_WIDTH, CHIP_PX, NAMED_WIDTH, NAME_LETTERS = 24, 64, 116, 14, 220, 22
SCALE_BARS_UM = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


def score_layers(stored: SlideFeatures, prediction: SlidePrediction) -> Heatmap:
    """Evidence first, one layer per class; attention and novelty are layers of their own."""
    layers = {f"{SCORE}{name}": prediction.tile_scores[:, i] for i, name in enumerate(prediction.score_names)}
    layers |= {"attention": prediction.attention, "novelty": prediction.tile_novelty}
    return Heatmap.from_tiles(stored, layers, prediction.untaught, prediction.headline if prediction.strange else "")


def leading_class(prediction: SlidePrediction) -> int:
    """Column of the tile scores that is drawn: the positive class, or the most probable one."""
    return 0 if prediction.target.outputs == 1 else int(prediction.probabilities.argmax())


def draw_products(
    folder: Path, views: Sequence[View], slide: Slide | None, about: About, stored: SlideFeatures, prediction: SlidePrediction,
    kinds: Kinds, wanted: HeatmapSettings, said: Said,
) -> list[TopTile]:  # fmt: skip
    """Write the heatmap in all its forms; returns the top tiles, which have their pictures, too, where the slide is at hand."""
    heatmap = score_layers(stored, prediction)
    column = leading_class(prediction)
    name, scores = prediction.score_names[column], prediction.tile_scores[:, column]
    shown = np.where(prediction.untaught, np.float32("nan"), scores)
    regions = found_regions(stored, prediction, wanted.hot_score)
    write_ome_tiff(folder / "heatmap.ome.tiff", heatmap, stored.trial)
    layer = painted_layer(heatmap, prediction, wanted.hot_score)
    colours = (
        {one: [*_bytes(legend_colour(layer, at, 1.0))] for at, one in enumerate(prediction.score_names)}
        if layer.floor is None
        else {}
    )
    marked = {UNREAD: stored.unread, UNTAUGHT: prediction.untaught}
    if prediction.strange:  # programs that know no more than this file must not show a finding
        marked[OUTSIDE], name = stored.ok, f"{name} (outside)"
    write_geojson(
        folder, stored, scores, {"Attention": prediction.attention, "Novelty": prediction.tile_novelty}, name,
        regions=regions, marked=marked, max_tiles=wanted.max_geojson_tiles,
        colours=colours,
    )  # fmt: skip
    score = f"tile score: {layer.names[0]} ({prediction.scale_note})" if layer.floor is not None else "taken for"
    draw_overview(folder / "overview.png", views, heatmap, layer, regions, kinds, about, score, _in_this_font(said, prediction))
    return save_top_tiles(slide, folder, stored, shown, prediction.attention, wanted.top_tiles, name) if slide else []


def _in_this_font(said: Said, prediction: SlidePrediction) -> Said:
    """Names of classes as the legend has them, where the font lacks their characters."""
    headline, warning = said.headline, drawable(said.warning, "What must be said of it is in report.html, in other letters.")
    names = {name: f"class {place + 1}" for place, name in enumerate(prediction.score_names)}
    for name in (*names, *prediction.classes):
        headline = headline.replace(name, drawable(name, names.get(name, "another class")))
    return Said(headline, warning)


def paints_all_classes(prediction: SlidePrediction) -> bool:
    """Whether every tile is taken for one of many classes, rather than shown for one that is asked for."""
    return prediction.is_taught and prediction.target.outputs > 1


def found_regions(stored: SlideFeatures, prediction: SlidePrediction, hot_score: float) -> list[Area]:
    """Regions at or above the threshold; of a taught model with many classes, what is taken for each; none of a slide outside."""
    if prediction.strange:
        return []
    scores = np.where(prediction.untaught[:, None], np.float32("nan"), prediction.tile_scores)
    if paints_all_classes(prediction):
        taken = np.where(np.isfinite(scores[:, 0]), np.nan_to_num(scores).argmax(1), -1)
        chosen = {place: taken == place for place in range(len(prediction.classes))}
    elif prediction.target.is_classification:
        column = leading_class(prediction)
        chosen = {column: np.nan_to_num(scores[:, column], nan=-1.0) >= hot_score}
    else:
        return []
    areas = [dissolve(stored, tiles, prediction.score_names[at], scores[:, at]) for at, tiles in chosen.items()]
    return sorted((area for one in areas for area in one), key=lambda area: -area.mm2)


def painted_layer(heatmap: Heatmap, prediction: SlidePrediction, hot_score: float) -> Layer:
    """What is painted over the slide."""
    names = tuple(drawable(name, f"class {place + 1}") for place, name in enumerate(prediction.score_names))
    scores = np.where(heatmap.untaught, np.float32("nan"), heatmap.layers[: len(names)])
    if paints_all_classes(prediction):
        strength = (scores.max(0) * len(names) - 1) / (len(names) - 1)
        return Layer(names, np.nan_to_num(scores).argmax(0), strength)
    column = leading_class(prediction)
    floor = hot_score if prediction.target.is_classification else AVERAGE
    return Layer.of_scores(names[column], scores[column], floor, prediction.strange)


@dataclass(frozen=True)
class About:
    """The slide that an overview shows."""

    slide_id: str
    description: SlideDescription
    survey: Survey


@dataclass(frozen=True)
class Said:
    """The words on an overview."""

    headline: str
    warning: str


def draw_overview(
    path: Path,
    views: Sequence[View],
    heatmap: Heatmap,
    layer: Layer,
    regions: Sequence[Area],
    kinds: Kinds,
    about: About,
    score: str,
    said: Said,
) -> None:
    """Slide and slide with what was found, side by side (above each other for one wide view); a row for every view."""
    save_sheet(compose(views, heatmap, layer, regions, kinds, about, score, said)[0], path)


def compose(
    views: Sequence[View], heatmap: Heatmap, layer: Layer, regions: Sequence[Area], kinds: Kinds, about: About, score: str, said: Said
) -> tuple[Image.Image, list[Panel]]:  # fmt: skip
    """The sheet, and its panels: row by row the slide, and the slide with what was found."""
    rows = _rows(views)
    legend = NAMED_WIDTH if layer.floor is None else RAMP_WIDTH
    width = max(2 * MARGIN + max(_width(row) for row in rows) + legend, LEAST_WIDTH)
    title, footer = _words(about, heatmap, layer, said, width - 2 * MARGIN)
    top = MARGIN + len(title) * LINE + MARGIN // 2
    tall = sum(_height(row) for row in rows) + GAP * (len(rows) - 1)
    if layer.floor is None:  # every class is named
        tall = max(tall, (len(layer.names) + 1) * (CHIP_PX + 8))
    sheet = Image.new("RGB", (width, top + tall + MARGIN + len(footer) * LINE), WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, (line, px) in enumerate(title):
        draw_text(draw, (width / 2, MARGIN + number * LINE), line, px, "mt")
    for number, line in enumerate(footer):
        draw_text(draw, (width / 2, top + tall + MARGIN // 2 + number * LINE), line, FOOTER_PX, "mt", colour=DARK)
    panels, y = [], top
    for row in rows:
        x = MARGIN + max(0, (width - legend - 2 * MARGIN - _width(row)) // 2)
        for view in row:
            panels.append(Panel(view, x, y))
            x += view.picture.shape[1] + GAP
        y += _height(row) + GAP
    for bare, found in zip(panels[::2], panels[1::2], strict=True):
        picture = bare.view.picture.copy()
        _outline_left_out(picture, bare, kinds)
        sheet.paste(Image.fromarray(picture), (bare.left, bare.top))
        _scale_bar(draw, bare, about.description.mpp[0])
        picture = paint(found.view, heatmap, layer)
        draw_lines(picture, _rings(found, regions), DARK, 1)
        sheet.paste(Image.fromarray(picture), (found.left, found.top))
        _name_areas(draw, found, regions)
    _legend(sheet, (width - legend + GAP // 2, top, tall), layer, score)
    return sheet, panels


def _words(about: About, heatmap: Heatmap, layer: Layer, said: Said, width: int) -> tuple[list[tuple[str, int]], list[str]]:
    """Lines of the title with their size, and of the footer."""
    figures = f"{said.headline}    tissue {about.survey.tissue_mm2:.1f} mm²    {about.survey.tiles:,} tiles"
    words = [(_name(about), TITLE_PX), (figures, TITLE_PX), (said.warning, WORDS_PX)]
    title = [(line, px) for text, px in words if text for line in wrapped(text, px, width)]
    return title, wrapped(_footer(about, heatmap, layer), FOOTER_PX, width)


def _rows(views: Sequence[View]) -> list[list[View]]:
    """Views as large as they are shown, twice each: beside each other, or the one wide view below itself."""
    height, width = max((view.picture.shape[:2] for view in views), key=lambda shape: shape[0] / shape[1])
    if len(views) == 1 and width > 1.5 * height:
        shown = shown_at(views[0], max(1, round(WIDE_PX * height / width)))
        return [[shown], [shown]]
    tall = round(TALL_PX if len(views) == 1 else max(LEAST_TALL_PX, TALL_PX / len(views) ** 0.5))
    highest = [round(WIDE_PX * view.picture.shape[0] / view.picture.shape[1]) if len(views) > 1 else tall for view in views]
    shown_views = [shown_at(view, max(1, min(tall, most))) for view, most in zip(views, highest, strict=True)]
    return [[view, view] for view in shown_views]


def _width(row: Sequence[View]) -> int:
    return sum(int(view.picture.shape[1]) for view in row) + GAP * (len(row) - 1)


def _height(row: Sequence[View]) -> int:
    return max(int(view.picture.shape[0]) for view in row)


def _name(about: About) -> str:
    file = plain(about.description.file or about.slide_id)
    return drawable(file if len(file) <= 90 else f"{file[:60]}...{file[-25:]}", about.slide_id)


def _footer(about: About, heatmap: Heatmap, layer: Layer) -> str:
    said = [RESEARCH_USE]
    if heatmap.unread.any():
        said.append("Striped: tissue that could not be read.")
    if heatmap.untaught.any():
        said.append("Dotted: unlike all that was taught, so nothing is said of it.")
    if about.survey.left_out_mm2:
        said.append(f"Outlined: left out ({say_left_out(about.survey.left_out_mm2)}).")
    if layer.muted:
        said.append("Without colour: this slide is unlike those that the model knows.")
    return "  ".join(said)


def _legend(sheet: Image.Image, room: tuple[int, int, int], layer: Layer, score: str) -> None:
    """Colours as they look on tissue, in a room of so many pixels: left, top, height. A ramp stands beside all panels."""
    left, top, tall = room
    draw = ImageDraw.Draw(sheet)
    if layer.floor is None:
        draw_text(draw, (left, top), score, WORDS_PX)
        for place, name in enumerate(layer.names):
            y = top + (place + 1) * (CHIP_PX + 8)
            draw.rectangle(
                (left, y, left + 2 * CHIP_PX, y + CHIP_PX), fill=_bytes(legend_colour(layer, place, 1.0)), outline=DARK
            )
            draw_text(
                draw,
                (left + 2 * CHIP_PX + 8, y + CHIP_PX / 2),
                name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…",
                WORDS_PX,
                "lm",
            )
        return
    lowest = min(layer.floor, 0.999)
    steps = np.array([[_bytes(legend_colour(layer, 0, step))] for step in np.linspace(1, 0, RAMP_STEPS)], np.uint8)
    ramp = cv2.resize(steps, (RAMP_PX, tall), interpolation=cv2.INTER_LINEAR)
    sheet.paste(Image.fromarray(ramp), (left, top))
    draw.rectangle((left, top, left + RAMP_PX, top + tall - 1), outline=BLACK)
    for tick in ticks(lowest, 1.0, most=max(2, tall // 100)):
        height = top + (1 - tick) / (1 - lowest) * (tall - 1)
        draw.line((left + RAMP_PX, height, left + RAMP_PX + 5, height), fill=BLACK)
        draw_text(draw, (left + RAMP_PX + 9, height), f"{tick:g}", WORDS_PX, "lm")
    words = f"{score}; below {layer.floor:g} nothing is painted"
    px = next((px for px in range(WORDS_PX, 7, -1) if font(px).getlength(words) <= tall), 8)
    lines = wrapped(words, px, max(tall, 200))
    for number, line in enumerate(lines):
        draw_upwards(sheet, (left + RAMP_PX + 56 + number * (px + 3), top + tall // 2), line, px)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, at most so many and one."""
    step = next(
        (step for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0) if (high - low) / step <= most), high - low
    )  # fmt: skip
    first = int(np.ceil(low / step - 1e-9))
    return [round(place * step, 6) for place in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def _bytes(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in colour)
    return red, green, blue


def _rings(panel: Panel, regions: Sequence[Area]) -> list[NDArray[np.float64]]:
    return [panel.at(np.asarray(ring.coords)) for area in regions for ring in (area.shape.exterior, *area.shape.interiors)]


def _name_areas(draw: ImageDraw.ImageDraw, panel: Panel, regions: Sequence[Area]) -> None:
    """The areas of the largest regions, beside them."""
    left, right, bottom, top = panel.view.extent
    for region in regions[:NAMED_AREAS]:
        at = region.shape.representative_point()
        if region.mm2 >= LEAST_SHARE * regions[0].mm2 and left <= at.x <= right and top <= at.y <= bottom:
            area = f"{region.mm2:.2g} mm²" if region.mm2 < 10 else f"{region.mm2:.0f} mm²"
            x, y = panel.at(np.array([[at.x, at.y]]))[0]
            half = font(AREA_PX).getlength(area) / 2 + 2
            x = min(max(x, half - panel.left), draw.im.size[0] - panel.left - half)  # a narrow slide, and its edge
            draw_text(draw, (panel.left + x, panel.top + y), area, AREA_PX, "mm", halo=2)


def _outline_left_out(picture: RGB, panel: Panel, kinds: Kinds) -> None:
    """White lines with a dark edge, seen on glass and on tissue."""
    left_out = kinds.left_out()
    if not left_out.any():
        return
    edges, _ = cv2.findContours(left_out.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lines = [panel.at((edge[:, 0].astype(np.float64) + 0.5) * kinds.downsample) for edge in edges]
    for colour, width in ((BLACK, 3), (WHITE, 1)):
        draw_lines(picture, lines, colour, width)


def _scale_bar(draw: ImageDraw.ImageDraw, panel: Panel, mpp: float) -> None:
    """A round length of about a fifth of the width, lower left; black with a white edge, seen on any ground."""
    left, right, _, _ = panel.view.extent
    length_um = max((bar for bar in SCALE_BARS_UM if bar <= (right - left) * mpp / 4), default=SCALE_BARS_UM[0])
    long = length_um / mpp * panel.width / (right - left)
    x, y = panel.left + 0.03 * panel.width, panel.top + panel.height - max(10, 0.035 * panel.height)
    draw.rectangle((x - 2, y - 2, x + long + 2, y + 5), fill=WHITE)
    draw.rectangle((x, y, x + long, y + 3), fill=BLACK)
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    draw_text(draw, (x, y - 6), label, WORDS_PX, "lb", halo=2)
