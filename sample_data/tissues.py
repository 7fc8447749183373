"""A library of a few square, seamless patches of tissue (stroma, glands, tumour ...), drawn cell by cell at level 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from .fields import Box
from .noise import smooth_noise
from .spec import MARGIN_PX, TILE_PX, Floats, Pixels, Rng, SampleSpec, downsamples

WRAP_PX = TILE_PX + 2 * MARGIN_PX  # how far each patch repeats itself, so that every crop is one slice
ROUGH_UM = 3.0  # how far fine roughness moves a drawn border from its field
LENS_UM = 0.2  # sigma of the blur of a scanner in focus
ROOT_STEPS = 128  # of the root of density, so that uint8 holds densities up to 4


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
