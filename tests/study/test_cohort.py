import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import made_features
from made_cohort import ONCE, study, table, write_slide, write_table

from pathovit.errors import SettingsError
from pathovit.manifest import ManifestRow, read_manifest
from pathovit.model.targets import Target, read_target
from pathovit.outputs.fingerprints import path_key
from pathovit.outputs.folder import OutFolder
from pathovit.study.cohort import Cohort, cohort_digest, find_features, load_cohort, make_bag
from pathovit.study.parts import assign_folds, fewest, possible_folds, split_patients


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
    slide = made_features(np.rint(place).astype(np.int64), np.zeros((400, 2), np.float16), grid={"tile": side_um})
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
    for row in rows[2:]:
        row["label"] = "normal"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_label, r"one label \(tumour\)"),
        (spoil_patient, r"Patient 'p2' has two values of label \(lines 4, 5"),
        (spoil_slide, r"1 slide has no finished features .*line 7: elsewhere.svs"),
        (spoil_nan, r"Line 4: label is 'nan'. Leave the cell empty"),
        (spoil_classes, r"28 patients \(normal 27, tumour 1\): too few. At least two patients of every class"),
        (spoil_split, r"line 2: split is 'trian'"),
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
    with pytest.raises(
        SettingsError,
        match=r"s1.svs were made otherwise than those of s0.svs \(encoder.weights_sha256: other in s0.svs, w in s1.svs\)",
    ):
        study(write_table(tmp_path / "l.csv", rows), tmp_path, tmp_path / "model")


def find(cohort: Path, folder: Path, *names: str) -> tuple[list[str], list[str]]:
    """Slides that the names of a table are taken for, and what is said of it."""
    said: list[str] = []
    path = write_table(folder / "l.csv", [{"slide": name, "label": "x"} for name in names])
    return [
        found.name for found in find_features(read_manifest(path), OutFolder(cohort / "features"), said.append).values()
    ], said


def test_only_suffixes_of_slides_are_cut_from_a_name(cohort: Path, tmp_path: Path) -> None:
    assert find(cohort, tmp_path, "slide-01.svs", "slide-02") == (["slide-01", "slide-02"], [])
    with pytest.raises(SettingsError, match=r"1 slide has no finished features .*slide-01.3 \(did you mean slide-"):
        find(cohort, tmp_path, "slide-01.3")


def test_other_spellings_are_matched_and_said(cohort: Path, tmp_path: Path) -> None:
    found, said = find(cohort, tmp_path, "SLIDE-03.SVS", "slide-04.ndpi")
    assert found == ["slide-03", "slide-04"]
    assert said == ["2 rows are matched in another spelling: line 2, SLIDE-03.SVS: slide-03, line 3, slide-04.ndpi: slide-04"]


def test_a_patient_is_not_cut_at_a_dot(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    for name in ("P10", "P10.2"):
        write_slide(tmp_path, name, name == "P10", chance)
    rows = read_manifest(
        write_table(tmp_path / "l.csv", [{"slide": "P10.svs", "label": "a"}, {"slide": "P10.2.svs", "label": "b"}])
    )
    said: list[str] = []
    cohort = load_cohort(rows, read_target(rows, ["label"], None, None), tmp_path, say=said.append)
    assert [bag.patient for bag in cohort.bags] == ["P10", "P10.2"]
    assert said == ["no column of patients (found: slide, label): every slide counts as a patient of its own"]


def test_a_row_with_a_folder_means_the_slide_that_was_embedded_from_there(tmp_path: Path) -> None:
    features, digest = tmp_path / "features", "ab" * 32
    for folder, name in (("siteA", f"S01-{digest[:12]}"), ("siteB", "S01-ffffffffffff")):
        write_slide(features, name, True, np.random.default_rng(1), file="S01.svs")
        (tmp_path / folder).mkdir()
    (tmp_path / "siteA/S01.svs").write_bytes(b"a")
    note = features / ".fingerprints" / f"{path_key(tmp_path / 'siteA/S01.svs')}.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"state": [], "sha256": digest}))
    assert find(tmp_path, tmp_path, "siteA/S01.svs")[0] == [f"S01-{digest[:12]}"]
    (tmp_path / "siteC").mkdir()
    (tmp_path / "siteC/S01.svs").write_bytes(b"c")  # another slide of that name, never embedded
    with pytest.raises(SettingsError, match="1 slide has no finished features"):
        find(tmp_path, tmp_path, "siteC/S01.svs")
    with pytest.raises(SettingsError, match=r"Line 2: S01.svs can mean S01-abab.*, S01-ffff"):
        find(tmp_path, tmp_path, "S01.svs")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"tissue": {"drop_pen": False}}, r"tissue.drop_pen: True in s0.svs, False in s4.svs"),
        ({"tiles": {"mpp": 1.0, "stride_px": 96, "min_coverage": 0.75}}, "tiles.min_coverage: 0.25 in s0.svs, 0.75 in s4.svs"),
    ],
)
def test_features_made_otherwise_are_refused_by_name_and_setting(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    chance = np.random.default_rng(1)
    for index in range(8):
        usual = {"tissue": {"drop_pen": True}, "tiles": {"mpp": 1.0, "stride_px": 96, "min_coverage": 0.25}}
        write_slide(tmp_path, f"s{index}", bool(index % 2), chance, **(usual | (other if index == 4 else {})))
    rows = [{"slide": f"s{index}.svs", "label": str(index % 2)} for index in range(8)]
    with pytest.raises(SettingsError, match=f"s4.svs were made otherwise than those of s0.svs .*{said}"):
        study(write_table(tmp_path / "l.csv", rows), tmp_path, tmp_path / "model")


def capped(tmp_path: Path, cap: int) -> Cohort:
    """Slides of 64 tiles, one of which is what a cap left of a larger one."""
    chance = np.random.default_rng(1)
    for index in range(8):
        more = {"embed": {"max_tiles": cap}, "total": 100} if index == 4 else {}
        write_slide(tmp_path / "features", f"s{index}", bool(index % 2), chance, **more)
    rows = [{"slide": f"s{index}.svs", "label": str(index % 2)} for index in range(8)]
    return loaded(tmp_path, tmp_path, rows)


def test_slides_cut_by_a_cap_stand_beside_those_that_have_no_more_tiles_alone(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"s0.svs were made otherwise than those of s4.svs \(max_tiles: 32 in s4.svs, None in s0.svs\)"
    ):
        capped(tmp_path / "a", 32)
    assert capped(tmp_path / "b", 64).recipe["max_tiles"] == 64


def test_slides_of_one_name_in_two_folders_are_two_patients(tmp_path: Path) -> None:
    for name in ("S01-aaaaaaaaaaaa", "S01-bbbbbbbbbbbb"):
        write_slide(tmp_path / "features", name, name.endswith("a"), np.random.default_rng(1), file="S01.svs")
    rows = [{"slide": "S01-aaaaaaaaaaaa", "label": "x"}, {"slide": "S01-bbbbbbbbbbbb", "label": "y"}]
    assert len(loaded(tmp_path, tmp_path, rows).bags) == 2


def loaded(cohort: Path, folder: Path, rows: list[dict[str, str]]) -> Cohort:
    manifest = read_manifest(write_table(folder / "l.csv", rows))
    return load_cohort(manifest, read_target(manifest, ["label"], None, None), cohort / "features")


def test_a_test_part_that_the_table_names_is_all_of_it(cohort: Path, tmp_path: Path) -> None:
    rows = [row | {"split": "Test" if index < 6 else ""} for index, row in enumerate(table(cohort))]
    parts = split_patients(loaded(cohort, tmp_path, rows), 0.2, 0.2, seed=0)
    assert {bag.patient for bag in parts["test"]} == {f"p{index}" for index in range(6)}
    assert len(parts["train"]) + len(parts["validation"]) == 22


def test_without_a_validation_part_it_is_cut_from_the_training_part(cohort: Path, tmp_path: Path) -> None:
    rows = [row | {"split": "test" if index < 6 else "training"} for index, row in enumerate(table(cohort))]
    said: list[str] = []
    parts = split_patients(loaded(cohort, tmp_path, rows), 0.2, 0.2, 0, said.append)
    assert len(parts["test"]) == 6
    assert len(parts["validation"]) >= 4
    assert said == ["the column `split` names no validation part: it is cut from the training part"]


def test_a_training_part_that_is_named_in_part_is_refused(cohort: Path, tmp_path: Path) -> None:
    rows = [row | {"split": "train" if index < 20 else ""} for index, row in enumerate(table(cohort))]
    with pytest.raises(SettingsError, match="8 patients have no part in the column `split`, and others do: p20, p21"):
        split_patients(loaded(cohort, tmp_path, rows), 0.2, 0.2, seed=0)


@pytest.mark.parametrize(("normal", "tumour", "folds"), [(3, 2, 0), (2, 2, 0), (3, 3, 5), (7, 3, 5), (5, 5, 5)])
def test_few_patients_are_split_and_folded_with_what_they_have(
    cohort: Path, tmp_path: Path, normal: int, tumour: int, folds: int
) -> None:
    by_label = {label: [row for row in table(cohort) if row["label"] == label] for label in ("normal", "tumour")}
    few = loaded(cohort, tmp_path, by_label["normal"][:normal] + by_label["tumour"][:tumour])
    assert possible_folds(few.bags, few.target, 5) == folds
    parts = split_patients(few, 0.2, 0.0, seed=0)
    assert fewest(parts["train"], few.target) >= 1
    assert fewest(parts["validation"], few.target) >= 1
    if folds:
        for fold in range(folds):
            place = assign_folds(few.bags, few.target, folds, seed=0)
            rest = replace(few, bags=tuple(bag for bag, at in zip(few.bags, place, strict=True) if at != fold))
            assert fewest(split_patients(rest, 0.2, 0.0, seed=0)["train"], few.target) >= 1


def _asked(path: Path) -> tuple[list[ManifestRow], Target]:
    rows = read_manifest(path)
    return rows, read_target(rows, ["label"], None, None)


def test_a_site_in_two_spellings_is_one(cohort: Path, tmp_path: Path) -> None:
    sites = ["Berlin", "berlin ", "1", "1.0"]
    rows = [{**row, "site": sites[at % 4]} for at, row in enumerate(table(cohort))]
    said: list[str] = []
    found = load_cohort(*_asked(write_table(tmp_path / "l.csv", rows)), cohort / "features", "site", said.append)
    assert len({bag.group for bag in found.bags}) == 2
    assert any("is taken for" in line and "column site" in line for line in said)
    rows[3]["site"] = "NA"
    with pytest.raises(SettingsError, match="has no 'site' for it"):
        load_cohort(*_asked(write_table(tmp_path / "n.csv", rows)), cohort / "features", "site")


def test_rows_without_a_label_are_counted(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    rows[0] |= {"patient": rows[1]["patient"], "label": ""}
    rows[2]["label"] = ""
    said: list[str] = []
    load_cohort(*_asked(write_table(tmp_path / "l.csv", rows)), cohort / "features", None, said.append)
    (line,) = [line for line in said if "without a label" in line]
    assert line.startswith("2 rows without a label are left out; 1 of them are of patients who have one on another row")


def test_what_was_learned_from_is_known_by_its_features(cohort: Path, tmp_path: Path) -> None:
    found = load_cohort(*_asked(cohort / "labels.csv"), cohort / "features")
    bag = found.bags[0]
    assert len(set(bag.stored)) == len(bag.slides) == len(bag.stored)
    other = replace(bag, stored=("made anew",) * len(bag.slides))
    assert cohort_digest([bag]) != cohort_digest([other])
