"""What a slide file says of itself, and whether that can be: pixel size, scanned part, background."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import cast

from pathovit.errors import ResolutionError, SettingsError
from pathovit.geometry import XY, Box
from pathovit.reasons import Code

MPP_RANGE = (0.05, 50.0)  # um per pixel; outside it the metadata is wrong
LARGEST_MM = 300.0  # of a slide's side; whole mounts are 150 x 200 mm


def find_mpp(path: Path, mpp: float | XY | None, mpp_source: str, properties: dict[str, str]) -> tuple[XY, str]:
    if mpp is not None:
        pixel_size = two_numbers(mpp)
        origin, remedy = mpp_source, f"Correct it ({mpp_source})."
    else:
        x, y = properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
        if not x or not y:
            raise ResolutionError(
                path,
                "no pixel size (openslide.mpp-x is missing). Give it with --mpp, or in the mpp column of a --manifest.",
                Code.NO_MPP,
            )
        try:
            pixel_size = (float(x), float(y))
        except ValueError:
            raise ResolutionError(path, f"its pixel size is {x!r}, not a number. Give it with --mpp.") from None
        origin, remedy = "metadata (openslide.mpp-x)", "Its metadata is wrong; give the true value with --mpp."
    for value in pixel_size:
        if not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
            raise ResolutionError(path, f"mpp is {value:g} um per pixel, expected {MPP_RANGE[0]} to {MPP_RANGE[1]:g}. {remedy}")
    if not 0.5 <= pixel_size[0] / pixel_size[1] <= 2:
        raise ResolutionError(
            path, f"mpp is {pixel_size[0]:g} by {pixel_size[1]:g}: pixels that far from square are an error. {remedy}"
        )
    return pixel_size, origin


def two_numbers(mpp: float | XY) -> XY:
    """um per pixel on both axes. Raises SettingsError for anything but a number or two; text would be taken apart."""
    try:
        x, y = (mpp, mpp) if isinstance(mpp, Real) else cast("XY", () if isinstance(mpp, str | bytes) else mpp)
        return float(x), float(y)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"mpp is {mpp!r}, expected a number, or two: um per pixel.") from error


def find_bounds(properties: dict[str, str], size: tuple[int, int]) -> tuple[Box, bool]:
    names = [f"openslide.bounds-{side}" for side in ("x", "y", "width", "height")]
    if not all(name in properties for name in names):
        return Box(0, 0, *size), False
    x, y, width, height = (int(properties[name]) for name in names)
    return Box(x, y, min(width, size[0] - x), min(height, size[1] - y)), True


def find_background(properties: dict[str, str]) -> tuple[int, int, int]:
    colour = properties.get("openslide.background-color", "ffffff")
    return int(colour[0:2], 16), int(colour[2:4], 16), int(colour[4:6], 16)


def refuse_huge(path: Path, size: tuple[int, int], mpp: XY) -> None:
    """No glass is that large: the pixel size must be wrong. Found out before anything is read, or room made for it."""
    side_mm = max(side * um / 1000 for side, um in zip(size, mpp, strict=True))
    if side_mm > LARGEST_MM:
        raise ResolutionError(
            path,
            f"at {max(mpp):g} um per pixel its {size[0]:,} x {size[1]:,} pixels would be {side_mm:,.0f} mm wide, and slides are 76 mm. "
            "Give the true pixel size with --mpp (about 0.25 for a scan at 40x, 0.5 at 20x).",
        )
