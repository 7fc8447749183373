"""Mosaics of real patches: laid out as tissue, painted, folded, stained or blurred, and saved as a pyramid with their outlines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from shapely import area, box, intersection, union_all
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from pathovit.outputs.features import SlideFeatures
from pathovit.study.regions import COMPLETE, TUMOUR

JPEG_TILE_PX = 256
GLASS = (243, 242, 244)
MAX_FOLDS = 2
FOLD_UM = (40.0, 160.0)  # half the width of a fold
Patch = NDArray[np.uint8]  # (side, side, 3)
Pool = dict[int, list[Patch]]  # label -> patches


def smooth_noise(shape: tuple[int, int], sigma: float, chance: np.random.Generator) -> NDArray[np.float64]:
    noise = ndimage.gaussian_filter(chance.normal(size=shape), sigma)
    return np.asarray(noise / noise.std())


def draw_layout(tumour_share: float, sides: tuple[int, int], chance: np.random.Generator) -> NDArray[np.int64]:
    """Cells (rows, columns) of a tissue-shaped outline: 0 glass, 1 normal, 2 tumour, this in one to three places."""
    rows, columns = (int(n) for n in chance.integers(*sides, 2))
    y, x = np.mgrid[0:rows, 0:columns]
    radius = np.hypot((y - rows / 2) / (rows * 0.42), (x - columns / 2) / (columns * 0.42))
    cells = (radius + 0.12 * smooth_noise((rows, columns), 2.5, chance) < 1).astype(np.int64)
    wanted = round(tumour_share * cells.sum())
    if tumour_share > 0:
        inside = np.argwhere(cells)
        places = 1 if wanted < 12 else int(chance.integers(1, 4))
        centres = inside[chance.integers(0, len(inside), places)]
        distance = np.min([np.hypot(y - cy, x - cx) for cy, cx in centres], axis=0)
        field = np.where(cells > 0, distance + 0.7 * smooth_noise((rows, columns), 1.2, chance), np.inf)
        cells.flat[np.argsort(field, axis=None)[: max(2, wanted)]] = 2
    return cells


def paint(cells: NDArray[np.int64], pool: Pool, side: int, gain: NDArray[np.float64], chance: np.random.Generator) -> Patch:
    """The mosaic at level 0, uint8 (H, W, 3); `gain` is a factor on the optical density of each channel."""
    picture = np.empty((cells.shape[0] * side, cells.shape[1] * side, 3), np.uint8)
    picture[:] = GLASS
    for row, column in np.argwhere(cells > 0):
        choices = pool[int(cells[row, column] == 2)]
        patch = choices[chance.integers(len(choices))]
        patch = np.rot90(patch, chance.integers(4))[:: chance.choice([-1, 1])]
        picture[row * side : (row + 1) * side, column * side : (column + 1) * side] = patch
    tissue = np.kron(cells > 0, np.ones((side, side), bool))
    return np.where(tissue[..., None], denser(picture, gain), picture)


def denser(picture: Patch, gain: NDArray[np.float64]) -> Patch:
    """Optical density times a factor for each channel."""
    level = np.maximum(np.arange(256), 1) / 255.0
    table = (255 * level[:, None] ** np.broadcast_to(gain, 3)).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(picture, table.reshape(256, 1, 3)))


def fold(picture: Patch, tissue: NDArray[np.bool_], mpp: float, chance: np.random.Generator) -> Patch:
    """Tissue that lies twice along a bent band: its optical density is about doubled, and it is out of focus."""
    y, x = np.mgrid[0 : picture.shape[0] : 16, 0 : picture.shape[1] : 16]
    centre, angle = chance.uniform(0.3, 0.7, 2) * picture.shape[:2], chance.uniform(0, np.pi)
    away = (y - centre[0]) * np.cos(angle) + (x - centre[1]) * np.sin(angle)  # pixels from a straight line
    bent = away + 150 / mpp * smooth_noise(away.shape, 12, chance)
    coarse = np.abs(bent) < chance.uniform(*FOLD_UM) / mpp
    band = np.kron(coarse, np.ones((16, 16), bool))[: picture.shape[0], : picture.shape[1]] & tissue
    doubled = denser(picture, np.asarray(chance.uniform(1.6, 2.4)))
    doubled = cv2.GaussianBlur(doubled, (0, 0), chance.uniform(0.4, 1.2))
    return np.where(band[..., None], doubled, picture)


def usual_gain(chance: np.random.Generator) -> NDArray[np.float64]:
    """Slides of one laboratory differ a little."""
    return np.asarray(chance.normal(1, 0.06, 3))


def other_gain(chance: np.random.Generator) -> NDArray[np.float64]:
    """Another stain: one or two channels markedly stronger, the others weaker."""
    signs = chance.permutation([1, -1, chance.choice([1, -1])])
    return np.asarray(1 + signs * chance.uniform(0.3, 0.5, 3))


def blur(picture: Patch, chance: np.random.Generator) -> Patch:
    """Out of focus by 1.5 to 3 tile pixels."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), chance.uniform(1.5, 3)))


def save_pyramid(path: Path, picture: Patch, mpp: float, quality: int) -> None:
    """A tiled JPEG pyramid with its pixel size, as OpenSlide's generic TIFF."""
    with tifffile.TiffWriter(path) as tiff:
        for index, factor in enumerate((1, 4)):
            level = picture if factor == 1 else np.asarray(Image.fromarray(picture).reduce(factor))
            per_cm = 1e4 / (mpp * factor)
            tiff.write(
                jpeg_tiles(level, quality), shape=level.shape, dtype=np.uint8, tile=(JPEG_TILE_PX, JPEG_TILE_PX), photometric="ycbcr",
                compression="jpeg", subsampling=(2, 2), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                subfiletype=int(index > 0), metadata=None,
            )  # fmt: skip


def jpeg_tiles(picture: Patch, quality: int) -> Iterator[bytes]:
    """The picture as JPEG tiles, row by row; the last ones are filled up with glass."""
    height, width = picture.shape[:2]
    for y in range(0, height, JPEG_TILE_PX):
        for x in range(0, width, JPEG_TILE_PX):
            tile = np.full((JPEG_TILE_PX, JPEG_TILE_PX, 3), GLASS, np.uint8)
            part = picture[y : y + JPEG_TILE_PX, x : x + JPEG_TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(tile).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
            yield buffer.getvalue()


def tumour_outline(path: Path) -> BaseGeometry:
    """All that is drawn as tumour, in level-0 pixels; empty where nothing is, or no file."""
    features = json.loads(path.read_text())["features"] if path.is_file() else []
    named = [(f["properties"].get("classification", {}).get("name"), shape(f["geometry"])) for f in features]
    return union_all([geometry for name, geometry in named if name != COMPLETE])


def tumour_tiles(stored: SlideFeatures, outline: Path) -> NDArray[np.bool_]:
    """(N,) tiles that lie at least half on what is outlined; none where there is no outline."""
    squares = box(*np.concatenate([stored.xy, stored.xy + np.asarray(stored.tile_l0)], axis=1).T)
    return np.asarray(area(intersection(squares, tumour_outline(outline))) > 0.5 * area(squares[0]))


def save_truth(path: Path, cells: NDArray[np.int64], side: int, away: int = 0) -> None:
    """Tumour as GeoJSON in level-0 pixels, and that it is all there is; the first cell lies `away` pixels from the corner, both ways."""
    cells_at = np.argwhere(cells == 2)[:, ::-1] * side + away
    tumour = union_all(box(*cells_at.T, *(cells_at + side).T))
    whole = box(0, 0, *(np.array(cells.shape[::-1]) * side + away))
    drawn = [(COMPLETE, whole), *((TUMOUR[0], part) for part in getattr(tumour, "geoms", [tumour]) if not part.is_empty)]
    features = [
        {"type": "Feature", "geometry": mapping(geometry), "properties": {"classification": {"name": name}}}
        for name, geometry in drawn
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
