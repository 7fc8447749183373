"""suggested.png: tiles whose class would help, each amid its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from pathovit import RESEARCH_USE
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import SlideRecord
from pathovit.show.canvas import drawable, new_figure, own_style, save
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide
from pathovit.text import plain

COLUMNS = 5
AROUND = 1.0  # tiles that are shown on every side


@dataclass(frozen=True)
class AskedTile:
    """A tile whose class would help; `rank` 1 would help most."""

    rank: int
    record: SlideRecord
    stored: SlideFeatures
    index: int  # in grid order
    unsure: float  # 0 to 1
    unlike: float  # everything that was shown; above 1 it was not taught

    def picture(self, slide: Slide) -> RGB:
        """The tile and what lies around it."""
        grid = self.stored.grid
        level = slide.level(grid.read_level)
        width, height = grid.read_px
        x, y = self.stored.xy[self.index] / level.downsample
        size = round(width * (1 + 2 * AROUND)), round(height * (1 + 2 * AROUND))
        pixels, _ = slide.read(level, round(x - AROUND * width), round(y - AROUND * height), *size)
        return pixels


@own_style()
def draw_asked(path: Path, tiles: Sequence[AskedTile], pictures: Mapping[int, RGB]) -> None:
    """One picture of all tiles, in order of rank."""
    from matplotlib.patches import Rectangle

    columns = min(COLUMNS, len(tiles))
    rows = ceil(len(tiles) / columns)
    title = "Tiles whose class would help most (the square in the middle)"
    figure = new_figure((2.4 * columns + 0.3, 2.8 * rows + 0.9), title, RESEARCH_USE)
    for axes, tile in zip(
        figure.subplots(rows, columns, squeeze=False).flat, [*tiles, *[None] * (rows * columns - len(tiles))], strict=True
    ):
        axes.set_axis_off()
        if tile is None:
            continue
        picture = pictures[tile.rank]
        height, width = picture.shape[:2]
        axes.imshow(picture, interpolation="antialiased")
        edge = AROUND / (1 + 2 * AROUND)
        box = (edge * width, edge * height), width / (1 + 2 * AROUND), height / (1 + 2 * AROUND)
        for colour, line in (("black", 2.2), ("white", 1.0)):
            axes.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=line))
        why = "unlike what was shown" if tile.unlike > 1 else f"unsure: {tile.unsure:.0%}"
        name = drawable(plain(tile.record.description.file), tile.record.slide_id)
        axes.set_title(f"{tile.rank}  {name[:26]}\n{why}", fontsize=7, parse_math=False)
    save(figure, path)
