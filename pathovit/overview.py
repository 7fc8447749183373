"""overview.png and the pictures beside it: the slide, the heatmap over it, legend, scale bar, unread tiles hatched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit import RESEARCH_USE
from pathovit.export.ome_tiff import write_ome_tiff
from pathovit.export.qupath import write_geojson
from pathovit.features import SlideFeatures
from pathovit.heatmap import Heatmap
from pathovit.readers import RGB
from pathovit.settings import Settings
from pathovit.slide import Slide, open_slide
from pathovit.store import write_atomically
from pathovit.text import plain
from pathovit.tissue import read_overview

if TYPE_CHECKING:
    from pathovit.pipeline import SlidePlan
    from pathovit.slide_model import SlidePrediction

COLOURS = "cividis"  # even in lightness, the same to eyes that confuse red and green
TILE_SIDE_PX = 192  # of the pictures of top tiles
SCALE_BARS_UM = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


def score_layers(slide: SlideFeatures, prediction: SlidePrediction) -> Heatmap:
    """Evidence first, one layer per class; attention and novelty are layers of their own."""
    layers = {f"score: {name}": prediction.tile_scores[:, i] for i, name in enumerate(prediction.score_names)}
    return Heatmap.from_tiles(slide, {**layers, "attention": prediction.attention, "novelty": prediction.tile_novelty})


def leading_class(prediction: SlidePrediction) -> int:
    """Column of the tile scores that is drawn: the positive class, or the most probable one."""
    return 0 if prediction.target.outputs == 1 else int(prediction.probabilities.argmax())


def draw_products(
    plan: SlidePlan, folder: Path, slide: SlideFeatures, prediction: SlidePrediction, settings: Settings, warning: str
) -> list[dict[str, Any]]:
    """Write the heatmap in all its forms; returns the top tiles: file, score, attention, level-0 position."""
    wanted = settings.heatmap
    heatmap = score_layers(slide, prediction)
    column = leading_class(prediction)
    name, scores = prediction.score_names[column], prediction.tile_scores[:, column]
    write_ome_tiff(folder / "heatmap.ome.tiff", heatmap)
    write_geojson(
        folder / "heatmap.geojson", slide, scores, {"Attention": prediction.attention, "Novelty": prediction.tile_novelty}, name,
        hot_score=wanted.hot_score if prediction.target.is_classification else np.inf, max_tiles=wanted.max_geojson_tiles,
    )  # fmt: skip
    with open_slide(plan.job.path, plan.mpp, plan.mpp_source, plan.sha256, settings.embed.reader) as opened:
        picture, px_l0 = thumbnail(opened, wanted.overview_px)
        draw_overview(
            folder / "overview.png",
            picture,
            px_l0,
            heatmap,
            column,
            plan,
            name,
            prediction.headline,
            prediction.scale_note,
            warning,
        )
        return _save_top_tiles(opened, folder, slide, scores, prediction.attention, wanted.top_tiles)


def thumbnail(slide: Slide, longer_px: int) -> tuple[RGB, tuple[float, float]]:
    """The slide at about `longer_px` on its longer side, and the level-0 pixels under one of its pixels."""
    mpp = max(slide.size) * max(slide.mpp) / longer_px
    picture, _, _, scale = read_overview(slide, mpp)
    if max(picture.shape) > longer_px:
        factor = max(picture.shape) / longer_px
        size = max(1, round(picture.shape[1] / factor)), max(1, round(picture.shape[0] / factor))
        scale = scale[0] * picture.shape[1] / size[0], scale[1] * picture.shape[0] / size[1]
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    return picture, scale


def draw_overview(
    path: Path,
    picture: RGB,
    px_l0: tuple[float, float],
    heatmap: Heatmap,
    layer: int,
    plan: SlidePlan,
    name: str,
    headline: str,
    note: str,
    warning: str,
) -> None:
    """Slide and slide with heatmap, side by side (above each other for wide slides)."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    wide = width > 1.5 * height
    panel = (9.0, 9.0 * height / width) if wide else (6.5 * width / height, 6.5)
    panel = (max(panel[0], 4.0), max(panel[1], 2.2))
    size = (panel[0] + 1.4, 2 * panel[1] + 1.3) if wide else (2 * panel[0] + 1.6, panel[1] + 1.3)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1) if wide else figure.subplots(1, 2)
    extent = (0, width * px_l0[0], height * px_l0[1], 0)
    for axes in panels:
        axes.imshow(picture, extent=extent, interpolation="antialiased")
        axes.set_axis_off()
    values = heatmap.layers[layer]
    x, y = heatmap.origin
    place = (x, x + values.shape[1] * heatmap.cell_l0[0], y + values.shape[0] * heatmap.cell_l0[1], y)
    panels[1].imshow(values, extent=place, cmap=COLOURS, vmin=0, vmax=1, alpha=0.6, interpolation="nearest")
    _hatch_unread(panels[1], heatmap)
    for axes in panels:
        axes.set_xlim(extent[0], extent[1])
        axes.set_ylim(extent[2], extent[3])
    _scale_bar(panels[0], extent, plan.mpp[0])
    colours = ScalarMappable(Normalize(0, 1), COLOURS)
    bar = figure.colorbar(colours, ax=panels[1], fraction=0.05, pad=0.02, alpha=0.8)
    bar.set_label(f"tile score: {name} ({note})")
    file = plain(plan.job.path.name)
    file = file if len(file) <= 90 else f"{file[:60]}...{file[-25:]}"
    title = f"{file}\n{headline}    tissue {plan.tissue_mm2:.1f} mm²    {plan.tiles:,} tiles"
    figure.suptitle(title + (f"\n{warning}" if warning else ""), fontsize=11, parse_math=False)
    hatched = "  Hatched: tissue that could not be read." if heatmap.unread.any() else ""
    figure.supxlabel(RESEARCH_USE + hatched, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "pathovit", "Comment": RESEARCH_USE})
    write_atomically(path, buffer.getvalue())


def _hatch_unread(axes: Any, heatmap: Heatmap) -> None:
    from matplotlib.collections import PolyCollection

    rows, columns = np.nonzero(heatmap.unread)
    if not len(rows):
        return
    width, height = heatmap.cell_l0
    x, y = heatmap.origin[0] + columns * width, heatmap.origin[1] + rows * height
    squares = np.stack([np.stack([x + dx * width, y + dy * height], -1) for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))], 1)
    axes.add_collection(PolyCollection(list(squares), facecolors="none", edgecolors="black", hatch="////", linewidths=0.3))


def _scale_bar(axes: Any, extent: tuple[float, float, float, float], mpp: float) -> None:
    """A round length of about a fifth of the width, lower left."""
    width_um = extent[1] * mpp
    length_um = max((bar for bar in SCALE_BARS_UM if bar <= width_um / 4), default=SCALE_BARS_UM[0])
    x0, y0 = extent[1] * 0.03, extent[2] * 0.965
    axes.plot([x0, x0 + length_um / mpp], [y0, y0], color="black", linewidth=3, solid_capstyle="butt")
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    axes.text(x0, y0 - extent[2] * 0.012, label, fontsize=9, va="bottom")


def _save_top_tiles(
    slide: Slide,
    folder: Path,
    features: SlideFeatures,
    scores: NDArray[np.float32],
    attention: NDArray[np.float32],
    count: int,
) -> list[dict[str, Any]]:
    """Pictures of the tiles with the highest scores."""
    import io

    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")
    order = order[np.isfinite(scores[order])][:count]
    level = slide.level(features.attributes["read_level"])
    size: tuple[int, int] = tuple(features.attributes["read_px"])
    kept = []
    for rank, index in enumerate(order, start=1):
        x, y = (int(v) for v in features.xy[index])
        pixels, _ = slide.read(level, round(x / level.downsample[0]), round(y / level.downsample[1]), *size)
        image = Image.fromarray(pixels).resize((TILE_SIDE_PX, TILE_SIDE_PX), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        name = f"top_tiles/{rank:02d}.jpg"
        write_atomically(folder / name, buffer.getvalue())
        kept.append({"file": name, "score": float(scores[index]), "attention": float(attention[index]), "x": x, "y": y})
    for stale in (folder / "top_tiles").glob("*.jpg"):
        if int(stale.stem) > len(kept):
            stale.unlink()
    return kept
