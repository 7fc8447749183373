"""Draw the tissue outline of every slide in a folder on one sheet, to be looked at.

python tests/contact_sheet.py ../shared/data/atlas sheet.png [--mpp 1.0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pathovit.errors import SlideError
from pathovit.settings import TissueSettings
from pathovit.slides.find import find_slides
from pathovit.slides.slide import open_slide
from pathovit.slides.tissue import find_tissue

CELL_PX = 420


def draw(path: Path, mpp: float | None) -> Image.Image:
    """One cell: the overview with tissue outlined in green and pen in yellow, or the reason there is none."""
    cell = Image.new("RGB", (CELL_PX, CELL_PX + 16), "white")
    pen = ImageDraw.Draw(cell)
    try:
        with open_slide(path, mpp) as slide:
            mask = find_tissue(slide, TissueSettings())
    except SlideError as error:
        pen.multiline_text((4, 40), "\n".join(str(error)[i : i + 60] for i in range(0, len(str(error)), 60)), fill="red")
        return cell
    scale = CELL_PX / max(mask.tissue.shape)
    picture = np.asarray(
        Image.fromarray(mask.overview).resize([max(1, round(s * scale)) for s in mask.tissue.shape[::-1]], Image.Resampling.BOX)
    ).copy()
    for layer, colour in ((mask.tissue, (0, 160, 0)), (mask.pen, (230, 200, 0))):
        small = np.asarray(Image.fromarray(layer).resize(picture.shape[1::-1], Image.Resampling.NEAREST))
        picture[small & ~ndimage.binary_erosion(small, border_value=0)] = colour
    cell.paste(Image.fromarray(picture), (0, 0))
    pen.text((2, CELL_PX + 2), f"{path.name[:44]}  {mask.area_mm2:.1f} mm2", fill="black")
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--mpp", type=float, help="for slides that state none")
    parser.add_argument("--columns", type=int, default=5)
    options = parser.parse_args()
    cells = []
    for path in find_slides(options.slides):
        try:
            open_slide(path).close()
            cells.append(draw(path, None))
        except SlideError:
            cells.append(draw(path, options.mpp))
    rows = -(-len(cells) // options.columns)
    sheet = Image.new("RGB", (options.columns * CELL_PX, rows * (CELL_PX + 16)), "white")
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % options.columns * CELL_PX, index // options.columns * (CELL_PX + 16)))
    sheet.save(options.sheet)


if __name__ == "__main__":
    main()
