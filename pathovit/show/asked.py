"""suggested.png: tiles whose class would help, each amid its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import cv2
from PIL import Image, ImageDraw

from pathovit import RESEARCH_USE
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import SlideRecord
from pathovit.show.sheet import BLACK, WHITE, draw_text, drawable, save_sheet
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide
from pathovit.text import plain

COLUMNS = 5
PICTURE_PX, MARGIN, LINE = 240, 12, 17
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


def draw_asked(path: Path, tiles: Sequence[AskedTile], pictures: Mapping[int, RGB]) -> None:
    """One picture of all tiles, in order of rank."""
    columns = min(COLUMNS, len(tiles))
    rows = ceil(len(tiles) / columns)
    step = PICTURE_PX + MARGIN
    top = 2 * MARGIN + 18
    sheet = Image.new("RGB", (max(columns * step + MARGIN, 560), top + rows * (step + 2 * LINE) + LINE), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw_text(draw, (sheet.width / 2, MARGIN), "Tiles whose class would help most (the square in the middle)", 16, "mt")
    draw_text(draw, (sheet.width / 2, sheet.height - 4), RESEARCH_USE, 11, "mb")
    for number, tile in enumerate(tiles):
        left, y = MARGIN + number % columns * step, top + number // columns * (step + 2 * LINE)
        why = "unlike what was shown" if tile.unlike > 1 else f"unsure: {tile.unsure:.0%}"
        name = drawable(plain(tile.record.shown), tile.record.slide_id)
        draw_text(draw, (left, y), f"{tile.rank}  {name[:26]}", 12)
        draw_text(draw, (left, y + LINE), why, 12)
        y += 2 * LINE
        picture = cv2.resize(pictures[tile.rank], (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_AREA)
        sheet.paste(Image.fromarray(picture), (left, y))
        edge, side = AROUND / (1 + 2 * AROUND) * PICTURE_PX, PICTURE_PX / (1 + 2 * AROUND)
        for colour, width in ((BLACK, 4), (WHITE, 2)):
            draw.rectangle((left + edge, y + edge, left + edge + side, y + edge + side), outline=colour, width=width)
    save_sheet(sheet, path)
