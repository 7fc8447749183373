"""The tissue map: kinds of tissue as colours over a slide, each area with its letter; and what each kind looks like."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pathovit import RESEARCH_USE
from pathovit.files import write_atomically
from pathovit.outputs.features import SlideFeatures
from pathovit.show.heatmap import Heatmap
from pathovit.show.paint import Layer, legend_colour, paint
from pathovit.show.qupath import Area, dissolve, write_areas
from pathovit.show.sheet import WHITE, draw_text, drawable, font, save_sheet, wrapped
from pathovit.show.views import View
from pathovit.slides.readers import RGB
from pathovit.text import say_mm2

STRENGTH = 0.8
NAMED_AREAS = 3  # of each kind that get its letter, the largest ones
LEAST_CELLS = 6  # of an area with a letter
LETTER_PX, FOOTER_PX, CHIP_PX, MARGIN_PX = 15, 18, 16, 8
JPEG_QUALITY = 88
EXAMPLE_PX, KIND_PX, TITLE_PX, NAME_PX = 112, 170, 18, 14  # of kinds.png


@dataclass(frozen=True)
class TissueMap:
    """A slide's tiles by kind."""

    stored: SlideFeatures
    kind: NDArray[np.int64]  # (N,) below 0 where a tile is of none
    unlike: NDArray[np.float32]  # (N,) distance from the kind, 1 at the limit
    names: tuple[str, ...]  # of the kinds

    def areas_mm2(self) -> list[float]:
        """Of each kind; of none, last."""
        stride, mpp = self.stored.grid.stride_l0, self.stored.mpp
        tile = stride[0] * mpp[0] * stride[1] * mpp[1] * 1e-6
        kinds = self.kind[self.stored.ok]
        return [float((kinds == place).sum() * tile) for place in [*range(len(self.names)), -1]]

    def nearest(self, place: int, count: int) -> list[tuple[int, float]]:
        """The tiles that are most like a kind, and how unlike they are."""
        tiles = np.flatnonzero(self.kind == place)
        best = tiles[np.argsort(self.unlike[tiles], kind="stable")][:count]
        return [(int(tile), float(self.unlike[tile])) for tile in best]

    def areas(self) -> list[Area]:
        """Connected areas, the largest first."""
        near = np.nan_to_num(1 - self.unlike)
        found = [dissolve(self.stored, self.kind == place, name, near) for place, name in enumerate(self.names)]
        return sorted((area for areas in found for area in areas), key=lambda area: -area.mm2)


def colour_of(place: int) -> list[int]:
    """Red, green and blue of a kind, as it looks on tissue."""
    layer = Layer(("",), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32))
    return [round(255 * value) for value in legend_colour(layer, place, STRENGTH)]


def draw_tissue_map(path: Path, views: Sequence[View], found: TissueMap, areas: Sequence[Area]) -> None:
    """The views of a slide, below each other, painted."""
    one_hot = {
        str(place): np.where(found.stored.ok, found.kind == place, np.nan).astype(np.float32) for place in range(len(found.names))
    }
    heatmap = Heatmap.from_tiles(found.stored, one_hot)
    known = np.nan_to_num(heatmap.layers).max(0) > 0
    layer = Layer(found.names, np.nan_to_num(heatmap.layers).argmax(0), np.where(known, np.float32(STRENGTH), np.float32("nan")))
    pictures = [_lettered(paint(view, heatmap, layer), view, found, areas) for view in views]
    width = max(picture.shape[1] for picture in pictures)
    legend = _legend(found, width)
    sheet = Image.new("RGB", (width, sum(picture.shape[0] for picture in pictures) + legend.height + FOOTER_PX), "white")
    top = 0
    for picture in pictures:
        sheet.paste(Image.fromarray(picture), (0, top))
        top += picture.shape[0]
    sheet.paste(legend, (0, top))
    top += legend.height
    ImageDraw.Draw(sheet).text((4, top + 2), f"Tissue map. {RESEARCH_USE}", fill=(60, 60, 60), font=font(11))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=JPEG_QUALITY, comment=RESEARCH_USE.encode())
    write_atomically(path, buffer.getvalue())


def _legend(found: TissueMap, width: int) -> Image.Image:
    """Kinds that are on the slide, with their colour and area; in as many lines as they need."""
    told = [
        (name, colour_of(place), area) for place, (name, area) in enumerate(zip(found.names, found.areas_mm2(), strict=False))
    ]
    rest = found.areas_mm2()[-1]
    told += [("none of these", [255, 255, 255], rest)] if rest else []
    lines: list[list[tuple[str, list[int], int]]] = [[]]
    x = MARGIN_PX
    for name, colour, area in told:
        if not area:
            continue
        text = f"{drawable(name, name[0])}  {say_mm2(area)}"
        needed = CHIP_PX + 3 * MARGIN_PX + int(font(LETTER_PX).getlength(text))
        if x + needed > width and lines[-1]:
            lines.append([])
            x = MARGIN_PX
        lines[-1].append((text, colour, x))
        x += needed
    image = Image.new("RGB", (width, MARGIN_PX + len(lines) * (CHIP_PX + MARGIN_PX)), "white")
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        y = MARGIN_PX + row * (CHIP_PX + MARGIN_PX)
        for text, colour, left in line:
            draw.rectangle((left, y, left + CHIP_PX, y + CHIP_PX), fill=tuple(colour), outline=(120, 120, 120))
            draw.text((left + CHIP_PX + MARGIN_PX, y + CHIP_PX / 2), text, fill="black", font=font(LETTER_PX), anchor="lm")
    return image


def _lettered(picture: RGB, view: View, found: TissueMap, areas: Sequence[Area]) -> RGB:
    """Letters on the largest areas of every kind."""
    left, right, bottom, top = view.extent
    scale = picture.shape[1] / (right - left), picture.shape[0] / (bottom - top)
    tile = found.stored.tile_l0[0] * found.stored.tile_l0[1]
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    told = dict.fromkeys(found.names, 0)
    for area in areas:
        at = area.shape.representative_point()
        inside = left <= at.x <= right and top <= at.y <= bottom
        if not inside or told[area.name] == NAMED_AREAS or area.shape.area < LEAST_CELLS * tile:
            continue
        told[area.name] += 1
        place = (at.x - left) * scale[0], (at.y - top) * scale[1]
        draw.text(place, area.name[0], fill="black", font=font(LETTER_PX), anchor="mm", stroke_width=2, stroke_fill="white")
    return np.asarray(image)


def write_tissue_areas(path: Path, found: TissueMap, areas: Sequence[Area]) -> None:
    """For QuPath: every area of every kind."""
    write_areas(path, found.stored, areas, {name: colour_of(place) for place, name in enumerate(found.names)})


def draw_kinds(path: Path, names: Sequence[str], mm2: Sequence[float], examples: Mapping[int, Sequence[RGB]]) -> None:
    """kinds.png: a row for each kind, with its colour, its area over all slides, and example tiles."""
    columns = max(len(pictures) for pictures in examples.values())
    pairs = 2 if len(names) > 5 else 1
    rows = ceil(len(names) / pairs)
    step = EXAMPLE_PX + MARGIN_PX // 2
    wide, top = KIND_PX + columns * step + 2 * MARGIN_PX, 2 * MARGIN_PX + TITLE_PX
    sheet = Image.new("RGB", (pairs * wide, top + rows * step + MARGIN_PX + FOOTER_PX), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw_text(draw, (sheet.width / 2, MARGIN_PX), "What the tissue is made of: kinds found without a label", TITLE_PX, "mt")
    draw_text(draw, (sheet.width / 2, sheet.height - MARGIN_PX / 2), RESEARCH_USE, 11, "mb")
    for place, name in enumerate(names):
        left, y = place // rows * wide + MARGIN_PX, top + place % rows * step
        draw.rectangle((left, y + 24, left + 26, y + EXAMPLE_PX - 24), fill=tuple(colour_of(place)))
        for number, line in enumerate(wrapped(drawable(name, name[0]), NAME_PX, KIND_PX - 44)[:2]):
            draw_text(draw, (left + 36, y + EXAMPLE_PX / 2 - 4 - 18 * (1 - number)), line, NAME_PX, "lm")
        draw_text(draw, (left + 36, y + EXAMPLE_PX / 2 + 24), say_mm2(mm2[place]), 12, "lm")
        for number, picture in enumerate(examples.get(place, ())):
            shown = cv2.resize(
                picture, (EXAMPLE_PX, EXAMPLE_PX), interpolation=cv2.INTER_AREA if len(picture) > EXAMPLE_PX else cv2.INTER_CUBIC
            )
            sheet.paste(Image.fromarray(shown), (left + KIND_PX + number * step, y))
    save_sheet(sheet, path)
