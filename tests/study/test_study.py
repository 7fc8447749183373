import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import pathovit
from made_cohort import FAST, ONCE, study, table, write_table
from typer.testing import CliRunner, Result

from pathovit.cli import app, commands  # noqa: F401  # registers them
from pathovit.errors import OutputInUseError, SettingsError
from pathovit.machine import MANY_TILES, allowed_cores, threads_for
from pathovit.manifest import read_manifest
from pathovit.model.aggregator import TileEvidence
from pathovit.model.baselines import MeanPool
from pathovit.model.card import read_card, require_evidence
from pathovit.model.own_kinds import _REGISTERED
from pathovit.model.slide_model import load_model
from pathovit.model.targets import read_target
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.lease import lease
from pathovit.outputs.names import PRIVATE
from pathovit.outputs.store import FeatureStore
from pathovit.settings import TrainSettings
from pathovit.study.cohort import load_cohort
from pathovit.study.evaluate import evaluate_model
from pathovit.study.judge import abstention, answer


@pytest.fixture(autouse=True)
def _quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested in test_evaluation.py; here a hundred draws will do for those made in this process."""
    monkeypatch.setattr("pathovit.study.evaluation.BOOTSTRAPS", 100)


def test_a_model_learns_from_slide_labels_and_shows_where(cohort: Path, tmp_path: Path) -> None:
    card = study(cohort / "labels.csv", cohort / "features", tmp_path / "model")
    assert card["metrics"]["test"]["auroc"]["value"] >= 0.9
    assert sum(card["patients"].values()) == 28
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        PRIVATE,
        "model.safetensors",
        "model.json",
        "MODEL_CARD.md",
        "training.png",
        "evaluation.png",
        "predictions.csv",
        "split.csv",
    }
    model = load_model(tmp_path / "model")
    slide = FeatureStore(OutFolder(cohort / "features").slide("slide-01"), Path("x")).read()
    answer = model.predict(slide)
    marked = slide.features[:, 0] > 3
    assert answer.tile_scores[marked, 0].min() > np.median(answer.tile_scores[~marked, 0])
    assert not answer.strange
    assert card["heatmap_check"]["largest_sum_error"] < 1e-4


def test_the_same_seed_gives_the_same_model(cohort: Path, tmp_path: Path) -> None:
    fast = TrainSettings(epochs=2, width=32, depth=1)
    for name in ("a", "b"):
        study(cohort / "labels.csv", cohort / "features", tmp_path / name, fast)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_model(cohort: Path, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=4, width=32, depth=1)
    study(cohort / "labels.csv", cohort / "features", tmp_path / "whole", settings)
    seen: list[float] = []

    def stop(line: dict[str, float]) -> None:
        seen.append(line["epoch"])
        if len(seen) == 3:
            raise Killed

    with pytest.raises(Killed):
        study(cohort / "labels.csv", cohort / "features", tmp_path / "halves", settings, on_epoch=stop)
    assert (tmp_path / "halves" / "training.ckpt").is_file()
    assert not (tmp_path / "halves" / "model.json").exists()
    study(
        cohort / "labels.csv",
        cohort / "features",
        tmp_path / "halves",
        settings,
        on_epoch=lambda line: seen.append(line["epoch"]),
    )
    assert seen == [1, 2, 3, 1, 2, 3, 4]  # two epochs were kept, and are shown again; the third was lost
    assert not (tmp_path / "halves" / "training.ckpt").exists()
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(cohort: Path, tmp_path: Path) -> None:
    def stop(line: dict[str, float]) -> None:
        if line["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        study(cohort / "labels.csv", cohort / "features", tmp_path / "m", FAST, on_epoch=stop)
    seen: list[float] = []
    other = replace(FAST, epochs=2, seed=1)
    for folder in ("m", "n"):  # over the checkpoint, and where there is none
        study(
            cohort / "labels.csv",
            cohort / "features",
            tmp_path / folder,
            other,
            on_epoch=lambda line: seen.append(line["train_loss"]),
        )
    assert seen[:2] == seen[2:]


@pytest.mark.parametrize("kind", ["mean", "abmil", "clam_sb", "transformer", "transmil"])
def test_the_yardsticks_train_on_the_same_interface(cohort: Path, tmp_path: Path, kind: str) -> None:
    if kind != "mean":
        pytest.importorskip("torchmil", reason="the baselines come from torchmil")
    card = study(cohort / "labels.csv", cohort / "features", tmp_path / "m", replace(ONCE, kind=kind))
    assert card["config"]["kind"] == kind
    assert card["metrics"]["test"]["auroc"]["value"] is not None
    assert ("remark" in card["heatmap_check"]) == (kind == "transmil")


def with_columns(cohort: Path, path: Path, make: Callable[[int, dict[str, str]], dict[str, str]]) -> Path:
    """The table with other columns; tumour slides have odd numbers."""
    return write_table(path, [{"slide": row["slide"], **make(i, row)} for i, row in enumerate(table(cohort))])


def test_a_measurement_is_learned_and_has_intervals(cohort: Path, tmp_path: Path) -> None:
    path = with_columns(cohort, tmp_path / "l.csv", lambda i, row: {"age": str(40 + 30 * (i % 2) + i / 10)})
    card = study(path, cohort / "features", tmp_path / "m", replace(FAST, epochs=30), target="age")
    assert card["target"]["task"] == "regression"
    assert card["metrics"]["test"]["r2"]["value"] > 0.3
    answer = load_model(tmp_path / "m").predict(
        FeatureStore(OutFolder(cohort / "features").slide("slide-01"), Path("x")).read(), 0.3
    )
    assert answer.value is not None
    assert 40 < answer.value < 80
    assert answer.interval is not None
    assert answer.interval[0] < answer.value < answer.interval[1]


def test_survival_is_learned(cohort: Path, tmp_path: Path) -> None:
    pytest.importorskip("lifelines", reason="survival comes from lifelines")
    path = with_columns(
        cohort, tmp_path / "l.csv", lambda i, row: {"months": str(10 + i if i % 2 else 60 + i), "died": str(int(i % 4 != 0))}
    )
    card = study(path, cohort / "features", tmp_path / "m", target="months,died")
    assert card["target"]["task"] == "survival"
    assert card["metrics"]["test"]["c_index"]["value"] > 0.7
    assert (
        load_model(tmp_path / "m").predict(FeatureStore(OutFolder(cohort / "features").slide("slide-01"), Path("x")).read()).value
        is not None
    )


def test_several_labels_at_once(cohort: Path, tmp_path: Path) -> None:
    path = with_columns(cohort, tmp_path / "l.csv", lambda i, row: {"tumour": str(i % 2), "third": str(int(i % 3 == 0))})
    card = study(path, cohort / "features", tmp_path / "m", target="tumour,third")
    assert card["target"]["task"] == "multilabel"
    answer = load_model(tmp_path / "m").predict(FeatureStore(OutFolder(cohort / "features").slide("slide-01"), Path("x")).read())
    assert answer.tile_scores.shape == (64, 2)
    assert set(answer.columns()) == {"prob_tumour", "prob_third"}


def test_three_classes(cohort: Path, tmp_path: Path) -> None:
    path = with_columns(cohort, tmp_path / "l.csv", lambda i, row: {"label": "abc"[i % 3]})
    card = study(path, cohort / "features", tmp_path / "m", ONCE)
    assert card["target"]["task"] == "multiclass"
    assert card["metrics"]["test"]["balanced_accuracy"]["value"] is not None


def test_names_that_are_formulas_are_drawn_and_quoted(cohort: Path, tmp_path: Path) -> None:
    path = with_columns(
        cohort, tmp_path / "l.csv", lambda i, row: {"label": r"$\alpha_$" if i % 2 else "_benign", "patient": f"Doe, J{i}"}
    )
    study(path, cohort / "features", tmp_path / "m", ONCE, keep_names=True)
    with (tmp_path / "m" / "split.csv").open() as file:
        assert {row["patient"] for row in csv.DictReader(file)} == {f"Doe, J{i}" for i in range(28)}


def test_an_evaluation_writes_predictions_pictures_and_says_what_was_seen(cohort: Path, tmp_path: Path) -> None:
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    manifest = read_manifest(cohort / "labels.csv")
    loaded = load_cohort(manifest, read_target(manifest, ["label"], None, None), cohort / "features")
    found = evaluate_model(tmp_path / "m", loaded, tmp_path / "e", None)
    assert found.patients == 28
    assert found.patients_it_learned_from == 28 - load_model(tmp_path / "m").card.values["patients"]["test"]
    assert {p.name for p in (tmp_path / "e").iterdir()} == {"predictions.csv", "evaluation.json", "evaluation.png", PRIVATE}
    with (tmp_path / "e" / "predictions.csv").open() as file:
        row = next(csv.DictReader(file))
    assert set(row) == {"patient", "true_tumour", "prob_normal", "prob_tumour", "novelty"}


def test_the_card_says_research_use_and_gives_intervals_only_where_it_can(cohort: Path, tmp_path: Path) -> None:
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    text = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "research use only" in text.lower()
    assert "Intended use" in text
    found = json.loads((tmp_path / "m" / "model.json").read_text())["metrics"]["test"]["auroc"]
    assert found["value"] is not None
    assert found["low"] is None  # six patients are too few for an interval


def test_train_evaluate_and_compare_from_the_command_line(cohort: Path, tmp_path: Path) -> None:
    """In this process, with few draws; `test_run.py` has each command in a process of its own."""

    def call(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    options = ["--features", cohort / "features", "--epochs", "2", "--folds", "0"]
    for kind in ("slide_transformer", "mean"):
        done = call("train", cohort / "labels.csv", *options, "--model", tmp_path / kind, "--kind", kind)
        assert done.exit_code == 0, done.stderr
        assert "AUROC" in done.stdout
        assert "epoch   2" in done.stderr
        asked = ["--features", cohort / "features", "--out", tmp_path / f"{kind}-e", "--json"]
        done = call("evaluate", tmp_path / kind, cohort / "labels.csv", *asked)
        assert done.exit_code == 0, done.stderr
        found, _ = json.JSONDecoder().raw_decode(done.stdout)
        assert found == json.loads((tmp_path / f"{kind}-e" / "evaluation.json").read_text())
        assert found["patients"] == 28
        assert "learned from" in done.stderr
    done = call("compare", tmp_path / "mean-e", tmp_path / "slide_transformer-e")
    assert done.exit_code == 0, done.stderr
    assert "28 patients; a = mean, b = slide_transformer" in done.stdout
    assert "b - a" in done.stdout
    again = call("train", cohort / "labels.csv", *options, "--model", tmp_path / "mean")
    assert isinstance(again.exception, SettingsError)
    assert "there is a model here already" in str(again.exception)


def test_a_model_without_evidence_draws_no_heatmap(cohort: Path, tmp_path: Path, squares: Path) -> None:
    pytest.importorskip("torchmil", reason="the baselines come from torchmil")
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", replace(ONCE, kind="transmil"))
    done = pathovit("run", squares, "--model", tmp_path / "m", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "says nothing of single tiles" in done.stderr


class Silent(MeanPool):
    """An aggregator of one's own that says nothing of single tiles."""

    def forward(self, features: torch.Tensor, xy_um: torch.Tensor, pitch_um: float) -> TileEvidence:
        found = super().forward(features, xy_um, pitch_um)
        return replace(found, evidence=torch.full_like(found.evidence, torch.nan))


def test_an_aggregator_without_evidence_is_known_by_what_it_says(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its name: the map of one's own kind would be drawn empty, without a word."""
    monkeypatch.setitem(_REGISTERED, "silent", Silent)
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", replace(ONCE, kind="silent"))
    with pytest.raises(SettingsError, match="says nothing of single tiles"):
        require_evidence(read_card(tmp_path / "m")[1], "m")


def test_unsure_is_counted_by_the_rule_of_predict(cohort: Path, tmp_path: Path) -> None:
    """Every slide is made strange to the model; then predict answers none, and the evaluation counts all as unsure."""
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    model = load_model(tmp_path / "m")
    assert model.novelty
    strict = replace(model, novelty=replace(model.novelty, slide_limit=np.float32(1e-9), stray=np.float32(0)))
    manifest = read_manifest(cohort / "labels.csv")
    bags = load_cohort(manifest, read_target(manifest, ["label"], None, None), cohort / "features").bags
    found = abstention(strict, answer(strict, bags))
    assert (found.unsure, found.strange, found.coverage) == (1.0, 1.0, None)
    usual = abstention(model, answer(model, bags))
    assert usual.unsure >= usual.unsure_by_probability == found.unsure_by_probability
    for bag in bags[:6]:
        slide = FeatureStore(OutFolder(cohort / "features").slide(bag.slides[0]), Path("x.svs")).read()
        assert strict.predict(slide).answer == "outside"


def test_a_promise_that_is_not_kept_is_told(cohort: Path, tmp_path: Path) -> None:
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    model = load_model(tmp_path / "m")
    sure = replace(
        model, calibration=replace(model.calibration, conformity=(((0.0,) * 50, (0.0,) * 50),))
    )  # rules out everything
    manifest = read_manifest(cohort / "labels.csv")
    bags = load_cohort(manifest, read_target(manifest, ["label"], None, None), cohort / "features").bags
    assert abstention(sure, answer(sure, bags)).remark == (
        "90% were promised, and 0% came out: the promise does not hold on these patients"
    )
    assert "90% were promised" in str(abstention(sure, answer(sure, bags)))


def test_two_trainings_do_not_share_a_folder(cohort: Path, tmp_path: Path) -> None:
    with lease(tmp_path / "m"):
        command = ["train", cohort / "labels.csv", "--features", cohort / "features", "--model", tmp_path / "m", "--epochs", "1"]
        done = CliRunner().invoke(app, [str(word) for word in command])
    assert isinstance(done.exception, OutputInUseError)
    assert "another run is writing here" in str(done.exception)
    assert not (tmp_path / "m" / "model.json").exists()


def test_threads_are_taken_where_a_bag_is_large() -> None:
    before = torch.get_num_threads()
    with threads_for(100):
        assert torch.get_num_threads() == 1
    with threads_for(MANY_TILES):
        assert torch.get_num_threads() == allowed_cores()
    assert torch.get_num_threads() == before


def test_a_class_the_model_does_not_know_is_named_by_evaluate(cohort: Path, tmp_path: Path) -> None:
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    rows = table(cohort)
    rows[3]["label"] = "atypical"
    path = write_table(tmp_path / "l.csv", rows)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "m"), str(path), "--features", str(cohort / "features")])
    assert "Line 5: label is 'atypical'; the model knows normal, tumour" in str(done.exception)


def test_a_part_is_asked_for_in_any_spelling(cohort: Path, tmp_path: Path) -> None:
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    parts = ("train", "val", "Testing")
    path = write_table(tmp_path / "l.csv", [{**row, "split": parts[at % 3]} for at, row in enumerate(table(cohort))])

    def judged(split: str) -> Result:
        words = ["evaluate", str(tmp_path / "m"), str(path), "--features", str(cohort / "features"), "--split", split]
        return CliRunner().invoke(app, [*words, "--out", str(tmp_path / split)])

    assert judged("Val").exit_code == 0
    assert len((tmp_path / "Val" / "predictions.csv").read_text().splitlines()) == 1 + 9
    assert "No patient of the table is in split 'fold 3'" in str(judged("fold 3").exception)
