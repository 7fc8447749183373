"""SlideFeatures: one vector per tile, with the tiles it came from; the verdict on every tile."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.geometry import XY


class Verdict(IntEnum):
    """What became of a tile; only `OK` tiles are ever embedded."""

    OK = 0
    MISSING = 1  # the scanner left it empty
    UNREADABLE = 2  # the file is damaged here
    REJECTED = 3  # read, but not fit to be judged
    PENDING = 255  # not read yet


@dataclass(frozen=True)
class SlideFeatures:
    """Features of a slide, in grid order. Rows whose verdict is not OK hold NaN."""

    slide_id: str
    features: NDArray[np.float16]  # (N, D)
    xy: NDArray[np.int64]  # (N, 2) top-left corners, level-0 pixels
    coverage: NDArray[np.float32]  # (N,)
    verdict: NDArray[np.uint8]  # (N,) of Verdict
    attributes: dict[str, Any]  # recipe, mpp_x, mpp_y, mpp_source, tile_px, tile_l0, level0_size, bounds

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.asarray(self.verdict == Verdict.OK)

    @property
    def mpp(self) -> XY:
        return self.attributes["mpp_x"], self.attributes["mpp_y"]

    @property
    def tile_l0(self) -> XY:
        return tuple(self.attributes["tile_l0"])

    def centres_um(self) -> NDArray[np.float64]:
        """(N, 2) tile centres in micrometres from the slide's level-0 corner."""
        centres: NDArray[np.float64] = (self.xy + np.asarray(self.tile_l0) / 2) * np.asarray(self.mpp)
        return centres

    @property
    def pitch_um(self) -> float:
        """True distance of neighbouring tiles in micrometres: of the tiles as they lie, not as they were asked for.

        The smaller of the two axes, so that no two tiles ever round to one place.
        """
        return float(min(s * m for s, m in zip(self.attributes["stride_l0"], self.mpp, strict=True)))

    @property
    def trial(self) -> str:
        """What to say of features that were made of a part of the tiles only; nothing for whole ones."""
        kept, total = len(self.verdict), self.attributes["total_tiles"]
        return trial_of(kept, total) if total > kept else ""

    def shaping(self) -> dict[str, Any]:
        """What shaped the tiles and features, and must be shared by all that are learned from together."""
        recipe = self.attributes["recipe"]
        tiles = {key: value for key, value in recipe["tiles"].items() if key != "max_upsampling"}  # allows, and shapes nothing
        return {
            **{key: recipe[key] for key in ("encoder", "tissue", "steps") if key in recipe},
            "tiles": tiles,
        }

    @property
    def cap(self) -> int | None:
        """At most so many tiles were taken, where that left some out."""
        return int(self.attributes["recipe"]["embed"]["max_tiles"]) if self.trial else None


def trial_of(kept: int, total: int) -> str:
    """What to say of a slide of which only some tiles were taken."""
    return f"a trial on {kept:,} of {total:,} tiles (--max-tiles)"


def differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "", there: str = "there", here: str = "now") -> list[str]:
    """Keys whose values differ, with both values and where they are from."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing(a, b, f"{prefix}{key}.", there, here)
        elif a != b:
            found.append(f"{prefix}{key}: {a} {there}, {b} {here}")
    return found
