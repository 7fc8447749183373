import csv
from pathlib import Path

import numpy as np
import pytest
from made_cohort import ONCE, study, table, write_slide, write_table

from pathovit.cohort import assign_folds, load_cohort, make_bag, split_patients
from pathovit.errors import SettingsError
from pathovit.features import SlideFeatures
from pathovit.manifest import read_manifest
from pathovit.targets import read_target


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
