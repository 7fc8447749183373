"""Write made whole-slide images: Aperio-style SVS files of invented H&E tissue, with the tumour outlines beside them.

A slide is painted in three steps:

    library   a few square, seamless patches of tissue (stroma, glands, tumour ...), drawn cell by cell at level 0
    fields    coarse maps in micrometres, positive inside: where the tissue, each kind of tissue and each flaw lies
    tiles     every tile of every level reads its patch of library and fields, and is encoded as it comes

No level is ever held in memory, so the slide may be as large as the disk. The same spec gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageDraw, ImageFont
from scipy import fft, ndimage
from scipy.spatial import cKDTree
from skimage.measure import approximate_polygon, find_contours, points_in_poly

Floats = npt.NDArray[np.floating[Any]]  # float32 wherever it is large
Pixels = npt.NDArray[np.uint8]
Rng = np.random.Generator

TILE_PX = 256
JPEG_QUALITY = 80
MARGIN_PX = 48  # read around an out-of-focus tile, so that its blur has neighbours
WRAP_PX = TILE_PX + 2 * MARGIN_PX  # how far each patch repeats itself, so that every crop is one slice
QUILT = 4  # orientations in which a patch is laid, so that the eye finds no repeat
LAYERS = (  # from the bottom; what none of them covers is stroma-0
    *(f"stroma-{k}" for k in range(1, QUILT)),
    "fat",
    *(f"glands-{k}" for k in range(QUILT)),
    "lymphoid",
    *(f"tumour-{k}" for k in range(QUILT)),
)
EDGE_UM = 4.0  # width over which one tissue passes into the next
ROUGH_UM = 3.0  # how far fine roughness moves a drawn border from its field
LENS_UM = 0.2  # sigma of the blur of a scanner in focus ...
BLUR_UM = 2.5  # ... and out of focus
ROOT_STEPS = 128  # of the root of density, so that uint8 holds densities up to 4
SPECK_NODES = 2.0  # outlines of less than this area, in nodes, are left out


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


@dataclass(frozen=True)
class SampleSpec:
    """One slide to make; equal specs give equal files."""

    name: str
    seed: int
    size: tuple[int, int]  # (width, height), level-0 pixels
    mpp: float = 0.5
    tumour_fraction: float = 0.3  # share of the tissue; 0 makes a benign slide
    pieces: int = 1
    tissue_fraction: float = 0.40  # share of the slide
    pen: bool = True
    fold: bool = True
    blur: bool = True
    bubble: bool = True


def demo_specs(count: int, seed: int, size: tuple[int, int] = (7168, 6144), mpp: float = 0.5) -> list[SampleSpec]:
    """Specs sample-1, sample-2 ...: in turn a large tumour, a small tumour and none."""
    kinds = (
        SampleSpec("", seed, size, mpp, tumour_fraction=0.30, fold=False),
        SampleSpec("", seed, size, mpp, tumour_fraction=0.04, pieces=2, bubble=False),
        SampleSpec("", seed, size, mpp, tumour_fraction=0.0, blur=False),
    )
    return [replace(kinds[i % 3], name=f"sample-{i + 1}", seed=seed * 1000 + i) for i in range(count)]


def large_spec(size_px: int, seed: int, mpp: float = 0.25) -> SampleSpec:
    """One square slide; above 10 mm it holds five pieces of tissue, as a slide of biopsies does."""
    spec = SampleSpec(f"sample-{size_px}", seed, (size_px, size_px), mpp, tumour_fraction=0.25)
    return replace(spec, pieces=5, tissue_fraction=0.28) if size_px * mpp > 10_000 else spec


def downsamples(spec: SampleSpec) -> list[int]:
    """Downsample of every level: 1, 4, 16, 64, ending once a level is at most 512 px wide."""
    return [1] + [d for d in (4, 16, 64) if max(spec.size) * 4 / d > 512]


# ---------------------------------------------------------------------------------------------------------------------
# Noise


def smooth_noise(shape: tuple[int, int], sigma_px: tuple[float, float], rng: Rng) -> Floats:
    """Noise (H, W) smoothed by sigma (row, column) in pixels; mean 0, sd 1, seamless where H and W are even."""
    rows, cols = (fft.next_fast_len(length, real=True) for length in shape)
    keep_row, keep_col = (
        np.exp(-2 * (math.pi * sigma * frequency) ** 2).astype(np.float32)
        for sigma, frequency in zip(sigma_px, (fft.fftfreq(rows), fft.rfftfreq(cols)), strict=True)
    )
    waves = fft.rfft2(rng.standard_normal((rows, cols), dtype=np.float32), workers=2)
    waves *= keep_row[:, None]
    waves *= keep_col[None]
    waves[0, 0] = 0
    noise = np.asarray(fft.irfft2(waves, (rows, cols), workers=2, overwrite_x=True)[: shape[0], : shape[1]])
    return np.asarray(noise / (noise.std() + np.float32(1e-9)))


def cloud_noise(shape: tuple[int, int], sigma_px: float, rng: Rng, octaves: int = 5, gain: float = 0.5) -> Floats:
    """Sum of ever finer noises (H, W), each `gain` times the one before; about sd 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        if sigma_px / 2**octave < 1:
            break
        total += gain**octave * smooth_noise(shape, (sigma_px / 2**octave,) * 2, rng)
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Library: seamless patches of tissue


@dataclass(frozen=True)
class Stain:
    """How this slide was stained: optical density per unit of dye and light through bare glass, each (3,) RGB."""

    haematoxylin: Floats
    eosin: Floats
    glass: Floats

    @classmethod
    def draw(cls, rng: Rng) -> Stain:
        """Vary the reference colours a little, as laboratories do.

        Source of the vectors: Macenko et al., "A method for normalizing histology slides", ISBI 2009.
        """
        hue = rng.normal(1, 0.05, (2, 3))
        strength = rng.uniform(0.88, 1.15, (2, 1))
        dyes = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]) * hue * strength
        glass = np.array([242, 241, 243]) + rng.uniform(-1.5, 1.5, 3)
        return cls(dyes[0].astype(np.float32), dyes[1].astype(np.float32), glass.astype(np.float32))


@dataclass(frozen=True)
class Canvas:
    """A seamless patch being drawn: amounts of the two dyes (P, P), about 0.3 for pink stroma, 1 in a nucleus."""

    h: Floats
    e: Floats
    mpp: float
    chromatin: Floats  # fine noise (P, P), sd 1

    @property
    def side_um(self) -> float:
        return float(self.h.shape[0] * self.mpp)

    def noise(self, sigma_um: float, rng: Rng) -> Floats:
        return smooth_noise(self.h.shape, (sigma_um / self.mpp,) * 2, rng)

    def window(self, x_um: float, y_um: float, reach_um: float) -> Window:
        """The square around a point: an index that wraps, and offsets from the point in micrometres."""
        reach_px, side_px = math.ceil(reach_um / self.mpp), self.h.shape[0]
        near = np.arange(-reach_px, reach_px + 1)
        col, row = math.floor(x_um / self.mpp), math.floor(y_um / self.mpp)
        dx = ((near + col + 0.5) * self.mpp - x_um).astype(np.float32)[None]
        dy = ((near + row + 0.5) * self.mpp - y_um).astype(np.float32)[:, None]
        rows, cols = (near + row) % side_px, (near + col) % side_px
        return Window((rows[:, None], cols[None]), dx, dy)


class Window(NamedTuple):
    pixels: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    dx: Floats  # (1, W) micrometres
    dy: Floats  # (H, 1)


@dataclass(frozen=True)
class Nucleus:
    """A kind of nucleus: axes in micrometres, relative spread of size, dye, and how coarse and misshapen it is."""

    long_um: float
    short_um: float
    spread: float
    dye: float
    clumps: float
    wobble: float
    nucleolus: float = 0.0


LYMPHOCYTE = Nucleus(6.6, 6.2, 0.07, 1.55, 0.14, 0.05)
EPITHELIAL = Nucleus(8.0, 5.8, 0.08, 0.95, 0.14, 0.05)
FIBROBLAST = Nucleus(13.0, 2.6, 0.20, 0.95, 0.10, 0.05)
MALIGNANT = Nucleus(12.6, 9.8, 0.17, 1.15, 0.16, 0.15, nucleolus=0.7)


def draw_nucleus(canvas: Canvas, x_um: float, y_um: float, angle: float, kind: Nucleus, rng: Rng) -> None:
    """Add one nucleus: an uneven ellipse with a dark rim, clumped chromatin and, in some kinds, a nucleolus."""
    size = math.exp(rng.normal(0, kind.spread))
    a, b = kind.long_um / 2 * size, kind.short_um / 2 * size * math.exp(rng.normal(0, kind.spread / 2))
    place = canvas.window(x_um, y_um, max(a, b) * 1.34 + 1)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = (place.dx * cos + place.dy * sin) / a, (place.dy * cos - place.dx * sin) / b  # (H, W)
    bend = rng.normal(0, kind.wobble, 4)
    uneven = 1 + bend[0] * u + bend[1] * v + bend[2] * u * v + bend[3] * (u * u - v * v)
    radius = np.sqrt(u * u + v * v) * np.clip(uneven, 0.75, 1.3)
    cover = np.clip((1 - radius) * b / max(0.6, canvas.mpp) + 0.5, 0, 1)
    depth = 0.80 + 0.28 * np.clip((radius - 0.55) / 0.4, 0, 1) + kind.clumps * canvas.chromatin[place.pixels]
    if kind.nucleolus:
        spot = ((u - rng.uniform(-0.4, 0.4)) * a) ** 2 + ((v - rng.uniform(-0.4, 0.4)) * b) ** 2
        depth += kind.nucleolus * np.exp(-spot / 1.2**2)
    dye = kind.dye * math.exp(rng.normal(0, kind.spread * 0.9)) * depth
    canvas.h[place.pixels] = canvas.h[place.pixels] * (1 - cover) + np.maximum(canvas.h[place.pixels], dye) * cover
    canvas.e[place.pixels] *= 1 - 0.55 * cover


def scatter(side_um: float, spacing_um: float, jitter: float, rng: Rng) -> npt.NDArray[np.float64]:
    """Points (N, 2) xy in micrometres: a hexagonal lattice on the torus, each moved by about `jitter` spacings."""
    cols, rows = max(1, round(side_um / spacing_um)), 2 * max(1, round(side_um / spacing_um / 1.73))
    x, y = np.meshgrid(np.arange(cols) + 0.0, np.arange(rows) + 0.0)
    x += (y % 2) / 2
    xy = np.stack([x.ravel() * side_um / cols, y.ravel() * side_um / rows], 1)
    return np.asarray((xy + rng.normal(0, jitter * spacing_um, xy.shape)) % side_um)


def blank_canvas(side_px: int, mpp: float, rng: Rng) -> Canvas:
    zeros = np.zeros((side_px, side_px), np.float32)
    return Canvas(zeros, zeros.copy(), mpp, smooth_noise(zeros.shape, (0.55 / mpp,) * 2, rng))


def draw_stroma(canvas: Canvas, rng: Rng) -> None:
    """Wavy collagen with clefts between the fibres and spindle nuclei along them."""
    shape, mpp = canvas.h.shape, canvas.mpp
    bundles = smooth_noise(shape, (7 / mpp, 70 / mpp), rng)
    fibres = smooth_noise(shape, (1.1 / mpp, 30 / mpp), rng)
    canvas.e[:] = 0.35 + 0.035 * bundles + 0.035 * fibres + 0.012 * canvas.chromatin
    canvas.e[:] -= 0.28 * np.clip((0.8 * bundles + fibres - 2.8) / 0.8, 0, 1)  # clefts
    canvas.h[:] = 0.05 + 0.01 * bundles
    for x, y in scatter(canvas.side_um, 27, 0.4, rng):
        draw_nucleus(canvas, x, y, rng.normal(0, 0.12), FIBROBLAST, rng)
    wave_um = min(70.0, canvas.side_um / 4)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    shift_px = [canvas.noise(wave_um, rng) * np.float32(wave_um * 0.36 / mpp) for _ in range(2)]
    warp = np.stack([rows.astype(np.float32) + shift_px[0], cols.astype(np.float32) + shift_px[1]])
    for plane in (canvas.h, canvas.e):
        plane[:] = ndimage.map_coordinates(plane, warp, order=1, mode="grid-wrap")
    np.clip(canvas.e, 0.03, None, out=canvas.e)


def draw_gland(canvas: Canvas, x_um: float, y_um: float, rng: Rng) -> None:
    """One gland: a ring of tall pale cells around an open lumen, their nuclei at the base."""
    outer_um = rng.uniform(32, 50)
    lumen = rng.uniform(0.25, 0.48)
    place = canvas.window(x_um, y_um, outer_um * 1.5)
    stretch, turn, phase = rng.uniform(1.0, 1.35), rng.uniform(0, math.pi), rng.uniform(0, 6.28, 3)

    def outline_um(angle: Floats) -> Floats:
        waves = 0.06 * np.cos(2 * angle + phase[0]) + 0.05 * np.cos(3 * angle + phase[1])
        waves += 0.02 * np.cos(7 * angle + phase[2])
        oval = 1 / np.sqrt(np.cos(angle - turn) ** 2 / stretch + np.sin(angle - turn) ** 2 * stretch)
        return np.asarray(outer_um * oval * (1 + waves))

    angle = np.arctan2(place.dy, place.dx)
    edge_um = outline_um(angle)
    distance_um = np.hypot(place.dx, place.dy)
    texture = canvas.chromatin[place.pixels]
    inside = np.clip((edge_um - distance_um) / 1.0 + 0.5, 0, 1)
    hollow = np.clip((edge_um * lumen - distance_um + 0.8 * texture) / 1.5 + 0.5, 0, 1)
    depth = np.clip(1 - distance_um / edge_um, 0, 1)  # 0 at the base of the cells
    tall = (0.30 - 0.16 * depth + 0.03 * texture) * (1 - hollow) + 0.015 * hollow
    mixed = (0.14 - 0.05 * depth) * (1 - hollow)
    canvas.e[place.pixels] += inside * (tall - canvas.e[place.pixels])
    canvas.h[place.pixels] += inside * (mixed - canvas.h[place.pixels])
    count = round(2 * math.pi * outer_um / 6.6)
    for step in np.linspace(0, 2 * math.pi, count, endpoint=False):
        at = float(step + rng.normal(0, 0.03))
        base_um = float(outline_um(np.array([at]))[0]) - rng.uniform(5.0, 7.5)
        x, y = x_um + base_um * math.cos(at), y_um + base_um * math.sin(at)
        draw_nucleus(canvas, x, y, at + rng.normal(0, 0.2), EPITHELIAL, rng)


def draw_glands(canvas: Canvas, rng: Rng) -> None:
    """Glands packed in a loose stroma with scattered round cells between them."""
    draw_stroma(canvas, rng)
    canvas.e[:] *= 0.85
    for x, y in scatter(canvas.side_um, 15, 0.45, rng):
        if rng.random() < 0.55:
            draw_nucleus(canvas, x, y, rng.uniform(0, math.pi), LYMPHOCYTE, rng)
    for x, y in scatter(canvas.side_um, 108, 0.09, rng):
        draw_gland(canvas, x, y, rng)


def draw_lymphoid(canvas: Canvas, rng: Rng) -> None:
    """A crowd of lymphocytes: small, round, dark, nearly touching."""
    canvas.e[:] = 0.22 + 0.03 * canvas.noise(3, rng)
    canvas.h[:] = 0.12 + 0.02 * canvas.noise(2, rng)
    for x, y in scatter(canvas.side_um, 8.3, 0.17, rng):
        if rng.random() < 0.93:
            draw_nucleus(canvas, x, y, rng.uniform(0, math.pi), LYMPHOCYTE, rng)


def draw_tumour(canvas: Canvas, rng: Rng) -> None:
    """A solid sheet of large, dark, uneven nuclei with little cytoplasm; a few lymphocytes, gaps and dead cells."""
    canvas.e[:] = 0.30 + 0.05 * canvas.noise(5, rng) + 0.02 * canvas.chromatin
    canvas.h[:] = 0.22 + 0.05 * canvas.noise(7, rng)
    gaps = np.clip((canvas.noise(6, rng) - 2.1) / 0.3, 0, 1)
    for plane in (canvas.h, canvas.e):
        plane *= 1 - 0.9 * gaps
    crowding = canvas.noise(30, rng)
    for x, y in scatter(canvas.side_um, 12.8, 0.16, rng):
        row, col = int(y / canvas.mpp) % crowding.shape[0], int(x / canvas.mpp) % crowding.shape[1]
        chance = rng.random()
        if chance < 0.04:
            draw_nucleus(canvas, x, y, 0.0, LYMPHOCYTE, rng)
        elif chance < 0.97 - 0.12 * max(0.0, float(crowding[row, col])):
            draw_nucleus(canvas, x, y, rng.uniform(0, math.pi), MALIGNANT, rng)


def draw_fat(canvas: Canvas, rng: Rng) -> None:
    """Fat cells: empty polygons with thin walls, here and there a flat nucleus in the wall."""
    centres = scatter(canvas.side_um, 62, 0.2, rng)
    coarse = 4
    near = (np.arange(canvas.h.shape[0] // coarse) + 0.5) * coarse * canvas.mpp
    xy = np.stack(np.meshgrid(near, near), -1)
    distance_um, _ = cKDTree(centres, boxsize=canvas.side_um).query(xy, k=[1, min(2, len(centres))], workers=2)
    gap_um = (distance_um[..., 1] - distance_um[..., 0]).astype(np.float32)  # 0 half way between two centres
    gap_um = ndimage.zoom(gap_um, coarse, order=1, mode="grid-wrap", grid_mode=True)
    wall = np.clip((3.2 + 0.8 * canvas.noise(8, rng) - gap_um) / 1.5, 0, 1)
    canvas.e[:] = 0.02 + wall * (0.30 + 0.05 * canvas.chromatin)
    canvas.h[:] = 0.03 * wall
    rows, cols = np.nonzero(wall[::16, ::16] > 0.9)
    for row, col in zip(rows, cols, strict=True):
        if rng.random() < 0.02:
            draw_nucleus(canvas, col * 16 * canvas.mpp, row * 16 * canvas.mpp, rng.uniform(0, 3.14), FIBROBLAST, rng)


DRAW = {"stroma": draw_stroma, "glands": draw_glands, "lymphoid": draw_lymphoid, "tumour": draw_tumour, "fat": draw_fat}


@dataclass(frozen=True)
class Library:
    """The drawn patches by kind and downsample, uint8 (3, P + WRAP_PX, P + WRAP_PX) of root density, RGB.

    `rough` holds a plane of fine noise in micrometres beside them, for uneven borders.
    """

    patches: dict[tuple[str, int], Pixels]
    rough: dict[int, Floats]

    def density(self, name: str, box: Box) -> Floats:
        """Optical density (3, side, side) of a layer, such as tumour-2, in a box."""
        kind, _, turn = name.partition("-")
        density = crop_patch(self.patches[kind, box.downsample], box, int(turn or 0)).astype(np.float32, order="C")
        density *= density
        density *= np.float32(1 / ROOT_STEPS**2)
        return np.asarray(density)


def quarter(patch: Floats) -> Floats:
    """Mean of every 4 x 4 block of a patch (..., P, P)."""
    rows, cols = (length // 4 for length in patch.shape[-2:])
    return np.asarray(patch.reshape(*patch.shape[:-2], rows, 4, cols, 4).mean((-3, -1)))


def wrapped(patch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Let a patch (..., P, P) repeat itself by WRAP_PX."""
    return np.pad(patch, [(0, 0)] * (patch.ndim - 2) + [(0, WRAP_PX)] * 2, mode="wrap")


def draw_patch(draw: Callable[[Canvas, Rng], None], side_px: int, mpp: float, stain: Stain, rng: Rng) -> Floats:
    """Light (3, P, P) through one kind of tissue, in (0, 1], as sharp as a lens would show it."""
    canvas = blank_canvas(side_px, mpp, rng)
    draw(canvas, rng)
    h, e = (ndimage.gaussian_filter(plane, LENS_UM / mpp, mode="wrap", truncate=3) for plane in (canvas.h, canvas.e))
    light = np.empty((3, side_px, side_px), np.float32)
    for channel in range(3):
        light[channel] = np.exp(-(h * stain.haematoxylin[channel] + e * stain.eosin[channel]))
    return light


def root_density(light: Floats) -> Pixels:
    """Light in (0, 1] as the square root of its density in steps: even to the eye, and decoded by one product."""
    return np.asarray(np.clip(np.rint(ROOT_STEPS * np.sqrt(-np.log(light))), 0, 255), np.uint8)


def draw_library(spec: SampleSpec, stain: Stain, rng: Rng) -> Library:
    """Draw one patch of every kind; light is averaged, never dye, so that the levels agree."""
    side_px = min(2560, max(512, round(max(spec.size) / 5 / 256) * 256))  # its half too divides by 64
    patches: dict[tuple[str, int], Pixels] = {}
    rough = ROUGH_UM * smooth_noise((side_px, side_px), (2.0 / spec.mpp,) * 2, rng)
    planes = {1: wrapped(rough)}
    for downsample in downsamples(spec)[1:]:
        planes[downsample] = wrapped(rough := quarter(rough))
    for kind, draw in DRAW.items():
        light = draw_patch(draw, max(512, side_px // 2) if kind == "lymphoid" else side_px, spec.mpp, stain, rng)
        for downsample in downsamples(spec):
            light = light if downsample == 1 else quarter(light)
            patches[kind, downsample] = wrapped(root_density(light))
    return Library(patches, planes)


def crop_patch(patch: npt.NDArray[Any], box: Box, turn: int = 0) -> npt.NDArray[Any]:
    """A box of an endless patch: (..., side, side); `turn` mirrors it (bit 0) and swaps its axes (bit 1)."""
    period = patch.shape[-1] - WRAP_PX
    x, y = (box.y, box.x) if turn & 2 else (box.x, box.y)
    x, y = (-x - box.side if turn & 1 else x) % period, y % period
    crop = patch[..., y : y + box.side, x : x + box.side]
    crop = crop[..., ::-1] if turn & 1 else crop
    return crop.swapaxes(-1, -2) if turn & 2 else crop


# ---------------------------------------------------------------------------------------------------------------------
# Fields: where everything lies


@dataclass(frozen=True)
class Fields:
    """Maps by name, float32 (H, W), in micrometres, positive inside; `thickness` alone is a factor, around 1.

    Node (row, col) lies at level-0 pixel (col * step_px, row * step_px).
    """

    maps: dict[str, Floats]
    step_px: float

    def range_um(self, name: str, box: Box) -> tuple[float, float]:
        """Lowest and highest node around a box; far outside where there is no such map."""
        if name not in self.maps:
            return -math.inf, -math.inf
        nodes = self.maps[name][box.rows.nodes, box.cols.nodes]
        return float(nodes.min()), float(nodes.max())

    def reaches(self, name: str, box: Box, least_um: float) -> bool:
        return self.range_um(name, box)[1] > least_um

    def read(self, name: str, box: Box) -> Floats:
        """The map at every pixel of a box, linear between nodes: (side, side)."""
        nodes, (_, rows, down), (_, cols, right) = self.maps[name][box.rows.nodes, box.cols.nodes], box.rows, box.cols
        wide = nodes[:, cols] + right * (nodes[:, cols + 1] - nodes[:, cols])  # (nodes, side)
        # Whole rows are copied, which is many times faster than picking out single pixels.
        tall = np.diff(wide, axis=0).take(rows, 0)  # (side, side)
        tall *= down[:, None]
        tall += wide.take(rows, 0)
        return np.asarray(tall)


class Span(NamedTuple):
    """One axis of a box: the nodes around it; for each pixel the node before it and how far on to the next."""

    nodes: slice
    left: npt.NDArray[np.int64]
    part: Floats


class Box(NamedTuple):
    """A square of pixels of one level."""

    x: int
    y: int
    side: int
    downsample: int
    rows: Span
    cols: Span


def make_box(fields: Fields, x: int, y: int, side: int, downsample: int) -> Box:
    def span(start: int, count: int) -> Span:
        at = np.clip((np.arange(start, start + side) + 0.5) * downsample / fields.step_px, 0, count - 1.001)
        left = at.astype(np.int64)
        return Span(slice(int(left[0]), int(left[-1]) + 2), left - left[0], (at - left).astype(np.float32))

    rows, cols = fields.maps["tissue"].shape
    return Box(x, y, side, downsample, span(y, rows), span(x, cols))


@dataclass(frozen=True)
class Ground:
    """The coarse grid fields are made on: positions of its nodes in micrometres, (1, W) and (H, 1)."""

    x_um: Floats
    y_um: Floats
    step_um: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.y_um.shape[0], self.x_um.shape[1]

    @property
    def size_um(self) -> tuple[float, float]:
        return float(self.x_um[0, -1]), float(self.y_um[-1, 0])

    def cloud(self, scale_um: float, rng: Rng, octaves: int = 5, gain: float = 0.5) -> Floats:
        return cloud_noise(self.shape, max(1.0, scale_um / self.step_um), rng, octaves, gain)

    def signed(self, field: Floats) -> Floats:
        """Rescale a smooth field to about micrometres from its zero line, which stays where it is."""
        slope = np.hypot(*np.gradient(field, self.step_um))
        slope = ndimage.gaussian_filter(slope, 2)
        return np.asarray(np.clip(field / np.maximum(slope, 0.25 * slope.mean() + 1e-9), -250, 250), np.float32)

    def disc(self, x_um: float, y_um: float, radius_um: float, stretch: float = 1.0, turn: float = 0.0) -> Floats:
        dx, dy = self.x_um - x_um, self.y_um - y_um
        cos, sin = math.cos(turn), math.sin(turn)
        return radius_um - np.hypot((dx * cos + dy * sin) / stretch, (dy * cos - dx * sin) * stretch)

    def stroke(self, points_um: Sequence[npt.NDArray[np.float64]], half_um: float, sway: Sequence[Floats]) -> Floats:
        """A line drawn through points, `half_um` to either side, its course moved by `sway`."""
        x, y = self.x_um + sway[0], self.y_um + sway[1]
        nearest = np.full(self.shape, np.inf, np.float32)
        for (ax, ay), (bx, by) in pairwise(points_um):
            length2 = (bx - ax) ** 2 + (by - ay) ** 2
            along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length2, 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
        return np.asarray(half_um - nearest, np.float32)

    def pick(self, where: npt.NDArray[np.bool_], rng: Rng) -> tuple[float, float]:
        """A random point (x, y) in micrometres where the map is true."""
        rows, cols = np.nonzero(where)
        at = int(rng.integers(len(rows)))
        return float(self.x_um[0, cols[at]]), float(self.y_um[rows[at], 0])


def lay_ground(spec: SampleSpec) -> Ground:
    """Nodes 4 to 16 micrometres apart, one beyond the far edges."""
    step_um = min(16.0, max(4.0, max(spec.size) * spec.mpp / 800))
    count_x, count_y = (math.ceil(length * spec.mpp / step_um) + 2 for length in spec.size)
    x, y = (np.arange(count, dtype=np.float32) * np.float32(step_um) for count in (count_x, count_y))
    return Ground(x[None], y[:, None], step_um)


def lay_tissue(ground: Ground, spec: SampleSpec, rng: Rng) -> Floats:
    """Outline of the pieces: wobbly ovals on a loose grid, clear of the slide's edge, with a few tears."""
    width_um, height_um = ground.size_um
    cols = max(1, round(math.sqrt(spec.pieces * width_um / height_um)))
    rows = math.ceil(spec.pieces / cols)
    cell_um = min(width_um / cols, height_um / rows)
    radius_um = math.sqrt(spec.tissue_fraction * width_um * height_um / spec.pieces / math.pi)
    total = np.full(ground.shape, -np.inf, np.float32)
    for piece in range(spec.pieces):
        x = (piece % cols + 0.5) * width_um / cols + rng.normal(0, 0.05) * cell_um
        y = (piece // cols + 0.5) * height_um / rows + rng.normal(0, 0.05) * cell_um
        oval = ground.disc(x, y, radius_um * rng.uniform(0.9, 1.1), rng.uniform(1.0, 1.18), rng.uniform(0, math.pi))
        total = np.maximum(total, oval)
    wobble_um = 0.15 * radius_um * ground.cloud(radius_um * 0.28, rng, octaves=8, gain=0.5)
    rim_um = np.minimum(ground.x_um, width_um - ground.x_um)  # (1, W)
    rim_um = np.minimum(rim_um, np.minimum(ground.y_um, height_um - ground.y_um))  # (H, W)
    total += wobble_um - 4 * np.clip(0.16 * cell_um - rim_um - 0.5 * wobble_um, 0, None)  # clear of the slide's edge
    total -= np.quantile(total, 1 - spec.tissue_fraction)
    course, where = ground.cloud(radius_um * 0.3, rng, 4, 0.4), ground.cloud(radius_um * 0.3, rng, 2)
    tears = 0.3 * radius_um * (np.abs(course) + np.clip(1.3 - where, 0, None)) - min(10.0, 0.01 * radius_um)
    return np.asarray(np.minimum(ground.signed(total), tears), np.float32)


def lay_tumour(ground: Ground, spec: SampleSpec, tissue: Floats, rng: Rng) -> Floats:
    """Outline of the tumour, of exactly the share asked for, with an uneven invasive border."""
    if spec.tumour_fraction <= 0:
        return np.full(ground.shape, -250, np.float32)
    area_um2 = float((tissue > 0).sum()) * ground.step_um**2 * spec.tumour_fraction
    foci = max(1, spec.pieces // 2)
    radius_um = math.sqrt(area_um2 / foci / math.pi)
    deep = ndimage.gaussian_filter((tissue > 0).astype(np.float32), 0.6 * radius_um / ground.step_um)
    total = np.full(ground.shape, -np.inf, np.float32)
    for _ in range(foci):
        x, y = ground.pick(deep >= np.quantile(deep[tissue > 0], 0.93), rng)
        total = np.maximum(total, ground.disc(x, y, radius_um, rng.uniform(1.0, 1.3), rng.uniform(0, math.pi)))
        deep = np.where(np.hypot(ground.x_um - x, ground.y_um - y) < 3 * radius_um, deep * 0.5, deep)
    total += 0.24 * radius_um * ground.cloud(radius_um * 0.4, rng, octaves=8, gain=0.6)
    total -= np.quantile(total[tissue > 0], 1 - spec.tumour_fraction)
    return ground.signed(total)


def lay_quilt(ground: Ground, cell_um: float, gap_um: Floats, rng: Rng) -> list[Floats]:
    """Split the plane into cells of QUILT kinds with gaps between them; each map is positive in its cells."""
    waves = np.stack([ground.cloud(cell_um * 0.4, rng, 3, 0.35) for _ in range(QUILT)])
    best = np.sort(waves, axis=0)
    return [ground.signed(wave - np.where(wave == best[-1], best[-2], best[-1])) - gap_um / 2 for wave in waves]


def top_share(field: Floats, where: npt.NDArray[np.bool_], share: float) -> Floats:
    """Shift a field so that it is positive on this share of a place."""
    return np.asarray(field - np.quantile(field[where], 1 - share), np.float32)


def lay_kinds(ground: Ground, tissue: Floats, tumour: Floats, rng: Rng) -> dict[str, Floats]:
    """Maps of the kinds of tissue, in the order of LAYERS; what no kind covers is stroma."""
    short_um = min(ground.size_um)
    healthy = tissue > 0
    fat = ground.signed(top_share(ground.cloud(min(300, short_um / 6), rng), healthy, 0.13))
    fat = np.minimum.reduce([fat, tissue - 25, -tumour - 10])
    lobes_um = min(700.0, short_um / 3)
    region = ground.signed(top_share(ground.cloud(min(500, short_um / 5), rng), healthy, 0.62))
    gaps = lay_quilt(ground, lobes_um, 45 + 20 * ground.cloud(150, rng, 2), rng)
    bundles = lay_quilt(ground, lobes_um / 2, np.zeros(ground.shape, np.float32), rng)
    maps = {f"stroma-{k}": bundles[k] for k in range(1, QUILT)} | {"fat": fat}
    rim = tissue - 35 - 12 * ground.cloud(80, rng, 2)
    for k, lobe in enumerate(gaps):
        maps[f"glands-{k}"] = np.minimum.reduce([lobe, region, rim, -fat - 15, -tumour - 20])
    nearby = np.exp(-((tumour / 120) ** 2))
    clusters = ground.cloud(55, rng, 3) + 1.3 * nearby + 0.5 * ground.cloud(500, rng, 2) - 3.0 * (fat > 0)
    maps["lymphoid"] = np.minimum(ground.signed(top_share(clusters, healthy, 0.045)), tissue - 15)
    nests = lay_quilt(ground, min(330.0, short_um / 3), 10 + 14 * ground.cloud(120, rng, 3), rng)
    for k, nest in enumerate(nests):
        maps[f"tumour-{k}"] = np.minimum(nest, tumour)
    return {name: field.astype(np.float32) for name, field in maps.items()}


def lay_flaws(ground: Ground, spec: SampleSpec, tissue: Floats, kinds: dict[str, Floats], rng: Rng) -> dict[str, Floats]:
    """Maps of pen, fold, blur and bubble; those not asked for are left out. Fold and blur begin in healthy tissue."""
    short_um = min(ground.size_um)
    tumour = np.maximum.reduce([kinds[f"tumour-{k}"] for k in range(QUILT)])
    interior = np.minimum.reduce([tissue, -tumour, -kinds["fat"]])
    interior = interior >= min(150.0, float(np.quantile(interior, 0.95)))
    sway = [short_um * 0.01 * ground.cloud(short_um * 0.05, rng, 3) for _ in range(2)]
    maps: dict[str, Floats] = {}
    if spec.pen:
        x, y = ground.pick(np.abs(tissue) < ground.step_um, rng)
        along = np.array([math.cos(turn := rng.uniform(0, 2 * math.pi)), math.sin(turn)]) * 0.16 * short_um
        across = np.array([-along[1], along[0]])
        points = [(x, y) + t * along + 0.5 * t * t * across for t in np.linspace(-1, 1, 9)]
        maps["pen"] = ground.stroke(points, min(350.0, 0.03 * short_um), sway)
    if spec.fold:
        x, y = ground.pick(interior, rng)
        along = np.array([math.cos(turn := rng.uniform(0, math.pi)), math.sin(turn)]) * 0.13 * short_um
        points = [(x, y) - along, (x, y) + along]
        maps["fold"] = ground.stroke(points, min(45.0, 0.012 * short_um), sway)
    if spec.blur:
        x, y = ground.pick(interior, rng)
        maps["blur"] = ground.disc(x, y, 0.10 * short_um, 1.3, rng.uniform(0, 3.0)) + 6 * sway[0]
    if spec.bubble:
        x, y = ground.pick(tissue < -min(150.0, -0.8 * float(tissue.min())), rng)
        maps["bubble"] = ground.disc(x, y, rng.uniform(0.05, 0.08) * short_um) + 0.2 * sway[0]
    return {name: field.astype(np.float32) for name, field in maps.items()}


def lay_fields(spec: SampleSpec, rng: Rng) -> Fields:
    ground = lay_ground(spec)
    tissue = lay_tissue(ground, spec, rng)
    tumour = lay_tumour(ground, spec, tissue, rng)
    maps = {"tissue": tissue, "tumour": tumour}
    maps["thickness"] = 1 + 0.07 * ground.cloud(min(ground.size_um) / 8, rng, 5, 0.6)
    kinds = lay_kinds(ground, tissue, tumour, rng)
    return Fields(maps | kinds | lay_flaws(ground, spec, tissue, kinds, rng), ground.step_um / spec.mpp)


# ---------------------------------------------------------------------------------------------------------------------
# Tiles


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


# ---------------------------------------------------------------------------------------------------------------------
# Files


APERIO = "Aperio Image Library v12.0.15 \r\n"


def describe_level(spec: SampleSpec, downsample: int) -> str:
    """ImageDescription of a level, in the words of an Aperio scanner."""
    width, height = spec.size
    power = f"|AppMag = {round(10 / spec.mpp)}|StripeWidth = 2040|ScanScope ID = MADE|Filename = {spec.name}"
    power += f"|MPP = {spec.mpp:.4f}|Left = 25.0|Top = 20.0"
    if downsample == 1:
        return f"{APERIO}{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q={JPEG_QUALITY}{power}"
    smaller = f"{width // downsample}x{height // downsample}"
    return f"{APERIO}{width}x{height} [0,0 {width}x{height}] (256x256) -> {smaller} JPEG/RGB Q={JPEG_QUALITY}{power}"


def draw_label(spec: SampleSpec) -> Image.Image:
    picture = Image.new("RGB", (400, 440), (250, 250, 247))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((12, 12, 387, 427), outline=(30, 30, 30), width=3)
    pen.text((36, 60), spec.name.replace("-", " ").upper(), fill=(20, 20, 20), font=ImageFont.load_default(46))
    pen.text((36, 150), "MADE TISSUE\nNO PATIENT", fill=(20, 20, 20), font=ImageFont.load_default(34))
    return picture


def draw_macro(spec: SampleSpec, slide: Image.Image) -> Image.Image:
    """The glass slide as the overview camera sees it: the label at the left, the tissue at the right."""
    picture = Image.new("RGB", (1200, 440), (226, 226, 224))
    picture.paste(draw_label(spec).resize((364, 400)), (20, 20))
    tissue = slide.copy()
    tissue.thumbnail((720, 380))
    picture.paste(tissue, (440 + (720 - tissue.width) // 2, (440 - tissue.height) // 2))
    return picture


def write_picture(out: tifffile.TiffWriter, picture: Image.Image, description: str, subfiletype: int) -> None:
    """Add a picture as one JPEG strip, as thumbnail, label and macro are kept."""
    pixels = np.asarray(picture)
    out.write(
        iter([encode_jpeg(pixels)]), shape=pixels.shape, dtype=np.uint8, rowsperstrip=pixels.shape[0],
        photometric="ycbcr", compression="jpeg", subsampling=(2, 2), subfiletype=subfiletype,
        description=description, metadata=None, software=False,
    )  # fmt: skip


def write_level(out: tifffile.TiffWriter, scene: Scene, downsample: int, pool: ThreadPoolExecutor) -> None:
    width, height = (length // downsample for length in scene.spec.size)
    out.write(
        encode_level(scene, downsample, pool), shape=(height, width, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
        photometric="ycbcr", compression="jpeg", subsampling=(2, 2),
        description=describe_level(scene.spec, downsample), metadata=None, software=False,
    )  # fmt: skip


def write_slide(path: Path, scene: Scene) -> None:
    """Write the pages in Aperio's order: level 0, thumbnail, the other levels, label, macro."""
    spec, picture = scene.spec, small_picture(scene)
    thumbnail = picture.copy()
    thumbnail.thumbnail((1024, 768))
    first, *others = downsamples(spec)
    bigtiff = spec.size[0] * spec.size[1] > 4e9  # at under a byte a pixel, smaller slides stay below 4 GB
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as out, ThreadPoolExecutor(2) as pool:
        write_level(out, scene, first, pool)
        size = f"{thumbnail.width}x{thumbnail.height}"
        write_picture(out, thumbnail, f"{APERIO}{spec.size[0]}x{spec.size[1]} -> {size} - ", 0)
        for downsample in others:
            write_level(out, scene, downsample, pool)
        label = draw_label(spec)
        macro = draw_macro(spec, picture)
        write_picture(out, label, f"{APERIO}label {label.width}x{label.height}", 1)
        write_picture(out, macro, f"{APERIO}macro {macro.width}x{macro.height}", 9)


def tumour_rings(fields: Fields) -> list[npt.NDArray[np.float64]]:
    """Closed rings (N, 2) xy in level-0 pixels around the tumour and around the holes in it."""
    inside = np.pad(np.minimum(fields.maps["tumour"], fields.maps["tissue"]), 1, constant_values=-250)
    rings = [approximate_polygon(ring[:, ::-1] - 1, 0.2) for ring in find_contours(inside, 0.0)]
    return [ring * fields.step_px for ring in rings if abs(ring_area(ring)) > SPECK_NODES]


def ring_area(ring: npt.NDArray[np.float64]) -> float:
    """Area of a closed ring; positive around tumour, negative around a hole, as find_contours winds them."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def tumour_features(fields: Fields) -> list[dict[str, object]]:
    """GeoJSON features in QuPath's form, one polygon per separate tumour area."""
    rings = sorted(tumour_rings(fields), key=ring_area)
    polygons = [[ring] for ring in rings if ring_area(ring) > 0]
    for hole in (ring for ring in rings if ring_area(ring) < 0):
        home = next((polygon for polygon in polygons if points_in_poly(hole[:1], polygon[0])[0]), None)
        if home is not None:  # its ring may have been too small to keep
            home.append(hole)
    properties = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    return [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [np.round(ring, 1).tolist() for ring in polygon]},
            "properties": properties,
        }
        for polygon in reversed(polygons)  # the largest first
    ]


def make_slide(folder: Path, spec: SampleSpec) -> Path:
    """Write NAME.svs and, beside it, the outlines of its tumour in NAME.geojson; return the slide's path."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = make_scene(spec)
    path = folder / f"{spec.name}.svs"
    outlines = {"type": "FeatureCollection", "features": tumour_features(scene.fields)}
    path.with_suffix(".geojson").write_text(json.dumps(outlines) + "\n")
    write_slide(path, scene)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write made H&E slides (SVS) with the outlines of their tumours.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--slides", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, help="instead: one square slide, this many pixels wide")
    parser.add_argument("--width", type=int, default=7168)
    parser.add_argument("--height", type=int, default=6144)
    parser.add_argument("--mpp", type=float, choices=(0.25, 0.5), help="micrometres per pixel (0.5; with --size 0.25)")
    asked = parser.parse_args()
    if asked.size:
        specs = [large_spec(asked.size, asked.seed, asked.mpp or 0.25)]
    else:
        specs = demo_specs(asked.slides, asked.seed, (asked.width, asked.height), asked.mpp or 0.5)
    for spec in specs:
        path = make_slide(asked.out, spec)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
