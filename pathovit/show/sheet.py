"""A white sheet with pictures, words and lines: put together from arrays, because a layout engine takes a second for each slide."""

from __future__ import annotations

import importlib.util
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pathovit import RESEARCH_USE
from pathovit.files import write_atomically
from pathovit.show.views import View
from pathovit.slides.readers import RGB

FONT = "DejaVuSans.ttf"  # comes with matplotlib
BLACK, WHITE, DARK = (0, 0, 0), (255, 255, 255), (38, 38, 38)
SHIFT = 4  # bits of a pixel's fraction, as cv2 draws
Points = NDArray[np.float64]


@cache
def font_file() -> str:
    """Where the font lies; matplotlib itself is not loaded for that."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf", FONT))


@cache
def font(px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(), px)


@cache
def _characters() -> Any:
    from matplotlib.ft2font import FT2Font

    return FT2Font(font_file())


def drawable(text: str, instead: str) -> str:
    """The text, if the font has all of its characters; else what can stand for it. A row of boxes names nothing."""
    if text.isascii() or all(_characters().get_char_index(ord(c)) for c in text if not c.isspace()):
        return text
    return instead


def wrapped(text: str, px: int, width: int) -> list[str]:
    """Lines no wider than `width` pixels in letters of `px`; a word that is too long by itself is cut. Line breaks are spaces."""
    lines: list[str] = []
    for word in re.sub(r"[^\S ]+", " ", text).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(px).getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font(px).getlength(word) > width and len(word) > 1:
            fits = max(1, int(len(word) * width / font(px).getlength(word)))
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines


@dataclass(frozen=True)
class Panel:
    """A view on the sheet, as large as it is shown."""

    view: View
    left: int
    top: int

    @property
    def width(self) -> int:
        return int(self.view.picture.shape[1])

    @property
    def height(self) -> int:
        return int(self.view.picture.shape[0])

    def at(self, l0: Points) -> Points:
        """Where level-0 pixels (n, 2) lie in the panel's picture."""
        left, right, bottom, top = self.view.extent
        scale = np.array([self.width / (right - left), self.height / (bottom - top)])
        return np.asarray((np.asarray(l0, np.float64) - (left, top)) * scale)


def shown_at(view: View, height: int) -> View:
    """The view, so many pixels high."""
    size = max(1, round(height * view.picture.shape[1] / view.picture.shape[0])), height
    method = cv2.INTER_AREA if height < view.picture.shape[0] else cv2.INTER_LINEAR
    return View(np.asarray(cv2.resize(view.picture, size, interpolation=method)), view.extent)


def draw_lines(picture: RGB, lines: Sequence[Points], colour: tuple[int, int, int], width: int, closed: bool = True) -> None:
    """Lines through points (n, 2), in pixels of the picture; drawn into it."""
    points = [np.round((line - 0.5) * 2**SHIFT).astype(np.int32).reshape(-1, 1, 2) for line in lines]
    cv2.polylines(picture, points, closed, colour, width, cv2.LINE_AA, SHIFT)


def draw_text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, px: int, anchor: str = "lt", halo: int = 0,
    colour: tuple[int, int, int] = BLACK,
) -> None:  # fmt: skip
    """Text, with a white edge of `halo` pixels where it lies on a picture."""
    draw.text(at, text, fill=colour, font=font(px), anchor=anchor, stroke_width=halo, stroke_fill=WHITE)


def draw_upwards(sheet: Image.Image, at: tuple[int, int], text: str, px: int) -> None:
    """Text that runs upwards, with its middle at a place of its left edge."""
    box = font(px).getbbox(text)
    drawn = Image.new("RGB", (int(box[2]) + 2, int(box[3]) + 2), WHITE)
    ImageDraw.Draw(drawn).text((0, 0), text, fill=BLACK, font=font(px))
    turned = drawn.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(turned, (at[0], max(0, at[1] - turned.height // 2)))


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Put it in place as PNG, whole."""
    write_atomically(path, to_png(np.asarray(sheet), {"Software": "pathovit", "Comment": RESEARCH_USE}))


def to_png(picture: RGB, words: Mapping[str, str]) -> bytes:
    """A PNG file: each row as what differs from the one above, packed by libdeflate; a quarter of the time that libpng takes."""
    height, width = picture.shape[:2]
    flat = picture.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 2  # the filter that is called "up"
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits of red, green and blue
    said = [(b"tEXt", f"{name}\0{text}".encode("latin-1")) for name, text in words.items()]
    packed = imagecodecs.deflate_encode(rows.tobytes(), level=1)
    chunks = [(b"IHDR", head), *said, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )
