"""One contract for all kinds of target: the figures of each, as they were before every kind had a class of its own.

`golden/targets.json` was made by the functions that asked for the task in 64 places (commit f4754cf), with the inputs below. What
follows from calibration was made anew when half a patient of each class took the place of a whole one (SOFTENED), by
`python tests/model/test_kinds.py`; with SOFTENED = 1 the figures are those of before.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.model.aggregator import TileEvidence
from pathovit.model.targets import KINDS, Target
from pathovit.model.targets.classes import Classes
from pathovit.model.targets.survival import cox_loss
from pathovit.settings import TrainSettings
from pathovit.study.evaluation import Answers, main_metric
from pathovit.study.fit import _class_weights
from pathovit.study.losses import Loss
from pathovit.study.parts import check_part

GOLDEN = json.loads((Path(__file__).parent / "golden" / "targets.json").read_text("utf-8"))
TARGETS = {
    "binary": Target("binary", ("label",), ("benign", "tumour")),
    "multiclass": Target("multiclass", ("grade",), ("a", "b", "c")),
    "multilabel": Target("multilabel", ("er", "pr"), ("er", "pr")),
    "regression": Target("regression", ("age",), ("age",)),
    "survival": Target("survival", ("months", "died"), ("risk",)),
}


def drawn(task: str, outputs: int, patients: int = 60) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Logits (n, C) and truth that fit each other."""
    chance = np.random.default_rng(5)
    logits = chance.normal(0, 2, (patients, outputs))
    truth: Any
    if task in ("binary", "multilabel"):
        truth = chance.random((patients, outputs)) < 1 / (1 + np.exp(-logits))
    elif task == "multiclass":
        truth = np.eye(3)[(logits + chance.normal(0, 1, (patients, 3))).argmax(1)]
    elif task == "regression":
        truth = 50 + 10 * logits + chance.normal(0, 5, (patients, 1))
    else:
        time = np.exp(-logits[:, 0] / 2 + chance.normal(0, 0.5, patients)) * 20
        truth = np.stack([time, chance.random(patients) < 0.7], 1)
    return logits, np.asarray(truth, np.float32)


def rounded(values: Any) -> Any:
    return np.asarray(values, float).round(6).tolist()


def figures(task: str) -> dict[str, Any]:
    target = TARGETS[task]
    kind = target.kind
    logits, truth = drawn(task, target.outputs)
    bags = [SimpleNamespace(is_labelled=True, truth=row, group=str(i), patient=str(i)) for i, row in enumerate(truth)]
    centre, scale = kind.measure(truth)
    made = kind.scaling(logits * 1.7 + 0.3, truth, centre, scale)
    scaled = (logits * 1.7 + 0.3) / made.temperature + np.array(made.shift)
    known = kind.calibrate(made, scaled, truth, kind.margins(scaled) + 1)
    chances = kind.probabilities(scaled)
    answers = Answers(target, tuple(map(str, range(60))), truth, chances if target.is_classification else logits * scale + centre)
    weights = _class_weights(target, truth, wanted=True)
    judge, chance, losses = Loss(target, TrainSettings(), weights, centre, scale), torch.Generator().manual_seed(3), []
    for row in truth[:4]:
        evidence = torch.randn(30, target.outputs, generator=chance)
        attention = torch.softmax(torch.randn(30, generator=chance), 0)
        bias = torch.randn(target.outputs, generator=chance)
        found = TileEvidence((attention[:, None] * evidence).sum(0) + bias, evidence, attention, bias)
        losses.append(0.0 if kind.least_bags > 1 else judge.of_bag(found, torch.from_numpy(row)).item())

    def lacking(rows: Any) -> str:
        try:
            check_part("train", [bags[i] for i in rows], target)
        except SettingsError as error:
            return str(error)
        return ""

    one = int(np.flatnonzero(kind.strata(truth) == kind.strata(truth)[0])[0])
    values = {key: value for key, value in asdict(made).items() if key in ("temperature", "shift", "centre", "scale", "patients")}
    return {
        "probabilities": rounded(kind.probabilities(logits[:5])),
        "margins": rounded(kind.margins(logits[:5])),
        "questions": [list(options) for options in kind.questions()],
        "measure": rounded([centre, scale]),
        "scaling": {key: value if key == "patients" else rounded(value) for key, value in values.items()},
        "hot": rounded(known.hot),
        "hot_patients": list(known.hot_patients),
        "conformity": [[rounded(option) for option in question] for question in known.conformity],
        "possible": [[list(o) for o in kind.possible(known, chances[i], 0.2)] for i in range(6)]
        if target.is_classification
        else [],
        "called": [kind.called(chances[i]) for i in range(6)],
        "true_options": [[kind.option(q, truth[i]) for q in range(len(kind.questions()))] for i in range(4)],
        "strata": rounded(kind.strata(truth)),
        "counts": [list(count) for count in kind.counts(truth)],
        "lacking": [lacking(range(60)), lacking([one] * 3)],
        "columns": [kind.answer_columns, kind.truth_columns, list(target.score_names), target.outputs],
        "metrics": {name: round(answers.metric(name), 6) for name in kind.metrics},
        "main": {name: round(value, 6) for name, value in main_metric(target, truth, logits, centre, scale).items()},
        "weights": rounded(weights),
        "bag_losses": [round(loss, 5) for loss in losses],
        "calibrated_loss": round(kind.calibrated_loss(logits, truth), 6) if isinstance(kind, Classes) else None,
        **(
            {"cox": round(cox_loss(torch.from_numpy(logits[:, 0]), torch.from_numpy(truth)).item(), 5)}
            if task == "survival"
            else {}
        ),
    }


def close(found: Any, expected: Any) -> bool:
    """Equal, numbers to the fifth digit: libraries round otherwise from version to version."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(close(a, b) for a, b in zip(found, expected, strict=True))
    return bool(found == pytest.approx(expected, abs=2e-4, rel=2e-4)) if isinstance(expected, float) else found == expected


@pytest.mark.parametrize("figure", sorted({name for kind in GOLDEN.values() for name in kind}))
@pytest.mark.parametrize("task", list(KINDS))
def test_every_kind_says_what_it_always_said(task: str, figure: str) -> None:
    if figure in GOLDEN[task]:
        assert close(CACHE[task][figure], GOLDEN[task][figure])


CACHE = {task: figures(task) for task in KINDS}


@pytest.mark.parametrize("task", list(KINDS))
def test_every_kind_keeps_its_promises(task: str) -> None:
    kind = TARGETS[task].kind
    logits, truth = drawn(task, kind.outputs)
    assert kind.margins(logits).shape == logits.shape
    assert kind.values(logits, 0.0, 1.0).shape == (60, len(kind.answer_columns))
    assert truth.shape == (60, len(kind.truth_columns))
    assert kind.class_weights(truth).shape == (2, kind.outputs)
    assert len(kind.strata(truth)) == 60
    assert kind.lacking(truth) == ""
    assert all(isinstance(count, int) for _, count in kind.counts(truth))
    chances = kind.probabilities(logits[0])
    assert len(chances) == (len(kind.answer_columns) if kind.is_classification else 0)
    assert bool(kind.questions()) == kind.is_classification
    known = kind.calibrate(kind.scaling(logits, truth, 0.0, 1.0), logits, truth, kind.margins(logits))
    value, interval = kind.measured(known, logits[0], 0.1)
    assert (value is None) == kind.is_classification
    if kind.is_classification:
        possible = kind.possible(known, chances, 1.0)
        assert all(len(options) == 0 for options in possible)
    else:
        assert kind.said([], value)
    assert kind.headline("unsure" if kind.is_classification else "1", chances, value, interval)
    assert kind.say_calibration(known).endswith(".")
    assert kind.part_loss(torch.from_numpy(logits), truth, 0.0, 1.0) == pytest.approx(
        kind.part_loss(torch.from_numpy(logits[::-1].copy()), truth[::-1].copy(), 0.0, 1.0), rel=1e-3
    )


if __name__ == "__main__":
    lines = [f"{json.dumps(task)}:{json.dumps(figures(task), separators=(',', ':'))}" for task in KINDS]
    (Path(__file__).parent / "golden" / "targets.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
