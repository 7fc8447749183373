"""report.html: what an output folder holds, as one self-contained page."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from pathovit.files import open_patiently, open_text, read_bytes, write_atomically
from pathovit.machine import allowed_cores
from pathovit.outputs.folder import OutFolder, SlideFolder
from pathovit.outputs.records import A_MAP, OUTSIDE, UNSURE, SlideRecord, TopTile
from pathovit.outputs.runs import RunRecord, all_runs
from pathovit.show.page import filled
from pathovit.show.table import OLDER, Contents, table
from pathovit.show.tissue_map import colour_of
from pathovit.tables import number

PICTURE_PX, ZOOM = 1400, 200  # longer side of an overview inside the report, and per cent at which it is shown large
TRAIN_HINT = (
    "The bundled model is a demonstration, made on few patients. Teach one on a few strokes of yours: pathovit teach OUT REGIONS. "
    "Or train one on labels of slides: pathovit train LABELS.csv"
)
MEASURED = "answered"  # slides whose answer is a number
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
    tissue: str  # data URL of its tissue map; empty where there is none
    kinds: tuple[tuple[str, str, float], ...]  # of tissue on it: name, colour, mm2


@dataclass(frozen=True)
class Kinds:
    """What was found of kinds of tissue, in the folder's tissue/."""

    folder: Path
    columns: tuple[str, ...]
    areas: Mapping[str, Sequence[float]]  # mm2 of each column, by slide_id

    @classmethod
    def of(cls, out: OutFolder) -> Kinds:
        folder = out.path / "tissue"
        try:
            with open_text(folder / "areas.csv") as file:
                reader = csv.DictReader(file)
                columns = tuple(reader.fieldnames or ())[2:]
                return cls(folder, columns, {row["slide_id"]: [float(row[name]) for name in columns] for row in reader})
        except (OSError, KeyError, ValueError, TypeError):  # none, or damaged: `pathovit tissue` makes them again
            return cls(folder, (), {})

    def on(self, slide_id: str) -> tuple[tuple[str, str, float], ...]:
        """Name, colour and mm2 of the kinds on a slide; the last column is tissue of none."""
        colours = ["rgb({}, {}, {})".format(*colour_of(place)) for place in range(len(self.columns) - 1)] + ["transparent"]
        names = [column.removesuffix(" mm2") for column in self.columns]
        known = zip(names, colours, self.areas.get(slide_id, ()), strict=False)
        return tuple((name, colour, area) for name, colour, area in known if area)

    def picture(self, slide_id: str) -> str:
        path = self.folder / f"{slide_id}.jpg"
        return _data_url(read_bytes(path)) if path.is_file() and not path.is_symlink() else ""

    def examples(self) -> str:
        path = self.folder / "kinds.png"
        return _small(path) if self.columns else ""


def write_report(out: OutFolder, found: Contents, record: RunRecord) -> Path:
    """Write report.html: opens from disk, without a network, and holds every picture itself. `record` is of the newest run."""
    names, rows = table(found)
    answered = [record for record in found.records if record.prediction]
    at_risk = sorted(answered, key=lambda record: -record.prediction.risk if record.prediction else 0.0)[:MAX_PICTURES]
    chosen = {record.slide_id for record in at_risk}
    shown = [record for record in answered if record.slide_id in chosen]
    order = {str(row["slide_id"]): place for place, row in enumerate(rows)}
    shown.sort(key=lambda record: order[record.slide_id])
    numbers = names[names.index("answer") + 1 : names.index("novelty")] if answered else []
    kinds = Kinds.of(out)
    script = read_bytes(Path(__file__).parent / "templates" / "report.js").decode()
    html = filled(
        "report.html",
        rows=rows,
        states=[state_of(row) for row in rows],
        summary=summary(rows),
        patients=len({row["patient"] for row in rows if row.get("patient")}),
        zoom=ZOOM,
        script=Markup(script),
        script_digest=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        with_answers=bool(answered),
        numbers=[name for name in numbers if any(row.get(name) for row in rows)],  # of slides outside there is none
        left_out_mm2=any(row.get("left_out_mm2") for row in rows),
        sections=_sections(out, shown, found, kinds),
        kinds=kinds.examples(),
        shown=chosen,
        left_out=len(answered) - len(shown),
        cards=_cards(record),
        runs=all_runs(out),
        untold=any(not record.description.file for record in found.records),
        demonstration=record.demonstration and bool(answered),
        taught=any(one.prediction.answer == A_MAP for one in answered if one.prediction),
        trained=any(one.prediction.answer != A_MAP for one in answered if one.prediction),
        train_hint=TRAIN_HINT,
    )
    write_atomically(out.report, html)
    return out.report


def state_of(row: Mapping[str, object]) -> str:
    """What a slide counts as in the line above the table: its answer, as far as it has one."""
    if row["verdict"] == "failed":
        return "failed"
    answer = str(row.get("answer") or "")
    if number(answer) is not None and not any(name.startswith("prob_") for name in row):
        return MEASURED
    return f"answered {answer}" if answer in ("failed", "no answer", MEASURED) else answer or "no answer"


def summary(rows: Sequence[Mapping[str, object]]) -> list[tuple[str, int]]:
    """States of slides and how many are in each: answers by name, then what was not answered."""
    counts = Counter(map(state_of, rows))
    last = [MEASURED, UNSURE, OUTSIDE, "no answer", "failed"]
    return sorted(counts.items(), key=lambda one: (last.index(one[0]) if one[0] in last else -1, one[0]))


def _cards(record: RunRecord) -> list[tuple[str, object]]:
    """Settings and versions as (name, value) lines."""
    lines: list[tuple[str, object]] = []
    for name, values in record.settings.items():
        lines += [(f"{name}.{key}", Path(str(value)).name) for key, value in values.items()]  # folders can name patients
    return lines + [(f"version of {key}", value) for key, value in record.versions.items()]


def _sections(out: OutFolder, shown: Sequence[SlideRecord], found: Contents, kinds: Kinds) -> list[Section]:
    """Side by side: most of the time goes into pictures."""
    with ThreadPoolExecutor(allowed_cores()) as pool:
        return list(pool.map(lambda record: _section(out.slide(record.slide_id), record, found, kinds), shown))


def _section(folder: SlideFolder, record: SlideRecord, found: Contents, kinds: Kinds) -> Section:
    files = [(tile, folder.path / tile.file) for tile in record.top_tiles]
    there = [(tile, file) for tile, file in files if file.is_file() and not file.is_symlink()]
    pictures = tuple(Picture(tile, _data_url(read_bytes(file))) for tile, file in there)
    older = OLDER if record.sha256 in found.older else ""
    tissue, areas = kinds.picture(record.slide_id), kinds.on(record.slide_id)
    return Section(record, _small(folder.overview), pictures, older, tissue, areas)


def _small(path: Path) -> str:
    """A picture for the report, as a data URL; empty where it is missing or damaged."""
    try:
        with open_patiently(path) as file, Image.open(file) as image:
            picture = image.convert("RGB")
    except OSError:  # the report says so in its place
        return ""
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _data_url(buffer.getvalue())


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
