"""Where everything lies: coarse maps in micrometres, positive inside, of the tissue, each kind of it and each flaw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .noise import cloud_noise
from .spec import QUILT, Floats, Rng, SampleSpec


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
