"""A folder to look at without a server: every slide with its map, its hottest regions at 20x, and what was decided."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely import Point
from shapely.geometry.base import BaseGeometry

from pathovit.errors import PathovitError, SettingsError
from pathovit.files import write_atomically
from pathovit.outputs.features import SlideFeatures
from pathovit.review.desk import Case, Desk
from pathovit.review.opinion import Opinion
from pathovit.review.pixels import small_picture
from pathovit.show.heatmap import SCORE
from pathovit.show.ome_tiff import read_ome_tiff
from pathovit.show.page import filled
from pathovit.show.qupath import HIGHEST, MEAN, MM2, Annotation, read_annotations
from pathovit.slides.slide import open_slide
from pathovit.text import counted, size

REGIONS = 6  # of each slide, the largest of the map
SIDE_UM, SIDE_PX = 400, 800  # of a region's picture: 0.5 um a pixel
PICTURE_BYTES = 250_000  # about what one takes


@dataclass
class Shown:
    """A region with its picture."""

    file: str
    name: str  # its class
    mm2: float
    mean: float
    highest: float


@dataclass
class Page:
    """What is shown of a slide."""

    key: str
    file: str
    patient: str
    group: str
    headline: str
    model: str
    reason: str
    decided: str
    overview: str
    opinions: list[Opinion] = field(default_factory=list)
    regions: list[Shown] = field(default_factory=list)
    said: str = ""


def write_static(desk: Desk, folder: Path, announce: Callable[[str], None]) -> None:
    """Write index.html and its pictures; `announce` is told about how large it becomes, before.

    Raises
    ------
    SettingsError : the folder is not empty
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"--static {folder}: there is something in it. Give a folder that is new or empty.")
    cases = desk.cases()
    overviews = [path for case in cases if (path := desk.out.slide(case.slide_id).overview).is_file() and case.record]
    most = sum(path.stat().st_size for path in overviews) + len(overviews) * REGIONS * PICTURE_BYTES
    announce(f"{counted(len(overviews), 'slide')}: at most about {size(most)} in {folder}")
    pages = [_page(desk, case, folder) for case in cases]
    html = filled("static.html", head=desk.record.head(), pages=pages, side_um=SIDE_UM)
    write_atomically(folder / "index.html", html)


def _page(desk: Desk, case: Case, folder: Path) -> Page:
    answer, record, standing = case.answer, case.record, desk.standing(case)
    read = [one for one in desk.opinions(case).values() if one.decided]
    page = Page(
        case.key, case.file or case.slide_id, case.patient, case.group.value, answer.headline if answer else "", f"model {answer.model}" if answer else "",
        case.reason, "readers disagree" if standing.disagreement and not standing.settled else standing.label or ("unsure" if standing.label == "" else ""),
        "", read,
    )  # fmt: skip
    picture = desk.out.slide(case.slide_id).overview
    if record is None or not picture.is_file():
        return page
    page.overview = f"{case.key}/overview.png"
    (folder / case.key).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, folder / page.overview)
    try:
        _add_regions(desk, case, folder, page)
    except PathovitError as error:
        page.said = f"No pictures of its regions: {error}"
    return page


def _add_regions(desk: Desk, case: Case, folder: Path, page: Page) -> None:
    assert case.record
    stored = desk.features(case)
    found = hottest(desk.out.slide(case.slide_id).path, stored)
    path, whereabouts = desk.path(case.record)
    if path is None:
        page.said = f"No pictures of its regions: the slide's file is {whereabouts.value}."
        return
    description = case.record.description
    with open_slide(path, description.mpp, description.mpp_source, case.record.sha256) as slide:
        for number, (region, centre) in enumerate(found, start=1):
            name = f"{case.key}/{number:02d}.jpg"
            write_atomically(folder / name, small_picture(slide, centre, SIDE_UM, SIDE_PX))
            about = region.measured
            page.regions.append(Shown(name, region.name, about[MM2], about[MEAN], about[HIGHEST]))


def hottest(folder: Path, stored: SlideFeatures) -> list[tuple[Annotation, tuple[float, float]]]:
    """The largest regions of the map, of whatever class, and the middle of the hottest tile of each, level-0 pixels."""
    regions = [region for region in read_annotations(folder, stored) if MM2 in region.measured]  # others are what was not read
    names, values = read_ome_tiff(folder / "heatmap.ome.tiff")
    lattice = stored.grid.lattice()
    found = []
    for region in sorted(regions, key=lambda region: -region.measured[MM2])[:REGIONS]:
        layer = names.index(f"{SCORE}{region.name}") if f"{SCORE}{region.name}" in names else 0
        found.append((region, _hottest_tile(region.shape, values[layer][lattice[:, 1], lattice[:, 0]], stored.centres_l0())))
    return found


def _hottest_tile(shape: BaseGeometry, scores: NDArray[np.float32], centres: NDArray[np.float64]) -> tuple[float, float]:
    for tile in np.argsort(-np.nan_to_num(scores, nan=-1.0)):
        if shape.intersects(Point(centres[tile])):
            return float(centres[tile][0]), float(centres[tile][1])
    inside = shape.representative_point()
    return float(inside.x), float(inside.y)
