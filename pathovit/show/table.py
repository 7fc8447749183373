"""predictions.csv: what an output folder holds, one row per slide file. The report shows the same rows in the same order."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeAlias

from pathovit.files import csv_table, write_atomically
from pathovit.outputs.folder import OutFolder, Refused
from pathovit.outputs.records import Outcome, SlideRecord
from pathovit.reasons import Code

OLDER = "an older answer: the file has other content now"
OF_AN_ANSWER = ("answer", "novelty", "model")  # columns that only answers have
Row: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class Contents:
    """Everything that an output folder holds of slides, in the order in which it is shown."""

    records: tuple[SlideRecord, ...]  # finished
    refused: tuple[Refused, ...]
    outcomes: tuple[Outcome, ...]
    older: frozenset[str]  # digests of slides whose files have other content now

    @classmethod
    def of(cls, out: OutFolder) -> Contents:
        records, refused = out.finished()
        outcomes = out.outcomes()
        failed = {outcome.slide_id for outcome in outcomes if not outcome.twin}  # an older answer is not shown beside a failure
        kept = [record for record in records if record.slide_id not in failed]
        named = {record.slide_id for record in records}
        told = [outcome for outcome in outcomes if not (outcome.twin and outcome.slide_id not in named | failed)]
        return cls(tuple(kept), tuple(refused), tuple(told), frozenset(out.superseded()))


def table(found: Contents) -> tuple[list[str], list[Row]]:
    """Column names and rows of predictions.csv, by file name; columns of answers only where there is one."""
    answers = [record.prediction for record in found.records if record.prediction]
    numbers = list(dict.fromkeys(name for answer in answers for name in answer.columns))
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
        "code",
        "reason",
    ]
    if not answers:
        names = [name for name in names if name not in OF_AN_ANSWER]
    done = {record.slide_id: _row(record, found.older) for record in found.records}
    rows = [*done.values(), *(_row_of_outcome(outcome, done) for outcome in found.outcomes)]
    rows += [
        {"slide_id": r.slide_id, "file": "", "patient": "", "verdict": "failed", "code": r.code, "reason": r.reason}
        for r in found.refused
    ]
    return names, in_order(rows)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """By file name, or id where names are not kept; those of one patient together, where the first of them is."""
    place = {id(row): (str(row["file"]).casefold(), str(row["slide_id"])) for row in rows}
    first: dict[object, tuple[str, str]] = {}
    for row in rows:
        if patient := row.get("patient"):
            first[patient] = min(place[id(row)], first.get(patient, place[id(row)]))
    return sorted(rows, key=lambda row: (first.get(row.get("patient"), place[id(row)]), place[id(row)]))


def _row(record: SlideRecord, older: Container[str]) -> Row:
    answer, survey, description = record.prediction, record.survey, record.description
    row: Row = {
        "slide_id": record.slide_id,
        "file": description.file,
        "patient": record.patient or "",
        "verdict": record.verdict.value,
        "tiles": survey.tiles,
        "tiles_unread": record.tiles.unread,
        "trial": record.trial,
        "tissue_mm2": round(survey.tissue_mm2, 3),
        "left_out_mm2": round(sum(survey.left_out_mm2.values()), 3),
        "mpp_x": description.mpp[0],
        "mpp_y": description.mpp[1],
        "mpp_source": description.mpp_source,
        "minutes": round(record.seconds / 60, 2),
        "code": record.code,
        "reason": "; ".join(filter(None, [OLDER if record.sha256 in older else "", record.reason])),
    }
    if answer:
        row |= {name: "" if value is None else f"{value:.7g}" for name, value in answer.columns.items()}
        row |= {"answer": answer.answer, "novelty": answer.novelty, "model": answer.model}
    return row


def _row_of_outcome(outcome: Outcome, done: dict[str, Row]) -> Row:
    earlier = f" ({outcome.when})" if outcome.when and outcome.when != date.today().isoformat() else ""
    row: Row = {"slide_id": outcome.slide_id, "file": outcome.file, "patient": outcome.patient or "", "verdict": "failed"}
    if not outcome.twin:
        return row | {"code": outcome.code, "reason": outcome.reason + earlier}
    if (first := done.get(outcome.slide_id)) is None:
        return row | {"code": Code.SAME_SLIDE.value, "reason": "the same slide as one that failed"}
    said = "; ".join(filter(None, [f"the same slide as {first['file'] or first['slide_id']}, done once", str(first["reason"])]))
    return first | {"file": outcome.file, "patient": outcome.patient or first["patient"], "reason": said}


def write_table(out: OutFolder, found: Contents) -> Path:
    """Write predictions.csv."""
    write_atomically(out.predictions, csv_table(*table(found)))
    return out.predictions
