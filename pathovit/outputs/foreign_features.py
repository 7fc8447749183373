"""Features that TRIDENT, CLAM, STAMP and AtlasPatch stored, read with suspicion. Units are what their attributes say, and never guessed.

TRIDENT      features, coords in level-0 pixels; patch_size_level0 and magnifications as attributes of coords
CLAM         features, coords in level-0 pixels; tiles only in the .h5 of its `patches` folder; pixel sizes nowhere
STAMP        feats, coords in micrometres; tile_size_um
AtlasPatch   a group `features` of several encoders, coords of five columns; all else as attributes of the file
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.elsewhere import IN_STAMP, IN_TRIDENT, OURS, our_name
from pathovit.errors import SettingsError, StoreError
from pathovit.files import open_patiently
from pathovit.geometry import XY
from pathovit.slides.properties import MPP_RANGE
from pathovit.text import first_line

MOST_TILES, MOST_DIM = 5_000_000, 65_536
MOST_GROWTH = 1000  # of what a file claims to hold, by its size
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # that come with HDF5, and lzf: others are libraries from anywhere
NOMINAL = "nominal magnification"
USUAL_MPP = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the objectives that CLAM's users speak of
MOST, FEW_GAPS = 0.98, 10  # share of gaps; fewer can be anything
LIKE_ASKED = 0.15  # by which tiles may differ from what was asked for: scanners' objectives of 40 are 0.22 to 0.27 um
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class ForeignFeatures:
    """Features of a slide that another program stored."""

    program: str
    encoder: str  # by our name for it, where we have one
    features: NDArray[np.floating[Any]]  # (N, D)
    xy: NDArray[np.int64]  # (N, 2) top-left corners, level-0 pixels
    tile_px: int  # what the encoder was given
    tile_l0: float  # side of a tile, level-0 pixels
    stride_l0: float
    mpp: XY  # um per level-0 pixel
    mpp_source: str
    size: tuple[int, int]  # of level 0; as far as tiles reach, where it is not said
    size_known: bool
    asked_mpp: float | None = (
        None  # um per pixel of a tile, as the encoder's user asked for it; whole level-0 pixels do not give that
    )
    tiles: int | None = None  # of the slide, where only some were taken, for a trial
    remarks: tuple[str, ...] = ()  # what must be said of it

    @property
    def tile_mpp(self) -> float:
        """What was asked for, where it is known: so slides of scanners that differ by a little can be learned from together."""
        found = self.tile_l0 * self.mpp[0] / self.tile_px
        return self.asked_mpp if self.asked_mpp and abs(found / self.asked_mpp - 1) < LIKE_ASKED else found


@dataclass(frozen=True)
class Asked:
    """What a user knows: added to a file that does not say it, and put in the place of what it says."""

    mpp: XY | None = None  # um per level-0 pixel
    mpp_source: str = "option --mpp"
    encoder: str | None = None  # by our name
    patches: Path | None = None  # CLAM's folder of that name


def read_foreign(path: Path, asked: Asked) -> ForeignFeatures:
    """Features of a file.

    Raises
    ------
    StoreError : it is damaged, leads to other files, or claims what cannot be
    SettingsError : something that must be known is in no attribute: the message says how to give it
    """
    try:
        with open_patiently(path) as raw, h5py.File(raw, "r") as file:
            for name in file:
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                    raise StoreError(path, f"its {name} is a link, which is not followed.")
            for program, (fits, read) in PROGRAMS.items():
                if fits(file):
                    opened = _Open(path, file, program, asked)
                    found = read(opened)
                    return replace(found, remarks=tuple(opened.remarks), tiles=opened.tiles())
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, StoreError | SettingsError):
            raise
        raise StoreError(path, f"it cannot be read as HDF5 features ({first_line(error)}). Copy it again.") from error
    raise StoreError(path, "it is of none of the programs that are known: TRIDENT, CLAM, STAMP, AtlasPatch.")


@dataclass(frozen=True)
class _Open:
    """A file that is being read."""

    path: Path
    file: h5py.File
    program: str
    asked: Asked
    remarks: list[str] = field(default_factory=list)

    def array(self, name: str, columns: int | None = None) -> NDArray[Any]:
        """A data set (N, D). Raises StoreError for one that leads elsewhere, is not numbers, or is absurdly large."""
        if not isinstance(self.file.get(name, getlink=True), h5py.HardLink):
            raise StoreError(self.path, f"its {name} is a link, which is not followed.")
        found = self.file[name]
        if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
            raise StoreError(self.path, f"its {name} lies in other files, which are not read.")
        created = found.id.get_create_plist()
        filters = {created.get_filter(index)[0] for index in range(created.get_nfilters())}
        if found.dtype.kind not in "fiu" or not filters <= FILTERS:
            raise StoreError(self.path, f"its {name} is no plain array of numbers ({found.dtype}).")
        shape = found.shape[1:] if len(found.shape) == 3 and found.shape[0] == 1 else found.shape
        if len(shape) != 2 or shape[0] > MOST_TILES or shape[1] > MOST_DIM or (columns and shape[1] != columns):
            raise StoreError(self.path, f"its {name} has the shape {found.shape}, expected (tiles, {columns or 'numbers'}).")
        if found.size * found.dtype.itemsize > MOST_GROWTH * max(self.path.stat().st_size, 4096):
            raise StoreError(
                self.path, f"its {name} claims {found.size:,} numbers, in a file of {self.path.stat().st_size:,} bytes."
            )
        return np.asarray(found[()]).reshape(shape)

    def pair(self, features: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Features (N, D), float16 where they fit into that, and coords (N, 2 or more)."""
        values, coords = self.array(features), self.array("coords")
        if len(values) != len(coords) or coords.shape[1] < 2:
            raise StoreError(self.path, f"{len(values):,} features and {len(coords):,} positions do not belong together.")
        if not len(values):
            raise StoreError(self.path, "it holds no tile.")
        if not np.isfinite(coords).all():
            raise StoreError(self.path, "some of its positions are no numbers.")
        return values, coords

    def tiles(self) -> int | None:
        """Of the slide, as we noted it where only some of them were taken."""
        about = [self.file.attrs, *(one.attrs for one in self.file.values())]
        noted = next((str(attrs["trial"]) for attrs in about if attrs.get("trial")), "")
        found = re.search(r"of ([\d,]+) tiles", noted)
        return int(found[1].replace(",", "")) if found else None

    def mpp(self, attributes: Attributes) -> tuple[XY, str]:
        """um per level-0 pixel, and where that is from: what was given, what is stated, or the objective."""
        stated = self._stated_mpp(attributes)
        found, source = (self.asked.mpp, self.asked.mpp_source) if self.asked.mpp else stated or (None, "")
        if found is None:
            raise SettingsError(
                f"{self.path.name}: {self.program} does not say its pixel size. Give it with --mpp, or a --manifest."
            )
        if not all(MPP_RANGE[0] <= side <= MPP_RANGE[1] for side in found):
            raise StoreError(
                self.path, f"mpp is {found[0]:g} um per pixel ({source}), expected {MPP_RANGE[0]} to {MPP_RANGE[1]:g}."
            )
        if stated and not stated[1].startswith(NOMINAL) and abs(found[0] / stated[0][0] - 1) > 0.01:
            self.remarks.append(f"it says {stated[0][0]:.4g} um per pixel, and {found[0]:.4g} was taken ({source})")
        return found, source

    def _stated_mpp(self, attributes: Attributes) -> tuple[XY, str] | None:
        for x, y in (("mpp_x", "mpp_y"), ("mpp", "mpp")):
            if x in attributes and str(attributes[x]) != "None":
                return (_positive(self, attributes, x), _positive(self, attributes, y)), f"{self.program} ({x})"
        if "level0_magnification" in attributes and float(attributes["level0_magnification"]) > 0:
            power = _positive(self, attributes, "level0_magnification")
            return (10 / power, 10 / power), f"{NOMINAL} ({power:g}x, {self.program})"
        return None

    def encoder(self, said: object, known: dict[str, str], about: Attributes) -> str:
        """Our name for it: what was given, what we noted when we exported it, or what the program says."""
        stated = str(about.get(OURS) or (our_name(str(said), known) if said not in (None, "", b"") else ""))
        if self.asked.encoder and stated and self.asked.encoder != stated:
            self.remarks.append(f"it says that {stated} made it, and {self.asked.encoder} was taken (--encoder)")
        if not (self.asked.encoder or stated):
            raise SettingsError(
                f"{self.path.name}: {self.program} does not say which encoder made it. Give its name with --encoder."
            )
        return self.asked.encoder or stated


def _positive(open: _Open, attributes: Attributes, name: str) -> float:
    try:
        value = float(attributes[name])
    except (KeyError, TypeError, ValueError):
        raise StoreError(open.path, f"its attribute {name} is missing, or no number.") from None
    if not 0 < value < 1e9:
        raise StoreError(open.path, f"its attribute {name} is {value:g}.")
    return value


def _trident(open: _Open) -> ForeignFeatures:
    features, coords = open.pair("features")
    about = open.file["coords"].attrs
    folder = open.path.parent.name
    noted = open.file["features"].attrs
    said = noted.get("encoder") or (folder.removeprefix("features_") if folder.startswith("features_") else "")
    size = tuple(int(about.get(f"level0_{side}", 0)) for side in ("width", "height"))
    return _of_pixels(open, open.encoder(said, IN_TRIDENT, noted), features, coords, about, (size[0], size[1]))


def _of_pixels(
    open: _Open, encoder: str, features: NDArray[Any], coords: NDArray[Any], about: Attributes, size: tuple[int, int]
) -> ForeignFeatures:
    """Of TRIDENT and of AtlasPatch, which say the same."""
    tile_px, overlap = round(_positive(open, about, "patch_size")), float(about.get("overlap", 0))
    mpp, source = open.mpp(about)
    if "patch_size_level0" in about:
        tile_l0 = _positive(open, about, "patch_size_level0")
    else:
        tile_l0 = tile_px * _positive(open, about, "level0_magnification") / _positive(open, about, "target_magnification")
    xy = np.rint(coords[:, :2]).astype(np.int64)
    stride = stride_of(xy, tile_l0 * (1 - overlap / tile_px))
    known = min(size) > 0
    power = float(about.get("target_magnification", 0))
    wanted = float(about.get("target_mpp", 0)) or (10 / power if power > 0 else None)
    return ForeignFeatures(
        open.program, encoder, features, xy, tile_px, tile_l0, stride, mpp, source, size if known else _reach(xy, tile_l0), known,
        wanted,
    )  # fmt: skip


def _clam(open: _Open) -> ForeignFeatures:
    features, coords = open.pair("features")
    about: Attributes = dict(open.file["coords"].attrs)
    if "patch_size" not in about:
        about = _clam_patches(open)
    if open.asked.mpp is None and "mpp_x" not in about:
        raise SettingsError(
            f"{open.path.name}: CLAM stores no pixel size. Give it with --mpp, or the column mpp of a --manifest."
        )
    mpp, source = open.mpp(about)
    level, side = int(about.get("patch_level", 0)), round(_positive(open, about, "patch_size"))
    downsample = np.asarray(about.get("downsample", about.get("custom_downsample", 0 if level else 1)), np.float64).ravel()
    if not downsample.size or downsample[0] < 1:
        raise StoreError(open.path, f"its tiles are of level {level}, and how much smaller that is is not said.")
    tile_l0 = side * float(downsample[0])
    tile_px = round(float(about.get("target_px", side)))  # ours: CLAM's own are pixels of a level
    xy = np.rint(coords[:, :2]).astype(np.int64)
    size = np.asarray(about["level_dim"]).ravel() * downsample[0] if "level_dim" in about else np.zeros(2)
    known = bool(size.min() > 0)
    whole = (round(float(size[0])), round(float(size[1]))) if known else _reach(xy, tile_l0)
    encoder = open.encoder(None, IN_TRIDENT, open.file["features"].attrs)
    asked = (
        float(about["target_mpp"])
        if "target_mpp" in about
        else min(USUAL_MPP, key=lambda usual: abs(tile_l0 * mpp[0] / tile_px / usual - 1))
    )
    return ForeignFeatures(
        "CLAM", encoder, features, xy, tile_px, tile_l0, stride_of(xy, tile_l0), mpp, source, whole, known, asked
    )


def _clam_patches(open: _Open) -> Attributes:
    """Attributes of the tiles, from CLAM's other folder."""
    folders = [open.asked.patches] if open.asked.patches else [one / "patches" for one in open.path.resolve().parents[1:4]]
    for folder in folders:
        found = folder / open.path.name
        if found.is_file():
            with open_patiently(found) as raw, h5py.File(raw, "r") as file:
                return dict(file["coords"].attrs)
    raise SettingsError(
        f"{open.path.name}: it does not say how large its tiles are. CLAM notes that in its folder `patches`: give that with --patches."
    )


def _stamp(open: _Open) -> ForeignFeatures:
    """Its frame is that of the tiles: how many pixels of the slide a micrometre has is not said, and not needed."""
    features, coords = open.pair("feats")
    about = open.file.attrs
    if "tile_size_um" in about:
        tile_um = _positive(open, about, "tile_size_um")
    elif str(about.get("unit", "")) == "um" and "tile_size" in about:
        tile_um = _positive(open, about, "tile_size")
    else:
        raise StoreError(open.path, "it says no micrometres: it is of STAMP before version 2. Extract it again with a later one.")
    if "tile_size_px" not in about:
        raise StoreError(
            open.path, "it does not say how many pixels a tile had (tile_size_px). Extract it again with STAMP 2.1 or later."
        )
    tile_px = round(_positive(open, about, "tile_size_px"))
    mpp = tile_um / tile_px
    xy = np.rint(coords[:, :2] / mpp).astype(np.int64)
    encoder = open.encoder(about.get("extractor", ""), IN_STAMP, about)
    source = "STAMP (tile_size_um by tile_size_px: pixels of tiles, not of the slide)"
    return ForeignFeatures(
        "STAMP", encoder, features, xy, tile_px, tile_px, stride_of(xy, tile_px), (mpp, mpp), source, _reach(xy, tile_px), False,
        float(about["target_mpp"]) if "target_mpp" in about else None,
    )  # fmt: skip


def _atlaspatch(open: _Open) -> ForeignFeatures:
    names = sorted(open.file["features"].keys())
    wanted = open.asked.encoder
    if wanted is None and len(names) == 1:
        wanted = names[0]
    theirs = next((name for name in names if wanted in (our_name(name, IN_TRIDENT), name)), None)
    if theirs is None:
        raise SettingsError(f"{open.path.name}: it holds features of {', '.join(names)}. Say which with --encoder.")
    features, coords = open.pair(f"features/{theirs}")
    return _of_pixels(open, our_name(theirs, IN_TRIDENT), features, coords, open.file.attrs, (0, 0))


def stride_of(xy: NDArray[np.int64], otherwise: float) -> float:
    """Distance of neighbouring tiles: the most frequent gap within rows and columns; `otherwise`, where no two are in one, or all gaps are multiples of it: tiles are missing between them."""
    gaps = []
    for axis in (0, 1):
        order = np.lexsort((xy[:, axis], xy[:, 1 - axis]))
        step, same = np.diff(xy[order, axis]), np.diff(xy[order, 1 - axis]) == 0
        gaps.append(step[same & (step > 0)])
    found = np.concatenate(gaps)
    if not found.size:
        return otherwise
    times = np.maximum(np.rint(found / otherwise), 1)
    if (np.abs(found - times * otherwise) <= 1 + times / 2).mean() > MOST:  # corners are rounded, and sides of tiles
        room = times.min()  # a grid with room between its tiles has gaps of two, four and six sides, and none of one or three
        apart = room if len(found) >= FEW_GAPS and (times % room == 0).mean() > MOST else 1
        return float(found.sum() / times.sum() * apart)
    values, counts = np.unique(found, return_counts=True)
    return float(values[counts.argmax()])


def _reach(xy: NDArray[np.int64], tile_l0: float) -> tuple[int, int]:
    width, height = (xy.max(0) + int(np.ceil(tile_l0))).tolist()
    return width, height


PROGRAMS: dict[str, tuple[Callable[[h5py.File], bool], Callable[[_Open], ForeignFeatures]]] = {
    "AtlasPatch": (lambda file: isinstance(file.get("features"), h5py.Group), _atlaspatch),
    "STAMP": (lambda file: "feats" in file, _stamp),
    "TRIDENT": (
        lambda file: "features" in file and "coords" in file and "target_magnification" in file["coords"].attrs,
        _trident,
    ),
    "CLAM": (lambda file: "features" in file and "coords" in file, _clam),
}
