"""overview.png and the pictures beside it: the slide, the heatmap over it, legend, scale bar, unread tiles hatched."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit import RESEARCH_USE
from pathovit.files import write_atomically
from pathovit.geometry import XY, Box
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import TopTile, ViewFile
from pathovit.settings import HeatmapSettings
from pathovit.show.canvas import drawable, new_figure, own_style, save
from pathovit.show.heatmap import Heatmap
from pathovit.show.ome_tiff import write_ome_tiff
from pathovit.show.qupath import write_geojson
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide
from pathovit.slides.tissue import KINDS, read_part
from pathovit.text import plain, say_left_out

if TYPE_CHECKING:
    from pathovit.model.slide_model import SlidePrediction

COLOURS = "cividis"  # even in lightness, the same to eyes that confuse red and green
TILE_SIDE_PX = 192  # of the pictures of top tiles
JOINED_PX, MOST_PARTS, APART = 25, 6, 0.5  # scanned parts nearer than this are one; how many are drawn, and how little they fill
OUTLINE_PX = 900  # longer side of the mask that is outlined
STRIPES = np.add.outer(np.arange(8), np.arange(8)) % 8 < 2  # bool (8, 8), over one cell
DOTS = np.zeros((8, 8), bool)
DOTS[1:3, 1:3] = DOTS[5:7, 5:7] = True
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
    hot = np.nan_to_num(shown, nan=-1.0) >= (wanted.hot_score if prediction.target.is_classification else np.inf)
    write_ome_tiff(folder / "heatmap.ome.tiff", heatmap, stored.trial)
    write_geojson(
        folder / "heatmap.geojson", stored, scores, {"Attention": prediction.attention, "Novelty": prediction.tile_novelty}, name,
        hot=hot, marked={"Unread": stored.unread, "Not taught": prediction.untaught}, max_tiles=wanted.max_geojson_tiles,
    )  # fmt: skip
    score = f"tile score: {drawable(name, f'class {column + 1}')} ({prediction.scale_note})"
    draw_overview(folder / "overview.png", views, heatmap, column, kinds, about, score, said)
    return _save_top_tiles(slide, folder, stored, shown, prediction.attention, wanted.top_tiles) if slide else []


@dataclass(frozen=True)
class Kinds:
    """What every pixel of the overview is, uint8 (H, W) of `tissue.KINDS`, and the level-0 pixels under one."""

    what: NDArray[np.uint8]
    downsample: XY

    def left_out(self) -> NDArray[np.bool_]:
        """Bool (H, W): neither glass nor tissue, and yet scanned."""
        return np.asarray(np.isin(self.what, [KINDS.index(name) for name in ("ink", "one flat colour", "grey")]))


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


@dataclass(frozen=True)
class View:
    """A picture of a part of the slide, (H, W, 3), and the level-0 pixels that it covers: left, right, bottom, top."""

    picture: RGB
    extent: tuple[float, float, float, float]


def save_views(folder: Path, views: Sequence[View]) -> tuple[ViewFile, ...]:
    """Keep views beside the features: other models are drawn over them, without the slide."""
    kept = []
    for number, view in enumerate(views, start=1):
        buffer = io.BytesIO()
        Image.fromarray(view.picture).save(buffer, "JPEG", quality=90)
        name = f"views/{number:02d}.jpg"
        write_atomically(folder / name, buffer.getvalue())
        kept.append(ViewFile(name, view.extent))
    return tuple(kept)


def load_views(folder: Path, files: Sequence[ViewFile]) -> list[View]:
    """The other way; none, if one of them is missing or damaged."""
    found = []
    for view in files:
        try:
            with Image.open(folder / view.file) as image:
                found.append(View(np.asarray(image.convert("RGB")), view.extent))
        except OSError:
            return []
    return found


def scanned_parts(slide: Slide, kinds: Kinds) -> list[Box]:
    """What to show of a slide: all that was scanned; where that is a few parts with nothing between them, each of them."""
    whole = slide.bounds
    scanned = (kinds.what != KINDS.index("never scanned")).view(np.uint8)
    if scanned.all():
        return [whole]
    near = cv2.dilate(scanned, np.ones((JOINED_PX, JOINED_PX), np.uint8))
    count, labels = cv2.connectedComponents(near)
    boxes = []
    for label in range(1, count) if count <= MOST_PARTS + 1 else ():
        rows, columns = np.nonzero((labels == label) & (scanned > 0))
        x0, y0 = columns.min() * kinds.downsample[0], rows.min() * kinds.downsample[1]
        x1, y1 = (columns.max() + 1) * kinds.downsample[0], (rows.max() + 1) * kinds.downsample[1]
        boxes.append(Box(int(x0), int(y0), ceil(x1 - x0), ceil(y1 - y0)))
    shown = sum(box.width * box.height for box in boxes)
    return boxes if len(boxes) > 1 and shown < APART * whole.width * whole.height else [whole]


def thumbnail(slide: Slide, box: Box, longer_px: int) -> View:
    """A part of the slide at about `longer_px` on its longer side."""
    mpp = max(box.width, box.height) * max(slide.mpp) / longer_px
    picture, _, _, scale, corner = read_part(slide, mpp, box)
    if max(picture.shape) > longer_px:
        factor = max(picture.shape) / longer_px
        size = max(1, round(picture.shape[1] / factor)), max(1, round(picture.shape[0] / factor))
        scale = scale[0] * picture.shape[1] / size[0], scale[1] * picture.shape[0] / size[1]
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    right, bottom = corner[0] + picture.shape[1] * scale[0], corner[1] + picture.shape[0] * scale[1]
    return View(picture, (corner[0], right, bottom, corner[1]))


@own_style()
def draw_overview(
    path: Path, views: Sequence[View], heatmap: Heatmap, layer: int, kinds: Kinds, about: About, score: str, said: Said
) -> None:
    """Slide and slide with heatmap, side by side (above each other for one wide view); a row for every view."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    height, width = max((view.picture.shape[:2] for view in views), key=lambda shape: shape[0] / shape[1])
    wide = len(views) == 1 and width > 1.5 * height
    tall = 6.5 if len(views) == 1 else max(2.5, 6.5 / len(views) ** 0.5)
    panel = (9.0, 9.0 * height / width) if wide else (tall * width / height, tall)
    panel = (max(panel[0], 4.0), max(panel[1], 2.2))
    rows, columns = (2, 1) if wide else (len(views), 2)
    file = plain(about.description.file)
    file = drawable(file if len(file) <= 90 else f"{file[:60]}...{file[-25:]}", about.slide_id)
    title = f"{file}\n{said.headline}    tissue {about.survey.tissue_mm2:.1f} mm²    {about.survey.tiles:,} tiles"
    footer = [RESEARCH_USE, *(["Hatched: tissue that could not be read."] if heatmap.unread.any() else [])]
    if heatmap.untaught.any():
        footer.append("Dotted: unlike all that was taught, so nothing is said of it.")
    if about.survey.left_out_mm2:
        footer.append(f"Outlined: left out ({say_left_out(about.survey.left_out_mm2)}).")
    size = (columns * panel[0] + 1.6, rows * panel[1] + 1.3)
    figure = new_figure(size, title + (f"\n{_wrapped(said.warning, size[0])}" if said.warning else ""), "  ".join(footer))
    panels = figure.subplots(rows, columns, squeeze=False)
    pairs = [(panels[0, 0], panels[1, 0])] if wide else [tuple(row) for row in panels]
    values, (x, y) = np.where(heatmap.untaught, np.nan, heatmap.layers[layer]), heatmap.origin
    place = (x, x + values.shape[1] * heatmap.cell_l0[0], y + values.shape[0] * heatmap.cell_l0[1], y)
    for view, pair in zip(views, pairs, strict=True):
        for axes in pair:
            axes.imshow(view.picture, extent=view.extent, interpolation="antialiased")
            axes.set_axis_off()
        pair[1].imshow(values, extent=place, cmap=COLOURS, vmin=0, vmax=1, alpha=0.6, interpolation="nearest")
        _mark(pair[1], heatmap.unread, place, STRIPES)
        _mark(pair[1], heatmap.untaught, place, DOTS)
        _outline_left_out(pair[0], kinds)
        for axes in pair:
            axes.set_xlim(view.extent[0], view.extent[1])
            axes.set_ylim(view.extent[2], view.extent[3])
        _scale_bar(pair[0], view.extent, about.description.mpp[0])
    colours = ScalarMappable(Normalize(0, 1), COLOURS)
    # Beside all panels: beside one of them it would take its room from that one alone, and pictures would not be aligned.
    figure.colorbar(colours, ax=list(panels.flat), fraction=0.04, pad=0.02, alpha=0.8, aspect=30).set_label(score)
    save(figure, path)


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


def _mark(axes: Any, cells: NDArray[np.bool_], place: tuple[float, float, float, float], pattern: NDArray[np.bool_]) -> None:
    """A pattern over some cells (rows, columns), as one picture: a hatch of matplotlib takes seconds for a thousand cells."""
    if not cells.any():
        return
    side = len(pattern)
    drawn = np.kron(cells, np.ones((side, side), bool)) & np.tile(pattern, cells.shape)
    rgba = np.zeros((*drawn.shape, 4), np.uint8)
    rgba[drawn] = (40, 40, 40, 255)
    axes.imshow(rgba, extent=place, interpolation="antialiased")


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


def _save_top_tiles(
    slide: Slide,
    folder: Path,
    features: SlideFeatures,
    scores: NDArray[np.float32],
    attention: NDArray[np.float32],
    count: int,
) -> list[TopTile]:
    """Pictures of the tiles with the highest scores."""
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")
    order = order[np.isfinite(scores[order])][:count]
    level, size = slide.level(features.grid.read_level), features.grid.read_px
    kept = []
    for rank, index in enumerate(order, start=1):
        x, y = (int(v) for v in features.xy[index])
        pixels, _ = slide.read(level, round(x / level.downsample[0]), round(y / level.downsample[1]), *size)
        image = Image.fromarray(pixels).resize((TILE_SIDE_PX, TILE_SIDE_PX), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        name = f"top_tiles/{rank:02d}.jpg"
        write_atomically(folder / name, buffer.getvalue())
        kept.append(TopTile(name, float(scores[index]), float(attention[index]), x, y))
    for stale in (folder / "top_tiles").glob("*.jpg"):
        if int(stale.stem) > len(kept):
            stale.unlink()
    return kept
