"""Tiles with labels, as pictures: a table of files, or a folder with a folder for each class."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathovit.errors import SettingsError, SlideOpenError
from pathovit.files import FLAT_SUFFIXES, open_patiently
from pathovit.manifest import one_spelling, read_manifest, some
from pathovit.slides.readers import RGB
from pathovit.tables import NO_VALUE, Say, spelling
from pathovit.text import counted

PICTURES = (*FLAT_SUFFIXES, ".tif", ".tiff", ".bmp")
READERS = 4
TORN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)  # what Pillow raises for damaged files


@dataclass(frozen=True)
class LabelledTiles:
    """Tiles with a class each, and whose they are, as far as that is known."""

    classes: tuple[str, ...]  # names, sorted
    truth: NDArray[np.int64]  # (n,) places in `classes`
    groups: NDArray[np.int64]  # (n,) the patient of each; where patients are not known its slide, or a number of its own
    unit: str  # that groups are: patient, slide, tile
    pixels: Callable[[int, float], RGB]  # (n, side, side, 3) of all, for a side in pixels and um per pixel

    def __len__(self) -> int:
        return len(self.truth)


def find_tiles(given: Path, label: str, say: Say) -> LabelledTiles:
    """The tiles of a table (columns of file, label and, if known, patient), or of a folder of folders.

    Raises
    ------
    SettingsError : no tiles, no labels, one class alone, a file that is not there
    """
    found: list[tuple[Path, str, str | None]]
    if given.is_dir():
        found = [
            (path, folder.name, None)
            for folder in sorted(given.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
            for path in pictures_in(folder)
        ]
        if not found:
            raise SettingsError(
                f"{given}: there is no picture in its folders. Give a folder with a folder for each class, or a table of files and labels."
            )
    else:
        found = _of_table(given, label, say)
    same = one_spelling(name for _, name, _ in found)
    names = [same[spelling(name)] for _, name, _ in found]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise SettingsError(f"{given}: all tiles are {classes[0]!r}. Two classes at least are needed.")
    patients = [patient for _, _, patient in found]
    by_patient = any(patients)
    if not by_patient:
        say("patients are not known: tiles of one may lie on both sides, which flatters every encoder; give a column `patient`")
    whose = [
        patient or f"\0{place}" for place, patient in enumerate(patients)
    ]  # a tile of nobody known is of a patient of its own
    groups = np.unique(whose, return_inverse=True)[1]
    truth = np.array([classes.index(name) for name in names])
    paths = [path for path, _, _ in found]
    return LabelledTiles(
        classes, truth, groups, "patient" if by_patient else "tile", lambda side, mpp: read_pictures(paths, side, say)
    )


def pictures_in(folder: Path) -> list[Path]:
    """Files that are pictures, in a folder and those in it, sorted."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _of_table(given: Path, label: str, say: Say) -> list[tuple[Path, str, str | None]]:
    found, absent, moved, without = [], [], 0, 0
    for row in read_manifest(given, say, [label]):
        name = row.label(label)
        if not name or name.casefold() in NO_VALUE:
            without += 1
            continue
        path = _existing(row.slide, given.parent)
        if path is None:
            absent.append(str(row.slide))
            continue
        moved += path != row.slide
        found.append((path, name, row.patient))
    if absent:
        raise SettingsError(
            f"{given}: {counted(len(absent), 'file')} that it names {'is' if len(absent) == 1 else 'are'} not there: {some(absent)}. Correct the paths."
        )
    if not found:
        raise SettingsError(f"{given}: no tile has a value in column {label!r}. Name another one with --label.")
    if moved:
        say(f"{counted(moved, 'file')} found beside {given.name} under the end of the path that it gives")
    if without:
        say(f"{counted(without, 'tile')} without a label left out")
    return found


def _existing(path: Path, base: Path) -> Path | None:
    """The file; or, of a table that was moved, the one under the end of its path."""
    if path.is_file():
        return path
    parts = path.relative_to(base).parts if path.is_relative_to(base) else path.parts
    return next(
        (base.joinpath(*parts[first:]) for first in range(1, len(parts)) if base.joinpath(*parts[first:]).is_file()), None
    )


def read_pictures(paths: Sequence[Path], side: int, say: Say) -> RGB:
    """Pictures (n, side, side, 3), resized by an antialiased bilinear filter where they are of another size.

    Raises
    ------
    SlideOpenError : one cannot be read
    """
    sizes: Counter[tuple[int, int]] = Counter()

    def read(path: Path) -> tuple[tuple[int, int], RGB]:
        try:
            with open_patiently(path) as file, Image.open(file) as picture:
                size, rgb = picture.size, picture.convert("RGB")
        except TORN as error:
            raise SlideOpenError(
                path, f"it cannot be read as a picture ({error}). Remove it from the table, or copy it again."
            ) from error
        return size, np.asarray(rgb if size == (side, side) else rgb.resize((side, side), Image.Resampling.BILINEAR))

    found = np.empty((len(paths), side, side, 3), np.uint8)
    with ThreadPoolExecutor(READERS) as pool:
        for place, (size, rgb) in enumerate(pool.map(read, paths)):
            found[place] = rgb
            sizes[size] += 1
    for size, count in sizes.most_common(3):
        if size != (side, side):
            say(f"{counted(count, 'tile')} of {size[0]} x {size[1]} px resized to {side}")
    return found
