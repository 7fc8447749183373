"""predictions.csv and report.html: what an output folder holds, as a table and as one self-contained page."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathovit import RESEARCH_USE, __version__
from pathovit.pipeline import DONE, fault_of, read_done, superseded
from pathovit.store import write_atomically
from pathovit.text import plain, say_left_out

PICTURE_PX = 1400  # longer side of an overview inside the report
OLDER = "an older answer: the file has other content now"
TRAIN_HINT = "The bundled model is a demonstration, made on few patients. Train one on slides of yours: pathovit train LABELS.csv"
MAX_PICTURES = 300  # slides with pictures in one report; the table always has all


@dataclass(frozen=True)
class Failure:
    """A slide that could not be done, and why."""

    file: str
    reason: str
    slide_id: str = ""


@dataclass(frozen=True)
class Twin:
    """A file that holds the same slide as another one, by its name."""

    file: str
    slide_id: str
    patient: str | None = None


def slide_folders(out: Path) -> list[Path]:
    """The folders of the slides of an output folder."""
    return sorted(folder for folder in (out / "slides").glob("*") if folder.is_dir() and not folder.is_symlink())


def refused_records(out: Path) -> dict[str, str]:
    """Slide folders whose record is not read, and why."""
    found = {}
    for folder in slide_folders(out):
        try:
            done = json.loads((folder / DONE).read_bytes())
        except (OSError, ValueError):
            continue
        if fault := fault_of(folder, done):
            found[folder.name] = fault
    return found


def done_slides(out: Path) -> list[dict[str, Any]]:
    """slide.json of every finished slide of a folder, in order of id."""
    found = (read_done(folder) for folder in slide_folders(out))
    return [done for done in found if done is not None and done["finish_recipe"] is not None]


def prediction_rows(
    done: Sequence[dict[str, Any]], failures: Sequence[Failure], twins: Sequence[Twin] = (), older: Container[str] = ()
) -> tuple[list[str], list[dict[str, Any]]]:
    """Column names and rows of predictions.csv.

    Parameters
    ----------
    twins : files that hold the same slide as another; they get a row of their own
    older : digests of slides whose files have other content now
    """
    numbers = list(dict.fromkeys(name for d in done if d["prediction"] for name in d["prediction"]["columns"]))
    names = ["slide_id", "file", "patient", "verdict", "answer", *numbers, "novelty"]
    names += [
        "tiles",
        "trial",
        "tiles_unread",
        "tissue_mm2",
        "left_out_mm2",
        "mpp_x",
        "mpp_y",
        "mpp_source",
        "minutes",
        "model",
        "reason",
    ]
    rows: list[dict[str, Any]] = []
    for d in done:
        slide, answer = d["slide"], d["prediction"]
        row = {
            "slide_id": slide["slide_id"],
            "file": slide["file"],
            "patient": slide["patient"] or "",
            "verdict": d["verdict"],
            "tiles": slide["tiles"],
            "tiles_unread": d["tiles"]["missing"] + d["tiles"]["unreadable"],
            "trial": d["trial"],
            "tissue_mm2": round(slide["tissue_mm2"], 3),
            "left_out_mm2": round(sum(slide["left_out_mm2"].values()), 3),
            "mpp_x": slide["mpp"][0],
            "mpp_y": slide["mpp"][1],
            "mpp_source": slide["mpp_source"],
            "minutes": round(d["seconds"] / 60, 2),
            "model": answer["model"] if answer else "",
            "reason": "; ".join(filter(None, [OLDER if slide["sha256"] in older else "", d["reason"]])),
        }
        if answer:
            row |= {name: f"{value:.7g}" for name, value in answer["columns"].items()}
            row |= {"answer": answer["answer"], "novelty": answer["novelty"]}
        rows.append(row)
    by_id = {row["slide_id"]: row for row in rows}
    for twin in twins:
        if first := by_id.get(twin.slide_id):
            said = "; ".join(filter(None, [f"the same slide as {first['file']}, done once", first["reason"]]))
            rows.append(first | {"file": twin.file, "patient": twin.patient or first["patient"], "reason": said})
        else:
            said = "the same slide as one that failed"
            rows.append({"slide_id": twin.slide_id, "file": twin.file, "verdict": "failed", "reason": said})
    rows += [{"slide_id": f.slide_id, "file": f.file, "verdict": "failed", "reason": f.reason} for f in failures]
    return names, rows


def write_predictions(out: Path, failures: Sequence[Failure], twins: Sequence[Twin] = ()) -> Path:
    """Write predictions.csv: one row per slide file, done or failed."""
    names, rows = prediction_rows(_without(done_slides(out), failures), failures, twins, superseded(out))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, restval="")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    path = out / "predictions.csv"
    write_atomically(path, buffer.getvalue().encode("utf-8", "replace"))
    return path


def _without(done: Sequence[dict[str, Any]], failures: Sequence[Failure]) -> list[dict[str, Any]]:
    """Finished slides less those that failed now: an older answer of theirs is not shown beside the failure."""
    failed = {failure.slide_id for failure in failures}
    return [d for d in done if d["slide"]["slide_id"] not in failed]


def cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, str):
        value = plain(value)
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return value


def write_report(out: Path, failures: Sequence[Failure], record: dict[str, Any], twins: Sequence[Twin] = ()) -> Path:
    """Write report.html: opens from disk, without a network, and holds every picture itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    done = _without(done_slides(out), failures)
    older = superseded(out)
    names, rows = prediction_rows(done, failures, twins, older)
    environment = Environment(loader=PackageLoader("pathovit"), autoescape=True, undefined=StrictUndefined)
    environment.filters["plain"] = plain
    environment.filters["left_out"] = say_left_out
    slides = [
        {**d, "overview": _overview(out, d), "pictures": _tiles(out, d), "older": OLDER if d["slide"]["sha256"] in older else ""}
        for d in sorted(done, key=lambda d: -_highest(d))[:MAX_PICTURES]
        if d["prediction"]
    ]
    html = environment.get_template("report.html").render(
        research_use=RESEARCH_USE,
        version=__version__,
        rows=rows,
        numbers=[name for name in names[names.index("answer") + 1 : names.index("novelty")]],
        slides=slides,
        shown={slide["slide"]["slide_id"] for slide in slides},
        left_out=max(0, len(done) - MAX_PICTURES),
        record=record,
        cards=_cards(record),
        demonstration=record.get("demonstration", False),
        train_hint=TRAIN_HINT,
    )
    path = out / "report.html"
    write_atomically(path, html.encode("utf-8", "replace"))
    return path


def _highest(done: dict[str, Any]) -> float:
    """The last number of the answer: for a binary target the probability of the positive class."""
    return float(list(done["prediction"]["columns"].values())[-1]) if done["prediction"] else -np.inf


def _cards(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings and versions as (name, value) lines."""
    lines = []
    for table, values in record.get("settings", {}).items():
        lines += [(f"{table}.{key}", Path(str(value)).name) for key, value in values.items()]  # folders can name patients
    return lines + [(f"version of {key}", value) for key, value in record.get("versions", {}).items()]


def _overview(out: Path, done: dict[str, Any]) -> str:
    path = out / "slides" / done["slide"]["slide_id"] / "overview.png"
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError:  # missing or damaged: the report says so in its place
        return ""
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _data_url(buffer.getvalue())


def _tiles(out: Path, done: dict[str, Any]) -> list[dict[str, Any]]:
    folder = out / "slides" / done["slide"]["slide_id"]
    there = [tile for tile in done.get("top_tiles", []) if (folder / tile["file"]).is_file()]
    return [{**tile, "picture": _data_url((folder / tile["file"]).read_bytes())} for tile in there]


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
