"""Localisation: whether the map of a model lies where people drew, on patients it has not seen.

Of each patient with marked tiles, over these tiles alone: AUROC and average precision of the tile scores, where there are tiles
with and without the class; and the shares of both at or above score 0.5. Figures are means over patients, each class by itself.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.files import open_text
from pathovit.model.judged import Difference, Metric, Metrics
from pathovit.model.metrics import auprc, auroc
from pathovit.model.slide_model import SlideModel
from pathovit.outputs.names import Names
from pathovit.study.cohort import Bag
from pathovit.study.evaluation import FEWEST_FOR_INTERVAL, Tell, draws, number_or_none, percentiles

HOT = 0.5
FIGURES = ("tile_auroc", "tile_ap", "hot_inside", "hot_outside")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MapOf:
    """How one class of one patient is shown; not a number where that is not defined."""

    patient: str
    name: str  # of the class
    tiles: int  # that are marked
    inside: int  # of these, of the class
    tile_auroc: float
    tile_ap: float
    hot_inside: float
    hot_outside: float


def judge_maps(model: SlideModel, bags: Sequence[Bag]) -> list[MapOf]:
    """Every class of every patient with marks; nothing for models that have no evidence of tiles."""
    found = []
    for bag in bags:
        if bag.marks is None:
            continue
        scores = tile_scores(model, bag)
        marks = bag.marks.numpy()
        for name, score, mark in zip(model.target.score_names, scores.T, marks.T, strict=True):
            known = np.isfinite(mark)
            if known.any() and np.isfinite(score).all():
                found.append(_judge(bag.patient, name, score[known], mark[known] == 1))
    return found


def tile_scores(model: SlideModel, bag: Bag) -> Floats:
    """(N, C) of a bag."""
    seen = model.look(bag.features, bag.xy_um, bag.pitch_um)
    return model.tile_scores(seen.evidence + seen.bias)


def _judge(patient: str, name: str, score: Floats, inside: NDArray[np.bool_]) -> MapOf:
    whole, nothing = inside.astype(np.int64), float("nan")
    both = 0 < inside.sum() < len(inside)
    hot = score >= HOT
    return MapOf(
        patient, name, len(inside), int(inside.sum()),
        auroc(whole, score) if both else nothing,
        auprc(whole, score) if both else nothing,
        float(hot[inside].mean()) if inside.any() else nothing,
        float(hot[~inside].mean()) if not inside.all() else nothing,
    )  # fmt: skip


def localisation(maps: Sequence[MapOf], seed: int = 0) -> Metrics | None:
    """Means over patients with intervals over patients; None where nothing is marked."""
    if not maps:
        return None
    patients, values = _by_patient(maps)
    metrics = {}
    for name, column in values.items():
        low = high = None
        if np.isfinite(column).sum() >= FEWEST_FOR_INTERVAL:
            low, high = percentiles(np.array([_mean(column[rows]) for rows in draws(len(column), seed)]))
        metrics[name] = Metric(number_or_none(_mean(column)), low, high)
    return Metrics(len(patients), metrics)


def compare_maps(a: Sequence[MapOf], b: Sequence[MapOf], seed: int = 0) -> dict[str, Difference]:
    """b - a on the patients that both were judged on, with intervals over patients; empty where there are none."""
    (first, of_a), (second, of_b) = _by_patient(a), _by_patient(b)
    common = sorted({*first} & {*second})
    if not common:
        return {}
    found = {}
    for name in FIGURES:
        left = of_a[name][[first.index(patient) for patient in common]]
        right = of_b[name][[second.index(patient) for patient in common]]
        gap = (right - left)[np.isfinite(right - left)]
        low = high = p_value = None
        if len(gap) >= FEWEST_FOR_INTERVAL:
            drawn = np.array([gap[rows].mean() for rows in draws(len(gap), seed)])
            low, high = percentiles(drawn)
            p_value = number_or_none(min(1.0, 2 * (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / (len(drawn) + 1)))
        found[name] = Difference(
            len(gap), number_or_none(_mean(left)), number_or_none(_mean(right)), number_or_none(_mean(gap)), low, high, p_value
        )
    return found


def _by_patient(maps: Sequence[MapOf]) -> tuple[list[str], Mapping[str, Floats]]:
    """Patients, and of each figure their values (n,): means over classes."""
    patients = sorted({one.patient for one in maps})
    values = {
        name: np.array([_mean(np.array([getattr(one, name) for one in maps if one.patient == patient])) for patient in patients])
        for name in FIGURES
    }
    return patients, values


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def maps_csv(maps: Sequence[MapOf], tell: Tell) -> bytes:
    """One row for each patient, as they may be called, and class."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(MapOf.__annotations__), lineterminator="\n")
    writer.writeheader()
    for one in maps:
        row = {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in asdict(one).items()}
        writer.writerow(row | {"patient": tell(one.patient)})
    return buffer.getvalue().encode("utf-8", "replace")


def read_maps(path: Path) -> list[MapOf]:
    """What `maps_csv` wrote.

    Raises
    ------
    SettingsError : damaged
    """
    try:
        with open_text(path) as file:
            rows = list(csv.DictReader(file))
        names = Names.read(path.parent)
        return [
            MapOf(
                names.patient_of(row["patient"]),
                row["name"],
                int(row["tiles"]),
                int(row["inside"]),
                *(float(row[name]) for name in FIGURES),
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError) as error:
        raise SettingsError(f"{path}: not the figures that `pathovit evaluate` writes ({error}).") from error
