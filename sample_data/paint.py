"""Every tile of every level reads its patch of library and fields, and is painted and encoded as it comes."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from .fields import Box, Fields, lay_fields, make_box
from .noise import smooth_noise
from .spec import MARGIN_PX, QUILT, TILE_PX, Floats, Pixels, SampleSpec, downsamples
from .tissues import ROUGH_UM, Library, Stain, crop_patch, draw_library

JPEG_QUALITY = 80
LAYERS = (  # from the bottom; what none of them covers is stroma-0
    *(f"stroma-{k}" for k in range(1, QUILT)),
    "fat",
    *(f"glands-{k}" for k in range(QUILT)),
    "lymphoid",
    *(f"tumour-{k}" for k in range(QUILT)),
)
EDGE_UM = 4.0  # width over which one tissue passes into the next
BLUR_UM = 2.5  # sigma of the blur of a scanner out of focus


INKS = {"blue": (1.9, 1.1, 0.25), "green": (1.7, 0.5, 1.1), "black": (1.9, 1.8, 1.7)}  # optical density, RGB


@dataclass(frozen=True)
class Scene:
    """All that is needed to paint any tile of a slide."""

    spec: SampleSpec
    stain: Stain
    library: Library
    fields: Fields
    grain: Floats  # (TILE_PX, TILE_PX): faint noise of the camera, the same on every tile
    ink: Floats  # (3, 1, 1) optical density

    def edge_um(self, box: Box) -> float:
        """Width of a drawn border: at least one pixel of the level."""
        return max(EDGE_UM, box.downsample * self.spec.mpp)

    def reach_um(self, box: Box) -> float:
        """How far outside its field a kind of tissue may still show."""
        return 5 * ROUGH_UM + self.edge_um(box)


def make_scene(spec: SampleSpec) -> Scene:
    rng = np.random.default_rng(spec.seed)
    stain = Stain.draw(rng)
    ink = np.array(list(INKS.values())[int(rng.integers(len(INKS)))], np.float32)[:, None, None]
    grain = 0.7 * smooth_noise((TILE_PX, TILE_PX), (0.7, 0.7), rng)
    for_library, for_fields = rng.spawn(2)
    library = draw_library(spec, stain, for_library)  # first, while memory is free: drawing needs the most
    return Scene(spec, stain, library, lay_fields(spec, for_fields), grain, ink)


def cover(field_um: Floats, edge_um: float) -> Floats:
    """Share of a pixel inside a signed field, in [0, 1]."""
    share = field_um * np.float32(1 / edge_um)
    share += np.float32(0.5)
    return np.asarray(np.clip(share, 0, 1, out=share))


def is_glass(scene: Scene, box: Box) -> bool:
    """True where a box holds neither tissue nor pen nor bubble."""
    return not any(scene.fields.reaches(name, box, -scene.reach_um(box) - 30) for name in ("tissue", "pen", "bubble"))


def tissue_density(scene: Scene, box: Box, rough: Floats) -> Floats:
    """Optical density (3, side, side) of the tissue in a box, as if there were tissue everywhere."""
    reach_um, edge_um = scene.reach_um(box), scene.edge_um(box)
    seen = [("stroma-0", rough)]  # layers that show, from the bottom; the lowest covers everything
    for name in LAYERS:
        low_um, high_um = scene.fields.range_um(name, box)
        if low_um > reach_um:
            seen = [(name, rough)]
        elif high_um > -reach_um:
            seen.append((name, cover(scene.fields.read(name, box) + rough, edge_um)))
    density = scene.library.density(seen[0][0], box)
    for name, alpha in seen[1:]:
        if alpha.any():
            above = scene.library.density(name, box)
            above -= density
            above *= alpha
            density += above
    return density


def paint(scene: Scene, box: Box) -> Floats:
    """Light (3, side, side) of a box, 0 to 255: tissue with its fold, glass, pen, bubble."""
    fields, edge_um, reach_um = scene.fields, scene.edge_um(box), scene.reach_um(box)
    rough = crop_patch(scene.library.rough[box.downsample], box)
    density: Floats = np.zeros((3, box.side, box.side), np.float32)
    if fields.reaches("tissue", box, -reach_um):
        depth = fields.read("thickness", box) * cover(fields.read("tissue", box) + rough, edge_um)
        if fields.reaches("fold", box, -reach_um):
            depth *= 1 + np.float32(0.9) * cover(fields.read("fold", box) + rough, 2 * edge_um)
        density = tissue_density(scene, box, rough)
        density *= depth
    if fields.reaches("pen", box, -2 * reach_um):
        pen = cover(fields.read("pen", box) + rough, 8 * edge_um)
        density += pen * (np.float32(0.85) + np.float32(0.012) * rough) * scene.ink
    np.negative(density, out=density)
    light = np.exp(density, out=density)
    light *= scene.stain.glass[:, None, None]
    if fields.reaches("bubble", box, -60):
        inside_um = fields.read("bubble", box)
        rim, gleam = np.exp(-((inside_um / 9) ** 2)), np.exp(-(((inside_um - 24) / 9) ** 2))
        light *= 1 - np.float32(0.5) * rim + np.float32(0.04) * gleam
    return light


def paint_tile(scene: Scene, x: int, y: int, downsample: int) -> Pixels | None:
    """The tile (TILE_PX, TILE_PX, 3) at (x, y) of a level; None where it is bare glass."""
    box = make_box(scene.fields, x, y, TILE_PX, downsample)
    if is_glass(scene, box):
        return None
    light = paint(scene, box)
    if scene.fields.reaches("blur", box, 0):
        wide = make_box(scene.fields, x - MARGIN_PX, y - MARGIN_PX, TILE_PX + 2 * MARGIN_PX, downsample)
        sigma_px = BLUR_UM / (scene.spec.mpp * downsample)
        soft = ndimage.gaussian_filter(paint(scene, wide), (0, sigma_px, sigma_px), truncate=3)
        soft = soft[:, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
        light = light + cover(scene.fields.read("blur", box) - 50, 100) * (soft - light)
    return to_pixels(light + scene.grain)


def to_pixels(light: Floats) -> Pixels:
    """Light (3, H, W) -> RGB (H, W, 3)."""
    return np.ascontiguousarray(np.clip(np.rint(light), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def glass_tile(scene: Scene) -> Pixels:
    return to_pixels(scene.stain.glass[:, None, None] + scene.grain)


def encode_jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def encode_level(scene: Scene, downsample: int, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """JPEG tiles of a level, row by row; all bare glass is the same bytes."""
    glass = encode_jpeg(glass_tile(scene))
    width, height = (length // downsample for length in scene.spec.size)
    rows = range(0, height, TILE_PX)

    def encode(x: int, y: int) -> bytes:
        tile = paint_tile(scene, x, y, downsample)
        return glass if tile is None else encode_jpeg(tile)

    told_s = time.monotonic()
    for y in rows:
        yield from pool.map(lambda x, y=y: encode(x, y), range(0, width, TILE_PX))
        if time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            print(f"{scene.spec.name}: 1/{downsample} {100 * y // height} %", file=sys.stderr)


def small_picture(scene: Scene) -> Image.Image:
    """The whole slide in one picture: its coarsest level."""
    downsample = downsamples(scene.spec)[-1]
    width, height = (length // downsample for length in scene.spec.size)
    picture = Image.new("RGB", (width, height))
    glass = glass_tile(scene)
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = paint_tile(scene, x, y, downsample)
            picture.paste(Image.fromarray(glass if tile is None else tile), (x, y))
    return picture
