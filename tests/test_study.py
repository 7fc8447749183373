import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import pathovit
from test_store import CHUNK

from pathovit.cohort import assign_folds, load_cohort, make_bag, split_patients
from pathovit.errors import SettingsError
from pathovit.features import SlideFeatures
from pathovit.manifest import read_manifest
from pathovit.settings import TileSpec
from pathovit.slide_model import load_model
from pathovit.store import FeatureStore, to_json, write_atomically
from pathovit.study import evaluate_model, train_model
from pathovit.targets import read_target
from pathovit.tiling import TileGrid
from pathovit.training import TrainSettings

DIM, SIDE = 6, 8
FAST = TrainSettings(epochs=8, width=32, depth=1, learning_rate=5e-3, patience=8)
ONCE = TrainSettings(epochs=1, width=32, depth=1)


def write_slide(features: Path, name: str, tumour: bool, chance: np.random.Generator, weights: str = "w") -> None:
    """A stored slide of 64 tiles; a tumour slide has a few tiles with a marked feature."""
    tiles = SIDE * SIDE
    place = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2) * 96
    spec = TileSpec(tile_px=96, mpp=1.0, stride_px=96)
    grid = TileGrid(name, spec, place, np.ones(tiles, np.float32), (96.0, 96.0), (96.0, 96.0), (0, 0), 0, (96, 96), 1.0, tiles)
    values = chance.normal(size=(tiles, DIM))
    if tumour:
        values[chance.integers(0, tiles, 12), 0] += 6
    recipe = {
        "encoder": {"encoder": "e", "weights_sha256": weights, "dim": DIM, "tile_px": 96},
        "tiles": {"mpp": 1.0, "stride_px": 96},
    }
    store = FeatureStore(features / "slides" / name, Path(f"{name}.svs"))
    store.create(grid, DIM, CHUNK, {"recipe": recipe, "mpp_x": 1.0, "mpp_y": 1.0, **grid.describe()})
    for chunk in range(tiles // CHUNK):
        store.write_chunk(chunk, values[chunk * CHUNK : (chunk + 1) * CHUNK].astype(np.float16), np.zeros(CHUNK, np.uint8))
    write_atomically(store.folder / "slide.json", to_json({"slide": {"file": f"{name}.svs"}, "finish_recipe": {}}))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 slides of 28 patients under features/, and labels.csv."""
    folder = tmp_path_factory.mktemp("cohort")
    chance = np.random.default_rng(0)
    rows = []
    for index in range(28):
        name = f"slide-{index:02d}"
        write_slide(folder / "features", name, bool(index % 2), chance)
        rows.append({"slide": f"{name}.svs", "label": "tumour" if index % 2 else "normal", "patient": f"p{index}"})
    write_table(folder / "labels.csv", rows)
    return folder


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def study(
    path: Path, features: Path, model: Path, settings: TrainSettings = FAST, target: str = "label", **options: Any
) -> dict[str, Any]:
    """What `pathovit train` does."""
    rows = read_manifest(path)
    asked = read_target(rows, target.split(","), options.pop("task", None), options.pop("positive", None))
    cohort = load_cohort(rows, asked, features, options.pop("group", None))
    return train_model(cohort, model, settings, **options)


def test_a_model_learns_from_slide_labels_and_shows_where(cohort: Path, tmp_path: Path) -> None:
    card = study(cohort / "labels.csv", cohort / "features", tmp_path / "model")
    assert card["metrics"]["test"]["auroc"]["value"] >= 0.9
    assert sum(card["patients"].values()) == 28
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "model.safetensors",
        "model.json",
        "MODEL_CARD.md",
        "training.png",
        "evaluation.png",
        "predictions.csv",
        "split.csv",
    }
    model = load_model(tmp_path / "model")
    slide = FeatureStore(cohort / "features" / "slides" / "slide-01", Path("slide-01.svs")).read("slide-01")
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
        FeatureStore(cohort / "features" / "slides" / "slide-01", Path("x")).read("slide-01"), 0.3
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
        load_model(tmp_path / "m")
        .predict(FeatureStore(cohort / "features" / "slides" / "slide-01", Path("x")).read("slide-01"))
        .value
        is not None
    )


def test_several_labels_at_once(cohort: Path, tmp_path: Path) -> None:
    path = with_columns(cohort, tmp_path / "l.csv", lambda i, row: {"tumour": str(i % 2), "third": str(int(i % 3 == 0))})
    card = study(path, cohort / "features", tmp_path / "m", target="tumour,third")
    assert card["target"]["task"] == "multilabel"
    answer = load_model(tmp_path / "m").predict(
        FeatureStore(cohort / "features" / "slides" / "slide-01", Path("x")).read("slide-01")
    )
    assert answer.tile_scores.shape == (64, 2)
    assert set(answer.columns()) == {"prob_tumour", "prob_third"}


def test_three_classes(cohort: Path, tmp_path: Path) -> None:
    path = with_columns(cohort, tmp_path / "l.csv", lambda i, row: {"label": "abc"[i % 3]})
    card = study(path, cohort / "features", tmp_path / "m", ONCE)
    assert card["target"]["task"] == "multiclass"
    assert card["metrics"]["test"]["balanced_accuracy"]["value"] is not None


def test_folds_answer_every_patient_once_and_are_not_fitted_twice(cohort: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    card = study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE, folds=3, on_epoch=lambda line: seen.append(1))
    assert card["cross_validation"]["folds"] == 3
    assert card["cross_validation"]["patients"] == 28
    assert len(seen) == 4  # three folds and the model of all patients
    with (tmp_path / "m" / "folds" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["patient"] for row in rows) == sorted(row["patient"] for row in table(cohort))
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
        assert load_model(tmp_path / "m" / "folds" / fold).encoder["weights_sha256"] == "another"


def test_a_split_column_may_not_cut_through_a_site(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["site"] = f"hospital {index % 7}"
        row["split"] = "test" if index == 0 else ""
    manifest = read_manifest(write_table(tmp_path / "l.csv", rows))
    asked = read_target(manifest, ["label"], None, None)
    parts = split_patients(load_cohort(manifest, asked, cohort / "features", "site"), 0.2, 0.0, seed=0)
    homes = {bag.group: name for name, part in parts.items() for bag in part}
    assert all(homes[bag.group] == name for name, part in parts.items() for bag in part)
    assert homes["hospital 0"] == "test"
    rows[7]["split"] = "train"  # of the same hospital as the first
    manifest = read_manifest(write_table(tmp_path / "l.csv", rows))
    with pytest.raises(SettingsError, match="Group 'hospital 0' is in two parts"):
        split_patients(load_cohort(manifest, asked, cohort / "features", "site"), 0.2, 0.0, seed=0)


def test_few_sites_can_still_be_cross_validated(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["site"] = f"hospital {index // 2 % 4}"
    path = write_table(tmp_path / "l.csv", rows)
    card = study(path, cohort / "features", tmp_path / "m", ONCE, folds=4, group="site")
    assert card["cross_validation"]["patients"] == 28
    with pytest.raises(SettingsError, match="4 groups are too few for 5 folds"):
        study(path, cohort / "features", tmp_path / "n", ONCE, folds=5, group="site")


def test_names_that_are_formulas_are_drawn_and_quoted(cohort: Path, tmp_path: Path) -> None:
    path = with_columns(
        cohort, tmp_path / "l.csv", lambda i, row: {"label": r"$\alpha_$" if i % 2 else "_benign", "patient": f"Doe, J{i}"}
    )
    study(path, cohort / "features", tmp_path / "m", ONCE)
    with (tmp_path / "m" / "split.csv").open() as file:
        assert {row["patient"] for row in csv.DictReader(file)} == {f"Doe, J{i}" for i in range(28)}


def test_sites_stay_in_one_fold(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["site"] = f"hospital {index // 2 % 7}"
    manifest = read_manifest(write_table(tmp_path / "l.csv", rows))
    asked = read_target(manifest, ["label"], None, None)
    loaded = load_cohort(manifest, asked, cohort / "features", "site")
    place = assign_folds(loaded.bags, asked, 3, seed=0)
    by_site: dict[str, set[int]] = {}
    for bag, fold in zip(loaded.bags, place, strict=True):
        by_site.setdefault(bag.group, set()).add(int(fold))
    assert len(by_site) == 7
    assert all(len(folds) == 1 for folds in by_site.values())
    assert len(set(place)) == 3


def test_parts_hold_the_classes_alike(cohort: Path) -> None:
    manifest = read_manifest(cohort / "labels.csv")
    asked = read_target(manifest, ["label"], None, None)
    parts = split_patients(load_cohort(manifest, asked, cohort / "features"), 0.2, 0.2, seed=3)
    for part in parts.values():
        share = np.mean([bag.truth[0] for bag in part])
        assert 0.3 < share < 0.7
    names = [bag.patient for part in parts.values() for bag in part]
    assert len(names) == len(set(names)) == 28


def test_an_evaluation_writes_predictions_pictures_and_says_what_was_seen(cohort: Path, tmp_path: Path) -> None:
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    manifest = read_manifest(cohort / "labels.csv")
    loaded = load_cohort(manifest, read_target(manifest, ["label"], None, None), cohort / "features")
    found = evaluate_model(tmp_path / "m", loaded, tmp_path / "e", None)
    assert found["patients"] == 28
    assert found["patients_it_learned_from"] == 28 - load_model(tmp_path / "m").card["patients"]["test"]
    assert {p.name for p in (tmp_path / "e").iterdir()} == {"predictions.csv", "evaluation.json", "evaluation.png"}
    with (tmp_path / "e" / "predictions.csv").open() as file:
        row = next(csv.DictReader(file))
    assert set(row) == {"patient", "true_tumour", "prob_normal", "prob_tumour", "novelty"}


def test_a_patients_slides_stay_together(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["patient"] = f"p{index % 2}-{index // 4}"  # two slides each, of one label
    path = write_table(tmp_path / "labels.csv", rows)
    card = study(path, cohort / "features", tmp_path / "model", ONCE)
    assert sum(card["patients"].values()) == 14
    with (tmp_path / "model" / "split.csv").open() as file:
        part = {row["slide_id"]: row["split"] for row in csv.DictReader(file)}
    by_patient: dict[str, set[str]] = {}
    for row in rows:
        by_patient.setdefault(row["patient"], set()).add(part[row["slide"].removesuffix(".svs")])
    assert all(len(parts) == 1 for parts in by_patient.values())


@pytest.mark.parametrize("side_um", [96.0, 128.0, 112.3])
def test_slides_of_one_patient_keep_every_tile_in_its_own_place(side_um: float) -> None:
    place = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) * side_um
    attributes = {"mpp_x": 1.0, "mpp_y": 1.0, "tile_l0": [side_um] * 2, "stride_l0": [side_um] * 2}
    ones = np.ones(400, np.float32)
    slide = SlideFeatures(
        "s", np.zeros((400, 2), np.float16), np.rint(place).astype(np.int64), ones, np.zeros(400, np.uint8), attributes
    )
    bag = make_bag("p", [slide, slide, slide], np.zeros(1, np.float32))
    places = np.rint((bag.xy_um - bag.xy_um.min(0).values).numpy() / bag.pitch_um)
    assert len(np.unique(places, axis=0)) == 1200
    assert (places[400:800] - places[:400] == places[400] - places[0]).all()
    assert (places[400] - places[0])[0] % 16 == 0  # the same windows as when it is alone


def test_one_stored_slide_is_not_two_patients(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    rows[2]["slide"], rows[2]["patient"] = "elsewhere/slide-00.svs", "another"
    with pytest.raises(SettingsError, match=r"Lines 2 and 4 both mean slide-00"):
        study(write_table(tmp_path / "l.csv", rows), cohort / "features", tmp_path / "model")


def test_a_split_column_is_obeyed(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["split"] = ("train", "validation", "test")[index // 2 % 3]
    path = write_table(tmp_path / "labels.csv", rows)
    study(path, cohort / "features", tmp_path / "model", ONCE)
    with (tmp_path / "model" / "split.csv").open() as file:
        part = {row["slide_id"]: row["split"] for row in csv.DictReader(file)}
    assert all(part[row["slide"].removesuffix(".svs")] == row["split"] for row in rows)


def spoil_label(rows: list[dict[str, str]]) -> None:
    for row in rows:
        row["label"] = "tumour"


def spoil_patient(rows: list[dict[str, str]]) -> None:
    rows[3]["patient"] = rows[2]["patient"]


def spoil_slide(rows: list[dict[str, str]]) -> None:
    rows[5]["slide"] = "elsewhere.svs"


def spoil_split(rows: list[dict[str, str]]) -> None:
    for row in rows:
        row["split"] = "trian"


def spoil_nan(rows: list[dict[str, str]]) -> None:
    rows[2]["label"] = "nan"


def spoil_classes(rows: list[dict[str, str]]) -> None:
    for row in rows[4:]:
        row["label"] = "normal"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_label, r"one label \(tumour\)"),
        (spoil_patient, r"Patient 'p2' has two values of label \(lines 4, 5"),
        (spoil_slide, r"1 slides have no finished features .*line 7: elsewhere.svs"),
        (spoil_nan, r"Line 4: label is 'nan'. Leave the cell empty"),
        (spoil_classes, r"Class 'tumour' has 2 patients, too few for a test part of one in 5"),
        (spoil_split, r"Line 2: split is 'trian'"),
    ],
)
def test_a_bad_table_gets_a_message_that_names_the_row(cohort: Path, tmp_path: Path, spoil, message: str) -> None:
    rows = table(cohort)
    spoil(rows)
    with pytest.raises(SettingsError, match=message):
        study(write_table(tmp_path / "l.csv", rows), cohort / "features", tmp_path / "model")


def test_an_unknown_target_offers_the_columns(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no column 'grade'. Choose one with --target: label"):
        study(cohort / "labels.csv", cohort / "features", tmp_path / "model", target="grade")


def test_features_of_two_encoders_are_not_mixed(cohort: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    for index in range(8):
        write_slide(tmp_path / "slides" / "..", f"s{index}", bool(index % 2), chance, weights="w" if index else "other")
    rows = [{"slide": f"s{index}.svs", "label": str(index % 2)} for index in range(8)]
    with pytest.raises(SettingsError, match="made by another encoder"):
        study(write_table(tmp_path / "l.csv", rows), tmp_path, tmp_path / "model")


def test_the_card_says_research_use_and_gives_intervals_only_where_it_can(cohort: Path, tmp_path: Path) -> None:
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    text = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "research use only" in text.lower()
    assert "Intended use" in text
    found = json.loads((tmp_path / "m" / "model.json").read_text())["metrics"]["test"]["auroc"]
    assert found["value"] is not None
    assert found["low"] is None  # six patients are too few for an interval


def test_train_evaluate_and_compare_from_the_command_line(cohort: Path, tmp_path: Path) -> None:
    options = ["--features", cohort / "features", "--epochs", "2"]
    for kind in ("slide_transformer", "mean"):
        done = pathovit("train", cohort / "labels.csv", *options, "--model", tmp_path / kind, "--kind", kind)
        assert done.returncode == 0, done.stderr
        assert "AUROC" in done.stdout
        assert "epoch   2" in done.stderr
        done = pathovit(
            "evaluate",
            tmp_path / kind,
            cohort / "labels.csv",
            "--features",
            cohort / "features",
            "--out",
            tmp_path / f"{kind}-e",
            "--json",
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads((tmp_path / f"{kind}-e" / "evaluation.json").read_text())
        assert json.loads(done.stdout)["patients"] == 28
        assert "learned from" in done.stderr
    done = pathovit("compare", tmp_path / "mean-e", tmp_path / "slide_transformer-e")
    assert done.returncode == 0, done.stderr
    assert "28 patients; a = mean, b = slide_transformer" in done.stdout
    assert "b - a" in done.stdout
    again = pathovit("train", cohort / "labels.csv", *options, "--model", tmp_path / "mean")
    assert again.returncode == 2
    assert "there is a model here already" in again.stderr


def test_a_model_without_evidence_draws_no_heatmap(cohort: Path, tmp_path: Path, squares: Path) -> None:
    pytest.importorskip("torchmil", reason="the baselines come from torchmil")
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", replace(ONCE, kind="transmil"))
    done = pathovit("run", squares, "--model", tmp_path / "m", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "says nothing of single tiles" in done.stderr
