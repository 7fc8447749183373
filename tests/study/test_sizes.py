"""Whether probabilities hold whatever the amount of tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from made_cohort import study, table

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
    found = by_size(answers(90))
    assert [(one.fewest, one.most, one.patients) for one in found] == [(100, 129, 30), (130, 159, 30), (160, 189, 30)]
    assert all(one.error <= one.by_chance for one in found)
    assert not any("more than chance" in str(one) for one in found)


def test_answers_that_hold_on_large_slides_alone_are_told() -> None:
    small, *larger = by_size(answers(90, wrong_below=130))
    assert small.error > small.by_chance
    assert "30 patients of 100 to 129 tiles" in str(small)
    assert "more than chance explains" in str(small)
    assert all(one.error <= one.by_chance for one in larger)


def test_few_patients_are_not_divided_and_a_measurement_has_no_calibration() -> None:
    assert len(by_size(answers(25))) == 2
    assert not by_size(answers(19))
    number = Target("regression", ("size",), ("size",))
    found = answers(60)
    assert not by_size(Answers(number, found.patients, found.truth, found.values[:, :1], found.novelty, found.tiles))


def test_half_a_slide_is_answered_as_all_of_it(cohort: Path, tmp_path: Path) -> None:
    """The training cohort has slides of one size; an answer must not hang on it."""
    card = study(cohort / "labels.csv", cohort / "features", tmp_path / "model", folds=2)
    assert [one["patients"] for one in card["by_size"]] == [14, 14]
    model, moved = load_model(tmp_path / "model"), []
    for folder in OutFolder(cohort / "features").slides():
        stored = FeatureStore(folder, Path("slide.svs")).read()
        features, xy_um = torch.from_numpy(stored.features), torch.from_numpy(stored.xy.astype(np.float32))
        chance = [model.look(features[rows], xy_um[rows], 96.0).logits[0] for rows in (slice(0, 64), slice(0, 32), slice(32, 64))]
        whole, *halves = 1 / (1 + np.exp(-np.array(chance)))
        moved += [abs(whole - half) for half in halves]
    assert len(moved) == 2 * len(table(cohort))
    assert np.mean(moved) < 0.1
