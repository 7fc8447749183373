"""Slide files under the paths that were given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pathovit.errors import NoSlidesError, SlideOpenError
from pathovit.files import FLAT_SUFFIXES, SLIDE_SUFFIXES
from pathovit.reasons import Code
from pathovit.slides.identity import dicom_series
from pathovit.tables import Say

OWN_OUTPUTS = {"run.json", "slide.json"}
OWN_PICTURES, OWN_DICOM = "heatmap.ome.tiff", (".seg.dcm", ".sr.dcm")  # are no slides


def find_slides(paths: Iterable[Path], say: Say = lambda text: None) -> list[Path]:
    """Slide files under the given files and folders, sorted within a folder, each once.

    Files named one by one are taken whatever their suffix (`check.py` says what is wrong with them), and so are empty
    folders that are named like slides. Of a DICOM series, which is many files, the first stands for all.

    Parameters
    ----------
    say : called with a sentence for every folder that was given and holds no slide, where others do

    Raises
    ------
    NoSlidesError : nothing was found
    """
    found: dict[Path, None] = {}
    without: list[Path] = []
    asked = list(paths)
    if not any(path.exists() or path.is_symlink() for path in asked):
        raise NoSlidesError(
            f"{', '.join(str(p) for p in asked) or 'No path given'}: there is no such file or folder. Check the path."
        )
    for path in asked:
        if path.is_dir():
            inside = dict.fromkeys(_slides_in(path, say))
            found.update(inside)
            if not inside:
                without.append(path)
        else:
            found[path] = None
    slides = _one_file_per_series(found)
    if not slides:
        names = ", ".join(str(p) for p in asked) or "no path given"
        pictures = next((picture for path in asked if path.is_dir() for picture in _pictures_in(path)), None)
        hint = f" Plain pictures count only when they are named, e.g. {pictures}." if pictures else ""
        raise NoSlidesError(
            f"No slide found in {names}. Give slide files ({', '.join(SLIDE_SUFFIXES)}) or a folder of them.{hint}"
        )
    for folder in without:
        say(f"{folder}: no slide in this folder")
    return slides


def _slides_in(folder: Path, say: Say) -> Iterator[Path]:
    """Slide files below a folder; links to folders, hidden ones, data folders of MRXS slides and output folders are left out.

    The folder that was named is looked at whatever else lies in it. Plain pictures are not slides unless they are named.

    Raises
    ------
    SlideOpenError : a folder cannot be listed
    """
    for root, folders, files in os.walk(folder, followlinks=False, onerror=_cannot_be_listed):
        ours = [name for name in files if name == OWN_PICTURES or name.lower().endswith(OWN_DICOM)]  # also of a killed run
        slides = sorted(name for name in files if name.lower().endswith(SLIDE_SUFFIXES) and name not in ours)
        if OWN_OUTPUTS & set(files) and Path(root) != folder:  # what pathovit wrote is not looked at as slides
            if slides:
                say(f"{root}: left out, with {slides[0]}: it looks like a folder of results. Name it to have its slides")
            folders.clear()
            continue
        if not files and not folders and Path(root).name.lower().endswith(SLIDE_SUFFIXES):
            yield Path(root)  # what is left of a slide: it is to have a row
        mirax_data = {Path(name).stem for name in files if name.lower().endswith(".mrxs")}
        folders[:] = sorted(
            name for name in folders if name not in mirax_data and not name.endswith(".zarr") and not name.startswith(".")
        )
        yield from (Path(root) / name for name in slides if not name.startswith("."))


def _cannot_be_listed(error: OSError) -> None:
    """Its slides would be missing without a word."""
    raise SlideOpenError(
        error.filename, f"this folder cannot be listed ({error.strerror}). Mend that, or name the others.", Code.NO_PERMISSION
    ) from error


def _pictures_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in FLAT_SUFFIXES)


def _one_file_per_series(paths: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    seen: set[tuple[Path, str]] = set()
    for path in paths:
        if path.suffix.lower() == ".dcm":
            series = (path.parent, dicom_series(path))
            if series[1] and series in seen:
                continue
            seen.add(series)
        kept.append(path)
    return kept
