"""What a slide is read from: OpenSlide, its own compressed tiles, or a flat image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]  # (H, W, 3)
CUT_OFF = re.compile(
    r"truncated|premature|unexpected end|broken png|no more data|end of file", re.IGNORECASE
)  # decoders, of such files


class PixelSource(Protocol):
    """Levels of pixels, with what was never scanned left transparent."""

    sizes: list[tuple[int, int]]

    def read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        """RGBA (H, W, 4), straight alpha; beyond the edge alpha is 0. Raises TileReadError."""

    def close(self) -> None: ...


def composite(rgba: NDArray[np.uint8], background: tuple[int, int, int]) -> tuple[RGB, NDArray[np.bool_] | None]:
    """Lay RGBA (H, W, 4) on a colour: uint8 (H, W, 3); and bool (H, W), where it is not fully transparent, or None if it is nowhere."""
    alpha = rgba[..., 3]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3]), None
    rgb, part = np.array(rgba[..., :3]), (alpha > 0) & (alpha < 255)
    rgb[alpha == 0] = background
    if part.any():  # floats of these pixels alone
        weight = alpha[part, None].astype(np.float32) / 255
        mixed = rgba[part][:, :3] * weight + np.asarray(background, np.float32) * (1 - weight)
        rgb[part] = (mixed + 0.5).astype(np.uint8)
    return rgb, alpha > 0


def without_path(error: BaseException, path: Path) -> str:
    """The error's text without the folder it names: reports travel, and folders can name patients."""
    return str(error).replace(str(path), path.name).strip() or type(error).__name__


def average(rgb: RGB, size: tuple[int, int]) -> RGB:
    """To (width, height), which divide those of the image: every pixel the mean of those it stands for."""
    if size == (rgb.shape[1], rgb.shape[0]):
        return rgb
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
