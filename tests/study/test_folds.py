"""Cross-validation, and cohorts of few patients."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_cohort import ONCE, study, table, write_slide, write_table
from typer.testing import CliRunner

from pathovit.cli import app, commands  # noqa: F401  # registers them
from pathovit.cli.train import _forget_folds
from pathovit.manifest import read_manifest
from pathovit.model.slide_model import load_model
from pathovit.model.targets import read_target
from pathovit.outputs.names import Names
from pathovit.study.cohort import load_cohort
from pathovit.study.parts import assign_folds, split_patients
from pathovit.study.study import _workable_folds


@pytest.fixture(autouse=True)
def _quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested in test_evaluation.py; here a hundred draws will do for those made in this process."""
    monkeypatch.setattr("pathovit.study.evaluation.BOOTSTRAPS", 100)


def test_folds_answer_every_patient_once_and_are_not_fitted_twice(cohort: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    card = study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE, folds=3, on_epoch=lambda line: seen.append(1))
    assert card["cross_validation"]["folds"] == 3
    assert card["cross_validation"]["patients"] == 28
    assert len(seen) == 4  # three folds and the model of all patients
    with (tmp_path / "m" / "folds" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = Names.read(tmp_path / "m")
    assert sorted(names.patient_of(row["patient"]) for row in rows) == sorted(row["patient"] for row in table(cohort))
    (tmp_path / "m" / "model.json").unlink()
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE, folds=3, on_epoch=lambda line: seen.append(1))
    assert len(seen) == 5


def test_folds_of_other_features_are_fitted_anew(cohort: Path, tmp_path: Path) -> None:
    """A fold is known by what it was made from: the same table over other features must not find the old one done."""
    chance = np.random.default_rng(5)
    for index in range(28):
        write_slide(tmp_path / "other", f"slide-{index:02d}", bool(index % 2), chance, weights="another")
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE, folds=2)
    (tmp_path / "m" / "model.json").unlink()
    study(cohort / "labels.csv", tmp_path / "other", tmp_path / "m", ONCE, folds=2)
    for fold in ("1", "2"):
        assert load_model(tmp_path / "m" / "folds" / fold).card.trained.weights_sha256 == "another"


def test_few_sites_can_still_be_cross_validated(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["site"] = f"hospital {index // 2 % 4}"
    path = write_table(tmp_path / "l.csv", rows)
    said: list[str] = []
    card = study(path, cohort / "features", tmp_path / "m", ONCE, folds=5, group="site", say=said.append)
    assert card["cross_validation"]["patients"] == 28
    assert card["cross_validation"]["folds"] == 4
    assert "too few patients for 5 folds: 4 are made" in said


def test_few_patients_are_each_held_out_once_and_the_card_says_what_they_can_show(cohort: Path, tmp_path: Path) -> None:
    rows = [*table(cohort)[:6]]
    said: list[str] = []
    card = study(write_table(tmp_path / "l.csv", rows), cohort / "features", tmp_path / "m", ONCE, folds=None, say=said.append)
    assert said[0] == "6 patients: too few for a test part that tells anything, so that each is held out once"
    assert card["cross_validation"]["patients"] == 6
    assert set(card["metrics"]) == {"train", "validation"}
    text = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "| AUROC | train (learned from) | 4 |" in text
    assert "cross-validation, 6 patients: a model that knows nothing reaches an AUROC of 1.0 on them once in 20 times" in text
    assert "39% of all patients may still be answered wrongly" in text
    assert "Abstention (cross-validation): at an error rate of 0.1" in text


def test_five_patients_make_a_model_without_figures_of_unseen_ones(cohort: Path, tmp_path: Path) -> None:
    said: list[str] = []
    rows = table(cohort)[:5]  # two of them with tumour
    card = study(write_table(tmp_path / "l.csv", rows), cohort / "features", tmp_path / "m", ONCE, folds=None, say=said.append)
    assert card["cross_validation"] is None
    assert card["patients"] == {"train": 3, "validation": 2, "test": 0}
    assert "too few patients for 5 folds: none is made, and no figure is of unseen patients" in said


def test_labels_that_fewer_folds_allow_are_folded_by_fewer(cohort: Path, tmp_path: Path) -> None:
    """Three labels, one of which few patients have: what the folds leave decides, not a count of patients."""
    rows = [
        {"slide": row["slide"], "a": str(i % 2), "b": str(i // 2 % 2), "c": str(int(i in (3, 11, 20)))}
        for i, row in enumerate(table(cohort))
    ]
    manifest = read_manifest(write_table(tmp_path / "l.csv", rows))
    loaded = load_cohort(manifest, read_target(manifest, ["a", "b", "c"], None, None), cohort / "features")
    for seed in range(10):
        folds = _workable_folds(loaded, replace(ONCE, seed=seed), 5)
        place = assign_folds(loaded.bags, loaded.target, folds, seed) if folds else np.zeros(28)
        for fold in range(folds):
            rest = replace(loaded, bags=tuple(bag for bag, at in zip(loaded.bags, place, strict=True) if at != fold))
            assert split_patients(rest, 0.2, 0.0, seed)["validation"]


def test_an_overwrite_that_was_interrupted_goes_on_with_its_folds(tmp_path: Path) -> None:
    def write(path: Path, when: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (when, when))

    folds = tmp_path / "folds"
    write(tmp_path / "model.json", 200)
    write(folds / "1" / "model.json", 300)
    write(folds / "2" / "model.json", 100)
    _forget_folds(tmp_path)
    assert [path.name for path in folds.iterdir()] == ["1"]
    (folds / "2").mkdir()
    write(folds / "2" / "training.ckpt", 150)
    write(folds / "1" / "model.json", 100)
    _forget_folds(tmp_path)
    assert [path.name for path in folds.iterdir()] == ["2"], "its epochs are gone on with"
    (folds / "2" / "training.ckpt").unlink()
    (folds / "2").rmdir()
    write(tmp_path / "model.json", 400)
    _forget_folds(tmp_path)
    assert not folds.exists()
    write(folds / "1" / "model.json", 300)
    (tmp_path / "model.json").unlink()
    _forget_folds(tmp_path)
    assert (folds / "1").is_dir(), "the first training was interrupted: there is nothing to replace"


def test_of_two_columns_of_parts_one_has_to_be_named(cohort: Path, tmp_path: Path) -> None:
    rows = [
        {**row, "fold_0": "train" if at % 2 else "test", "fold_1": "test" if at % 2 else "train"}
        for at, row in enumerate(table(cohort))
    ]
    path = write_table(tmp_path / "l.csv", rows)
    words = [
        "train",
        str(path),
        "--features",
        str(cohort / "features"),
        "--model",
        str(tmp_path / "m"),
        "--kind",
        "mean",
        "--epochs",
        "1",
    ]
    refused = CliRunner().invoke(app, words)
    assert "The columns fold_0 and fold_1 each say which part a slide is in" in str(refused.exception)
    assert CliRunner().invoke(app, [*words, "--folds", "2"]).exit_code == 0
    judged = ["evaluate", str(tmp_path / "m"), str(path), "--features", str(cohort / "features"), "--out", str(tmp_path / "e")]
    assert CliRunner().invoke(app, judged).exit_code == 0
