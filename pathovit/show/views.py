"""Views: pictures of the scanned parts of a slide, which maps are drawn over; and what every pixel of an overview is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit.files import open_patiently, write_atomically
from pathovit.geometry import XY, Box
from pathovit.outputs.records import ViewFile
from pathovit.slides.overview import small_picture
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide
from pathovit.slides.tissue import KINDS

JOINED_PX, MOST_PARTS, APART = 25, 6, 0.5  # scanned parts nearer than this are one; how many are drawn, and how little they fill


@dataclass(frozen=True)
class Kinds:
    """What every pixel of the overview is, uint8 (H, W) of `tissue.KINDS`, and the level-0 pixels under one."""

    what: NDArray[np.uint8]
    downsample: XY

    def left_out(self) -> NDArray[np.bool_]:
        """Bool (H, W): neither glass nor tissue, and yet scanned."""
        return np.asarray(np.isin(self.what, [KINDS.index(name) for name in ("ink", "one flat colour", "grey")]))


@dataclass(frozen=True)
class View:
    """A picture of a part of the slide, (H, W, 3), and the level-0 pixels that it covers: left, right, bottom, top."""

    picture: RGB
    extent: tuple[float, float, float, float]


def save_views(folder: Path, views: Sequence[View]) -> tuple[ViewFile, ...]:
    """Keep views beside the features: other models are drawn over them, without the slide."""
    kept = []
    for number, view in enumerate(views, start=1):
        buffer = io.BytesIO()
        Image.fromarray(view.picture).save(buffer, "JPEG", quality=90)
        name = f"views/{number:02d}.jpg"
        write_atomically(folder / name, buffer.getvalue())
        kept.append(ViewFile(name, view.extent))
    return tuple(kept)


def load_views(folder: Path, files: Sequence[ViewFile]) -> list[View]:
    """The other way; none, if one of them is missing or damaged."""
    found = []
    for view in files:
        try:
            with open_patiently(folder / view.file) as file, Image.open(file) as image:
                found.append(View(np.asarray(image.convert("RGB")), view.extent))
        except OSError:
            return []
    return found


def scanned_parts(slide: Slide, kinds: Kinds) -> list[Box]:
    """What to show of a slide: all that was scanned; where that is a few parts with nothing between them, each of them."""
    whole = slide.bounds
    scanned = (kinds.what != KINDS.index("never scanned")).view(np.uint8)
    if scanned.all():
        return [whole]
    near = cv2.dilate(scanned, np.ones((JOINED_PX, JOINED_PX), np.uint8))
    count, labels = cv2.connectedComponents(near)
    boxes = []
    for label in range(1, count) if count <= MOST_PARTS + 1 else ():
        rows, columns = np.nonzero((labels == label) & (scanned > 0))
        x0, y0 = columns.min() * kinds.downsample[0], rows.min() * kinds.downsample[1]
        x1, y1 = (columns.max() + 1) * kinds.downsample[0], (rows.max() + 1) * kinds.downsample[1]
        boxes.append(Box(int(x0), int(y0), ceil(x1 - x0), ceil(y1 - y0)))
    shown = sum(box.width * box.height for box in boxes)
    return boxes if len(boxes) > 1 and shown < APART * whole.width * whole.height else [whole]


def thumbnail(slide: Slide, box: Box, longer_px: int) -> View:
    """A part of the slide at about `longer_px` on its longer side."""
    return View(*small_picture(slide, box, longer_px))
