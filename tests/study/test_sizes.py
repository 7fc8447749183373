"""Whether probabilities hold whatever the amount of tissue."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import pathovit
from made_cohort import study, table, write_slide, write_table

from pathovit.model.slide_model import load_model
from pathovit.model.targets import Target
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore
from pathovit.study.evaluation import Answers
from pathovit.study.sizes import by_size

BINARY = Target("binary", ("label",), ("benign", "tumour"))


def answers(patients: int, wrong_below: int = 0) -> Answers:
    """Calibrated ones, patient i with 100 + i tiles; of those with fewer tiles than `wrong_below` the truth is turned over."""
    chance = np.random.default_rng(0)
    positive, tiles = chance.random(patients), np.arange(patients) + 100
    truth = (chance.random(patients) < np.where(tiles < wrong_below, 1 - positive, positive)).astype(np.float32)
    names = tuple(map(str, range(patients)))
    return Answers(BINARY, names, truth[:, None], np.stack([1 - positive, positive], -1), np.zeros(patients), tiles)


def test_calibrated_answers_are_within_chance_at_every_size() -> None:
    found = by_size(answers(90), "test part")
    assert [(one.fewest, one.most, one.patients) for one in found] == [(100, 129, 30), (130, 159, 30), (160, 189, 30)]
    assert all(one.error <= one.by_chance for one in found)
    assert not any("more than chance" in str(one) for one in found)


def test_answers_that_hold_on_large_slides_alone_are_told() -> None:
    small, *larger = by_size(answers(90, wrong_below=130), "test part")
    assert small.error > small.by_chance
    assert "30 patients of 100 to 129 tiles (test part; up to " in str(small)
    assert "more than chance explains" in str(small)
    assert all(one.error <= one.by_chance for one in larger)


def test_few_patients_are_not_divided_and_a_measurement_has_no_calibration() -> None:
    assert len(by_size(answers(25), "x")) == 2
    assert not by_size(answers(19), "x")
    number = Target("regression", ("size",), ("size",))
    found = answers(60)
    assert not by_size(Answers(number, found.patients, found.truth, found.values[:, :1], found.novelty, found.tiles), "x")


def test_slides_of_one_size_are_not_divided_by_the_order_of_the_table() -> None:
    """Features of a trial (--max-tiles) are all of one size, and tables are often sorted by label."""
    found = answers(300)
    order = np.argsort(found.truth[:, 0], kind="stable")
    capped = replace(found.rows(order), tiles=np.full(300, 1000))
    assert not by_size(capped, "x")
    nearly = replace(capped, tiles=np.where(np.arange(300) % 9, 1000, 900))
    assert not any("more than chance" in str(one) for one in by_size(nearly, "x"))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_without_any_fault_one_cohort_in_twenty_is_above_chance(task: str) -> None:
    """Labels that always come together are the hardest to tell from a fault."""
    chance, alarms = np.random.default_rng(1), 0
    target = Target(
        task, ("a", "b") if task == "multilabel" else ("grade",), ("a", "b") if task == "multilabel" else ("a", "b", "c")
    )
    for _ in range(60):
        if task == "multilabel":
            values = np.repeat(chance.random((60, 1)), 2, 1)
            truth = (chance.random((60, 1)) < values).astype(np.float32)
        else:
            values = chance.dirichlet((1, 1, 1), 60)
            truth = np.eye(3, dtype=np.float32)[[chance.choice(3, p=row) for row in values]]
        found = Answers(target, tuple(map(str, range(60))), truth, values, np.zeros(60), np.arange(60))
        alarms += any(one.error > one.by_chance for one in by_size(found, "x"))
    assert alarms <= 8


def test_half_a_slide_is_answered_as_all_of_it(cohort: Path, tmp_path: Path) -> None:
    """The training cohort has slides of one size; an answer must not hang on it."""
    card = study(cohort / "labels.csv", cohort / "features", tmp_path / "model")
    assert card["by_size"] == []
    model, moved, right = load_model(tmp_path / "model"), [], []
    for folder, row in zip(OutFolder(cohort / "features").slides(), table(cohort), strict=True):
        stored = FeatureStore(folder, Path("slide.svs")).read()
        features, xy_um = torch.from_numpy(stored.features), torch.from_numpy(stored.xy.astype(np.float32))
        chance = [model.look(features[rows], xy_um[rows], 96.0).logits[0] for rows in (slice(0, 64), slice(0, 32), slice(32, 64))]
        whole, *halves = 1 / (1 + np.exp(-np.array(chance)))
        moved += [abs(whole - half) for half in halves]
        right.append((whole > 0.5) == (row["label"] == "tumour"))
    assert np.mean(right) > 0.9
    assert np.mean(moved) < 0.1


def test_card_and_evaluation_say_how_calibration_is_by_size(tmp_path: Path) -> None:
    chance, rows = np.random.default_rng(0), []
    for index in range(48):
        name, tumour = f"s{index:02d}", bool(index % 2)
        write_slide(tmp_path / "features", name, tumour, chance, count=64 if index % 3 else 32)
        part = ("train", "validation", "test", "test")[index // 12]
        rows.append({"slide": f"{name}.svs", "label": "tumour" if tumour else "normal", "patient": name, "split": part})
    labels = write_table(tmp_path / "labels.csv", rows)
    card = study(labels, tmp_path / "features", tmp_path / "model")
    assert [(one["part"], one["patients"]) for one in card["by_size"]] == [("test part", 12), ("test part", 12)]
    assert "* By the amount of tissue: calibration error" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    done = pathovit("evaluate", tmp_path / "model", labels, "--features", tmp_path / "features", "--out", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    assert "16 patients of 32 to" in done.stderr
    assert len(json.loads((tmp_path / "e" / "evaluation.json").read_text())["by_size"]) == 3
