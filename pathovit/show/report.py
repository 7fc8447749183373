"""report.html: what an output folder holds, as one self-contained page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pathovit import RESEARCH_USE, __version__
from pathovit.files import write_atomically
from pathovit.outputs.folder import OutFolder, SlideFolder
from pathovit.outputs.records import SlideRecord, TopTile
from pathovit.outputs.runs import RunRecord, all_runs
from pathovit.show.table import OLDER, Contents, table
from pathovit.text import plain, say_left_out

PICTURE_PX = 1400  # longer side of an overview inside the report
TRAIN_HINT = (
    "The bundled model is a demonstration, made on few patients. Teach one on a few strokes of yours: pathovit teach OUT REGIONS. "
    "Or train one on labels of slides: pathovit train LABELS.csv"
)
MAX_PICTURES = 300  # slides with pictures in one report, those at the highest risk; the table always has all


@dataclass(frozen=True)
class Picture:
    """A top tile, with its picture as a data URL."""

    tile: TopTile
    url: str


@dataclass(frozen=True)
class Section:
    """A slide with its pictures."""

    record: SlideRecord
    overview: str  # data URL; empty where it is missing or damaged
    pictures: tuple[Picture, ...]
    older: str


def write_report(out: OutFolder, found: Contents, record: RunRecord) -> Path:
    """Write report.html: opens from disk, without a network, and holds every picture itself. `record` is of the newest run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    names, rows = table(found)
    answered = [record for record in found.records if record.prediction]
    at_risk = sorted(answered, key=lambda record: -record.prediction.risk if record.prediction else 0.0)[:MAX_PICTURES]
    chosen = {record.slide_id for record in at_risk}
    shown = [record for record in answered if record.slide_id in chosen]
    order = {str(row["slide_id"]): place for place, row in enumerate(rows)}
    shown.sort(key=lambda record: order[record.slide_id])
    environment = Environment(loader=PackageLoader("pathovit.show"), autoescape=True, undefined=StrictUndefined)
    environment.filters["plain"] = plain
    environment.filters["left_out"] = say_left_out
    html = environment.get_template("report.html").render(
        research_use=RESEARCH_USE,
        version=__version__,
        rows=rows,
        with_answers=bool(answered),
        numbers=names[names.index("answer") + 1 : names.index("novelty")] if answered else [],
        sections=[_section(out.slide(record.slide_id), record, found) for record in shown],
        shown=chosen,
        left_out=len(answered) - len(shown),
        cards=_cards(record),
        runs=all_runs(out),
        demonstration=record.demonstration and bool(answered),
        train_hint=TRAIN_HINT,
    )
    write_atomically(out.report, html.encode("utf-8", "replace"))
    return out.report


def _cards(record: RunRecord) -> list[tuple[str, object]]:
    """Settings and versions as (name, value) lines."""
    lines: list[tuple[str, object]] = []
    for name, values in record.settings.items():
        lines += [(f"{name}.{key}", Path(str(value)).name) for key, value in values.items()]  # folders can name patients
    return lines + [(f"version of {key}", value) for key, value in record.versions.items()]


def _section(folder: SlideFolder, record: SlideRecord, found: Contents) -> Section:
    files = [(tile, folder.path / tile.file) for tile in record.top_tiles]
    there = [(tile, file) for tile, file in files if file.is_file() and not file.is_symlink()]
    pictures = tuple(Picture(tile, _data_url(file.read_bytes())) for tile, file in there)
    return Section(record, _overview(folder), pictures, OLDER if record.sha256 in found.older else "")


def _overview(folder: SlideFolder) -> str:
    try:
        with Image.open(folder.overview) as image:
            picture = image.convert("RGB")
    except OSError:  # missing or damaged: the report says so in its place
        return ""
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _data_url(buffer.getvalue())


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
