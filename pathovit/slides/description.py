"""What a slide is, and what was found on it: records that plan, output folder and pictures share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pathovit.geometry import XY


@dataclass(frozen=True)
class SlideDescription:
    """What a slide file says of itself, and where that is from."""

    file: str  # its name, without the folder; empty where names are not kept
    vendor: str
    size: tuple[int, int]  # width, height of level 0
    mpp: XY  # um per pixel of level 0
    mpp_source: str  # "metadata (openslide.mpp-x)", "option --mpp", "manifest"
    reader: str  # "direct" or "device": compressed tiles, with OpenSlide behind them; "openslide"; "flat image"


@dataclass(frozen=True)
class Survey:
    """What was found on a slide: its tissue, and the tiles that were laid on it."""

    tissue_mm2: float
    tiles: int
    upsampled: float = 1.0  # 1, or by how much the slide is coarser than the tiles asked for
    left_out_mm2: Mapping[str, float] = field(default_factory=dict)  # taken for no tissue although it is not glass, by reason
    remarks: tuple[str, ...] = ()  # what must be said of the file and its glass
