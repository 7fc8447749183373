"""Cut the tissue of the atlas slides into tiles of 96 px at 1 um/px: tiles.npy and tiles.csv (slide, x, y) in --work.

Slides are read as `pathovit run` reads them. A slide without a pixel size takes mpp_assumed of slides.csv.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from pathovit.encoders.reference import MPP, TILE_PX
from pathovit.settings import TileSpec, TissueSettings
from pathovit.slides.slide import open_slide
from pathovit.slides.tiling import lay_grid, read_tile
from pathovit.slides.tissue import find_tissue

FOLDER = "1mpp/"  # the copies at about 1 um/px; slides.csv lists sharper ones of some slides too
MAX_TILES = 600  # of a slide, spread evenly over it, so that no large slide outweighs the others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds atlas/ and pcam/")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    args = parser.parse_args()
    spec = TileSpec(tile_px=TILE_PX, mpp=MPP, stride_px=TILE_PX)
    tiles, places = [], []
    for row in csv.DictReader((args.data / "atlas" / "slides.csv").read_text().splitlines()):
        if not row["file"].startswith(FOLDER):
            continue
        mpp = None if row["mpp"] else float(row["mpp_assumed"])
        with open_slide(args.data / "atlas" / row["file"], mpp=mpp) as slide:
            grid = lay_grid(slide, find_tissue(slide, TissueSettings()), spec, MAX_TILES)
            for index, (x_l0, y_l0) in enumerate(grid.xy):
                if (tile := read_tile(slide, grid, index)) is not None:
                    tiles.append(tile)
                    places.append((row["file"], x_l0, y_l0))
        print(f"{row['file']}: {len(grid)} tiles", flush=True)
    args.work.mkdir(parents=True, exist_ok=True)
    np.save(args.work / "tiles.npy", np.stack(tiles))
    with (args.work / "tiles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide", "x", "y"), *places])


if __name__ == "__main__":
    main()
