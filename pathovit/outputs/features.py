"""SlideFeatures: one vector per tile, with the tiles it came from; the verdict on every tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.geometry import XY, Box
from pathovit.outputs.recipe import EmbedRecipe, Values
from pathovit.slides.slide import Slide
from pathovit.slides.tiling import TileGrid
from pathovit.text import as_card

if TYPE_CHECKING:
    from anndata import AnnData


class TileVerdict(IntEnum):
    """What became of a tile; only `OK` tiles are ever embedded.

    Examples
    --------
    >>> int((pathovit.load_features(out, "one").verdict == pathovit.TileVerdict.OK).sum())
    95
    """

    OK = 0
    MISSING = 1  # the scanner left it empty
    UNREADABLE = 2  # the file is damaged here
    REJECTED = 3  # read, but not fit to be judged
    PENDING = 255  # not read yet


@dataclass(frozen=True)
class FeatureAttributes:
    """What the attributes of features.zarr say beside the grid."""

    mpp: XY  # um per level-0 pixel
    mpp_source: str
    level0_size: tuple[int, int]
    bounds: Box  # the part that was scanned, level-0 pixels
    has_bounds: bool  # the file states them, so QuPath crops to them
    device: str
    recipe: EmbedRecipe
    tissue_downsample: XY  # level-0 pixels per pixel of the tissue array

    @classmethod
    def of_slide(cls, slide: Slide, device: str, recipe: EmbedRecipe, tissue_downsample: XY) -> FeatureAttributes:
        return cls(
            slide.mpp, slide.mpp_source, slide.size, slide.bounds, slide.has_bounds, device, recipe, tissue_downsample
        )  # fmt: skip

    def to_attributes(self, slide_id: str) -> dict[str, Any]:
        """As they lie in zarr.json, less those of the grid."""
        bounds = self.bounds
        return {
            "pathovit": RESEARCH_USE,
            "slide_id": slide_id,
            "mpp_x": self.mpp[0],
            "mpp_y": self.mpp[1],
            "mpp_source": self.mpp_source,
            "level0_size": list(self.level0_size),
            "bounds": [bounds.x, bounds.y, bounds.width, bounds.height],
            "has_bounds": self.has_bounds,
            "unit": "level-0 pixels, top-left",
            "device": self.device,
            "recipe": self.recipe.to_json(),
            "tissue_downsample": list(self.tissue_downsample),
        }

    @classmethod
    def from_attributes(cls, found: Mapping[str, Any]) -> FeatureAttributes:
        width, height = found["level0_size"]
        x, y = found["tissue_downsample"]
        return cls(
            (found["mpp_x"], found["mpp_y"]), found["mpp_source"], (width, height), Box(*found["bounds"]), found["has_bounds"],
            found["device"], EmbedRecipe(dict(found["recipe"])), (x, y),
        )  # fmt: skip


@dataclass(frozen=True)
class SlideFeatures:
    """Features of a slide, in grid order. Rows whose verdict is not OK hold NaN.

    Examples
    --------
    >>> features = pathovit.load_features(out, "one")
    >>> features.features.shape, features.centres_um().shape, features.pitch_um
    ((95, 256), (95, 2), 96.0)
    """

    slide_id: str
    grid: TileGrid
    features: NDArray[np.floating[Any]]  # (N, D); float16, or float32 where the encoder's are too large for that
    verdict: NDArray[np.uint8]  # (N,) of TileVerdict
    attributes: FeatureAttributes

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.asarray(self.verdict == TileVerdict.OK)

    @property
    def unread(self) -> NDArray[np.bool_]:
        """(N,) tissue that is empty in the file, or damaged."""
        return np.asarray(np.isin(self.verdict, (TileVerdict.MISSING, TileVerdict.UNREADABLE)))

    @property
    def recipe(self) -> EmbedRecipe:
        return self.attributes.recipe

    @property
    def mpp(self) -> XY:
        return self.attributes.mpp

    @property
    def xy(self) -> NDArray[np.int64]:
        """(N, 2) top-left corners, level-0 pixels."""
        return self.grid.xy

    @property
    def coverage(self) -> NDArray[np.float32]:
        """(N,) share of each tile on tissue."""
        return self.grid.coverage

    @property
    def tile_l0(self) -> XY:
        return self.grid.tile_l0

    def centres_um(self) -> NDArray[np.float64]:
        """(N, 2) tile centres in micrometres from the slide's level-0 corner."""
        centres: NDArray[np.float64] = self.centres_l0() * np.asarray(self.mpp)
        return centres

    def centres_l0(self) -> NDArray[np.float64]:
        """(N, 2) tile centres, level-0 pixels."""
        centres: NDArray[np.float64] = self.xy + np.asarray(self.tile_l0) / 2
        return centres

    @property
    def pitch_um(self) -> float:
        """True distance of neighbouring tiles in micrometres: of the tiles as they lie, not as they were asked for.

        The smaller of the two axes, so that no two tiles ever round to one place.
        """
        return float(min(s * m for s, m in zip(self.grid.stride_l0, self.mpp, strict=True)))

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Tiles as columns (N,), in grid order: level-0 pixels of the top-left corner, micrometres of the centre, places on the lattice."""
        centres, lattice, tiles = self.centres_um(), self.grid.lattice(), len(self.xy)
        return {
            "tile": np.arange(tiles),
            "x": self.xy[:, 0],
            "y": self.xy[:, 1],
            "width": np.full(tiles, round(self.tile_l0[0])),
            "height": np.full(tiles, round(self.tile_l0[1])),
            "column": lattice[:, 0],
            "row": lattice[:, 1],
            "centre_x_um": centres[:, 0].round(3),
            "centre_y_um": centres[:, 1].round(3),
            "coverage": self.coverage,
            "verdict": np.asarray([TileVerdict(one).name.lower() for one in self.verdict.tolist()]),
        }

    def to_anndata(self, measured: Mapping[str, NDArray[np.float32]] | None = None) -> AnnData:
        """For scanpy and squidpy: the tiles that were read, features as `X`, `columns()` as `obs`, centres in micrometres as `obsm["spatial"]`.

        Parameters
        ----------
        measured : further columns (N,), by name

        Raises
        ------
        SettingsError : anndata is not installed

        Examples
        --------
        >>> pathovit.load_features(out, "one").to_anndata().obsm["spatial"].shape
        (95, 2)
        """
        try:
            import anndata
            import pandas as pd
        except ImportError as error:
            raise SettingsError('anndata is not installed. pip install "pathovit[anndata]"') from error
        read = np.flatnonzero(self.ok)
        obs = pd.DataFrame({**self.columns(), **(measured or {})}).iloc[read]
        obs.index = obs["tile"].astype(str).to_numpy()
        made = anndata.AnnData(self.features[read].astype(np.float32), obs=obs, obsm={"spatial": self.centres_um()[read]})
        made.uns["pathovit"] = {
            "research_use": RESEARCH_USE,
            "slide_id": self.slide_id,
            "mpp": np.asarray(self.mpp),
            "mpp_source": self.attributes.mpp_source,
            "level0_size": np.asarray(self.attributes.level0_size),
            "encoder": str(self.recipe.encoder["encoder"]),
            "weights_sha256": str(self.recipe.encoder["weights_sha256"]),
            "tiles_not_read": len(self.verdict) - len(read),
            "trial": self.trial,
        }
        return made

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        spec, lattice = self.grid.spec, self.grid.lattice()
        column, row = (lattice - lattice.min(0)).T
        picture = np.full((row.max() + 1, column.max() + 1, 3), 255, np.uint8)
        picture[row, column] = np.where(self.ok[:, None], (90, 90, 90), (200, 30, 30))
        times = max(1, 200 // max(picture.shape))
        shown = Image.fromarray(picture).resize((picture.shape[1] * times, picture.shape[0] * times), Image.Resampling.NEAREST)
        unread = int(self.unread.sum())
        rows = {
            "slide": self.slide_id,
            "features": f"{len(self.verdict):,} tiles x {self.features.shape[1]:,}, {self.features.dtype}",
            "encoder": str(self.recipe.encoder["encoder"]),
            "tiles": f"{spec.tile_px} px at {spec.mpp:g} µm",
            "pixel size": f"{self.mpp[0]:.4g} µm ({self.attributes.mpp_source})",
            "not read": f"{unread:,} (red)" if unread else "none",
        }
        return as_card(rows | ({"trial": self.trial} if self.trial else {}), shown)

    @property
    def trial(self) -> str:
        """What to say of features that were made of a part of the tiles only; nothing for whole ones."""
        kept, total = len(self.verdict), self.grid.total
        return trial_of(kept, total) if total > kept else ""

    def shaping(self) -> Values:
        """What shaped the tiles and features, and must be shared by all that are learned from together."""
        return self.recipe.shaping()

    @property
    def cap(self) -> int | None:
        """At most so many tiles were taken, where that left some out."""
        return self.recipe.max_tiles if self.trial else None


def trial_of(kept: int, total: int) -> str:
    """What to say of a slide of which only some tiles were taken."""
    return f"a trial on {kept:,} of {total:,} tiles (--max-tiles)"
