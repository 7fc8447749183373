"""Slides whose every number can be worked out by hand, and an encoder whose feature is a tile's mean colour."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pathovit.slides.slide import Slide
from pathovit.slides.tissue import TissueMask

PINK, PURPLE, WHITE = (200, 120, 180), (110, 70, 150), (255, 255, 255)
TISSUE = (512, 256, 1024, 1024)  # x, y, width, height of the pink square, level-0 pixels
MPP = 0.5
GRAIN = 8


def squares_picture() -> NDArray[np.uint8]:
    """(1536, 2048, 3): a pink square of 1024 px on white, with a grain; its lower right quarter is purple."""
    picture = np.full((1536, 2048, 3), 255, np.uint8)
    x, y, width, height = TISSUE
    picture[y : y + height, x : x + width] = PINK
    picture[y + height // 2 : y + height, x + width // 2 : x + width] = PURPLE
    return with_grain(picture)


def with_grain(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cells of 32 px of what is coloured are in turn lighter and darker by GRAIN: what has no texture is no tissue.

    The mean colour of every 64 x 64 px on that lattice is what it was.
    """
    rows, columns = np.indices(picture.shape[:2]) // 32
    grain = np.where((rows + columns) % 2, GRAIN, -GRAIN)[..., None] * (picture.min(-1, keepdims=True) < 200)
    return (picture.astype(int) + grain).clip(0, 255).astype(np.uint8)


def write_tiff(
    path: Path,
    picture: NDArray[np.uint8],
    mpp: float | None = MPP,
    levels: tuple[int, ...] = (1, 4),
    jpeg: bool = False,
    **more: Any,
) -> Path:
    """A tiled pyramid that OpenSlide opens as generic-tiff; lossless unless `jpeg`. `more` goes to tifffile."""
    with tifffile.TiffWriter(path) as tiff:
        for index, factor in enumerate(levels):
            level = np.ascontiguousarray(picture[::factor, ::factor])
            options: dict[str, Any] = {"tile": (256, 256), "subfiletype": int(index > 0), "metadata": None}
            if mpp is not None:
                options |= {"resolution": (1e4 / (mpp * factor),) * 2, "resolutionunit": "CENTIMETER"}
            if jpeg:
                options |= {
                    "photometric": "ycbcr",
                    "compression": "jpeg",
                    "subsampling": (2, 2),
                    "shape": level.shape,
                    "dtype": np.uint8,
                }
                tiff.write(_jpeg_tiles(level), **options)
            else:
                planes = np.moveaxis(level, 2, 0) if more.get("planarconfig") == "separate" else level
                tiff.write(planes, **({"photometric": "rgb", "compression": "zlib"} | options | more))
    return path


def _jpeg_tiles(picture: NDArray[np.uint8]) -> Iterator[bytes]:
    for y in range(0, picture.shape[0], 256):
        for x in range(0, picture.shape[1], 256):
            tile = np.full((256, 256, 3), 255, np.uint8)
            part = picture[y : y + 256, x : x + 256]
            tile[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(tile).save(buffer, "JPEG", quality=90)
            yield buffer.getvalue()


def zero_tiles(path: Path, tiles: list[int], page: int = 0) -> None:
    """Overwrite compressed tiles of a page with zeros: they cannot be decoded any more."""
    with tifffile.TiffFile(path) as tiff:
        spans = [(tiff.pages[page].dataoffsets[i], tiff.pages[page].databytecounts[i]) for i in tiles]
    with path.open("r+b") as file:
        for offset, count in spans:
            file.seek(offset)
            file.write(bytes(count))


class MeanColourEncoder:
    """Stands in for a ViT: the feature of a tile is its mean colour."""

    def __init__(self, tile_px: int = 128, mpp: float = MPP) -> None:
        self.dim, self.tile_px, self.mpp, self.name = 3, tile_px, mpp, "mean_colour"
        self.record = SimpleNamespace(tile_px=tile_px, mpp=mpp, name=self.name, scaled_decoding=True, feature_dtype="float16")
        self.device = SimpleNamespace(type="cpu", index=None)
        self.compiled, self.batch_tiles, self.lanes, self.cores = None, 32, 2, 2

    def buffer(self, tiles: int) -> NDArray[np.uint8]:
        return np.empty((tiles, self.tile_px, self.tile_px, 3), np.uint8)

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(tiles).mean((1, 2)).astype(np.float32)

    def launch(self, tiles: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        features = self.embed(tiles)
        return lambda: features

    def recipe(self) -> dict[str, Any]:
        return {
            "encoder": self.name,
            "weights_sha256": "none",
            "dim": 3,
            "tile_px": self.tile_px,
            "precision": "float32",
            "device": "cpu",
        }


def exact_mask(slide: Slide) -> TissueMask:
    """The pink square, at 8 level-0 pixels per mask pixel."""
    shape = (slide.size[1] // 8, slide.size[0] // 8)
    tissue = np.zeros(shape, bool)
    x, y, width, height = (v // 8 for v in TISSUE)
    tissue[y : y + height, x : x + width] = True
    none = np.zeros(shape, bool)
    return TissueMask(tissue, none, none, (8.0, 8.0), (4.0, 4.0), np.zeros((*shape, 3), np.uint8), ~none, none, none)


def truncate_tile(path: Path, tile: int) -> None:
    """The second half of a compressed tile becomes zeros, as after a broken transfer."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[tile], tiff.pages[0].databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(offset + count // 2)
        file.write(bytes(count - count // 2))


LEICA_OFFSET = (300, 200)  # where the scanned part lies on the glass, level-0 pixels


def write_leica(path: Path, picture: NDArray[np.uint8], mpp: float = MPP) -> Path:
    """A Leica SCN of one scanned part that fills but a corner of its glass: OpenSlide states bounds, and level 0 is the glass."""
    nm, (height, width) = round(mpp * 1000), picture.shape[:2]
    x, y = LEICA_OFFSET
    glass = (width + x + 400, height + y + 500)
    factors = (1, 4)
    macro = _leica_image([(256, 256)], 0, (*glass, 0, 0), nm)
    main = _leica_image([(width // f, height // f) for f in factors], 1, (width, height, x, y), nm)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
        tiff.write(
            np.full((256, 256, 3), 220, np.uint8),
            description=f'<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="made" '
            f'sizeX="{glass[0] * nm}" sizeY="{glass[1] * nm}">{macro}{main}</collection></scn>',
            **options,
        )
        for factor in factors:
            resolution = (1e4 / (mpp * factor),) * 2
            tiff.write(
                np.ascontiguousarray(picture[::factor, ::factor]),
                resolution=resolution,
                resolutionunit="CENTIMETER",
                **options,
            )
    return path


def _leica_image(sizes: list[tuple[int, int]], ifd: int, view: tuple[int, int, int, int], nm: int) -> str:
    levels = "".join(f'<dimension sizeX="{w}" sizeY="{h}" r="{i}" ifd="{ifd + i}"/>' for i, (w, h) in enumerate(sizes))
    place = " ".join(f'{name}="{v * nm}"' for name, v in zip(("sizeX", "sizeY", "offsetX", "offsetY"), view, strict=True))
    return (
        f'<image name="made"><device model="made"/><pixels sizeX="{sizes[0][0]}" sizeY="{sizes[0][1]}">{levels}</pixels><view {place} spacingZ="0"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4"
        "</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )
