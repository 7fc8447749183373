"""overview.png: the slide, and where something was found on it; legend, scale bar, unread tiles striped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import TopTile
from pathovit.settings import HeatmapSettings
from pathovit.show.canvas import drawable, new_figure, own_style, save
from pathovit.show.heatmap import Heatmap
from pathovit.show.ome_tiff import write_ome_tiff
from pathovit.show.paint import Layer, legend_colour, paint
from pathovit.show.qupath import Area, dissolve, write_geojson
from pathovit.show.top_tiles import save_top_tiles
from pathovit.show.views import Kinds, View
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.slide import Slide
from pathovit.text import plain, say_left_out

if TYPE_CHECKING:
    from pathovit.model.prediction import SlidePrediction

OUTLINE_PX = 900  # longer side of the mask that is outlined
AVERAGE = 0.5  # tile score above which measurements and risks are painted
NAMED_AREAS, LEAST_SHARE = 6, 0.02  # regions whose area is written beside them, and of the largest that they must have
SCALE_BARS_UM = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


def score_layers(stored: SlideFeatures, prediction: SlidePrediction) -> Heatmap:
    """Evidence first, one layer per class; attention and novelty are layers of their own."""
    layers = {f"score: {name}": prediction.tile_scores[:, i] for i, name in enumerate(prediction.score_names)}
    layers |= {"attention": prediction.attention, "novelty": prediction.tile_novelty}
    return Heatmap.from_tiles(stored, layers, prediction.untaught)


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
    write_geojson(
        folder / "heatmap.geojson", stored, scores, {"Attention": prediction.attention, "Novelty": prediction.tile_novelty}, name,
        regions=regions, marked={"Unread": stored.unread, "Not taught": prediction.untaught}, max_tiles=wanted.max_geojson_tiles,
    )  # fmt: skip
    layer = painted_layer(heatmap, prediction, wanted.hot_score)
    score = f"tile score: {layer.names[0]} ({prediction.scale_note})" if layer.floor is not None else "taken for"
    draw_overview(folder / "overview.png", views, heatmap, layer, regions, kinds, about, score, said)
    return save_top_tiles(slide, folder, stored, shown, prediction.attention, wanted.top_tiles) if slide else []


def paints_all_classes(prediction: SlidePrediction) -> bool:
    """Whether every tile is taken for one of many classes, rather than shown for one that is asked for."""
    return prediction.is_taught and prediction.target.outputs > 1


def found_regions(stored: SlideFeatures, prediction: SlidePrediction, hot_score: float) -> list[Area]:
    """Regions at or above the threshold; of a taught model with many classes, what is taken for each."""
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


@own_style()
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
    height, width = max((view.picture.shape[:2] for view in views), key=lambda shape: shape[0] / shape[1])
    wide = len(views) == 1 and width > 1.5 * height
    tall = 6.5 if len(views) == 1 else max(2.5, 6.5 / len(views) ** 0.5)
    panel = (9.0, 9.0 * height / width) if wide else (tall * width / height, tall)
    panel = (max(panel[0], 4.0), max(panel[1], 2.2))
    rows, columns = (2, 1) if wide else (len(views), 2)
    size = (columns * panel[0] + 1.6, rows * panel[1] + 1.3)
    figure = new_figure(size, _title(about, said, size[0]), _footer(about, heatmap, layer))
    panels = figure.subplots(rows, columns, squeeze=False)
    pairs = [(panels[0, 0], panels[1, 0])] if wide else [tuple(row) for row in panels]
    for view, pair in zip(views, pairs, strict=True):
        for axes, picture in zip(pair, (view.picture, paint(view, heatmap, layer)), strict=True):
            whole = cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA)  # of three channels matplotlib makes four of 64 bits
            axes.imshow(whole, extent=view.extent, interpolation="antialiased")
            axes.set_axis_off()
        _outline_left_out(pair[0], kinds)
        _name_areas(pair[1], regions, view)
        for axes in pair:
            axes.set_xlim(view.extent[0], view.extent[1])
            axes.set_ylim(view.extent[2], view.extent[3])
        _scale_bar(pair[0], view.extent, about.description.mpp[0])
    _legend(figure, panels, layer, score)
    save(figure, path)


def _title(about: About, said: Said, inches: float) -> str:
    file = plain(about.description.file)
    file = drawable(file if len(file) <= 90 else f"{file[:60]}...{file[-25:]}", about.slide_id)
    title = f"{file}\n{said.headline}    tissue {about.survey.tissue_mm2:.1f} mm²    {about.survey.tiles:,} tiles"
    return title + (f"\n{_wrapped(said.warning, inches)}" if said.warning else "")


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


def _legend(figure: Any, panels: NDArray[Any], layer: Layer, score: str) -> None:
    """Colours as they look on tissue. A ramp stands beside all panels: beside one of them it would take its room from that one alone."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.patches import Patch

    if layer.floor is None:
        patches = [Patch(facecolor=legend_colour(layer, place, 1.0), label=name) for place, name in enumerate(layer.names)]
        figure.legend(handles=patches, loc="outside right center", fontsize=9, frameon=False, title=score, title_fontsize=9)
        return
    ramp = ListedColormap([legend_colour(layer, 0, step) for step in np.linspace(0, 1, 64)])
    colours = ScalarMappable(Normalize(min(layer.floor, 0.999), 1), ramp)
    bar = figure.colorbar(colours, ax=list(panels.flat), fraction=0.04, pad=0.02, aspect=30)
    bar.set_label(f"{score}; below {layer.floor:g} nothing is painted")


def _name_areas(axes: Any, regions: Sequence[Area], view: View) -> None:
    """Regions outlined, and the areas of the largest beside them."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    rings = [np.asarray(ring.coords) for region in regions for ring in (region.shape.exterior, *region.shape.interiors)]
    axes.add_collection(LineCollection(rings, colors="0.15", linewidths=0.5))
    left, right, bottom, top = view.extent
    edge = [withStroke(linewidth=2.2, foreground="white")]
    for region in regions[:NAMED_AREAS]:
        at = region.shape.representative_point()
        if region.mm2 >= LEAST_SHARE * regions[0].mm2 and left <= at.x <= right and top <= at.y <= bottom:
            area = f"{region.mm2:.2g} mm²" if region.mm2 < 10 else f"{region.mm2:.0f} mm²"
            axes.text(at.x, at.y, area, fontsize=7, ha="center", va="center", path_effects=edge)


def _wrapped(text: str, inches: float) -> str:
    return "\n".join(textwrap.wrap(text, max(40, int(inches * 12))))


def _outline_left_out(axes: Any, kinds: Kinds) -> None:
    """White lines with a dark edge, seen on glass and on tissue."""
    left_out = kinds.left_out()
    if not left_out.any():
        return
    factor = max(left_out.shape) / OUTLINE_PX
    size = (left_out.shape[1], left_out.shape[0])
    small = (max(2, round(size[0] / factor)), max(2, round(size[1] / factor))) if factor > 1 else size
    mask = cv2.resize(left_out.view(np.uint8) * 255, small, interpolation=cv2.INTER_AREA)
    mask = np.pad(mask, 1)
    x = (np.arange(-1, small[0] + 1) + 0.5) * size[0] / small[0] * kinds.downsample[0]
    y = (np.arange(-1, small[1] + 1) + 0.5) * size[1] / small[1] * kinds.downsample[1]
    for colour, line_width in (("black", 2.0), ("white", 0.9)):
        axes.contour(x, y, mask, levels=[127], colors=colour, linewidths=line_width)


def _scale_bar(axes: Any, extent: tuple[float, float, float, float], mpp: float) -> None:
    """A round length of about a fifth of the width, lower left; black with a white edge, seen on any ground."""
    from matplotlib.patheffects import withStroke

    left, right, bottom, top = extent
    length_um = max((bar for bar in SCALE_BARS_UM if bar <= (right - left) * mpp / 4), default=SCALE_BARS_UM[0])
    x, y = left + 0.03 * (right - left), bottom - 0.035 * (bottom - top)
    edge = [withStroke(linewidth=5, foreground="white")]
    axes.plot([x, x + length_um / mpp], [y, y], color="black", linewidth=3, solid_capstyle="butt", path_effects=edge)
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    edge = [withStroke(linewidth=2.5, foreground="white")]
    axes.text(x, y - 0.012 * (bottom - top), label, fontsize=9, va="bottom", path_effects=edge)
