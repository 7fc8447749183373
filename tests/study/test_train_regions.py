"""Regions beside slide labels: what they teach, what they refuse, and whether the map lies where people drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import pathovit
from made_cohort import FAST, SIDE, table, write_table
from shapely import box

from pathovit.errors import SettingsError
from pathovit.manifest import read_manifest
from pathovit.model.targets import Target, read_target
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Cohort, load_cohort
from pathovit.study.evaluate import evaluate_model
from pathovit.study.localisation import MapOf, compare_maps, localisation, maps_csv, read_maps
from pathovit.study.losses import Loss
from pathovit.study.marks import _one_by_one
from pathovit.study.parts import split_patients
from pathovit.study.regions import Meaning, Region
from pathovit.study.study import train_model

NAN = float("nan")


def draw(folder: Path, slide: str, tiles: dict[str, list[int]]) -> None:
    """Squares of tiles (by their place in grid order), by class."""
    features = []
    for name, places in tiles.items():
        for place in places:
            x, y = place % SIDE * 96, place // SIDE * 96
            ring = [[x, y], [x + 96, y], [x + 96, y + 96], [x, y + 96], [x, y]]
            properties = {"objectType": "annotation", "classification": {"name": name}}
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    folder.mkdir(exist_ok=True)
    (folder / f"{slide}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def draw_truth(cohort: Path, folder: Path, slides: list[int]) -> None:
    """What the made cohort knows: tiles with a high first feature are tumour."""
    for index in slides:
        stored = FeatureStore(OutFolder(cohort / "features").slide(f"slide-{index:02d}"), Path("x")).read()
        hot = stored.features[:, 0] > 4
        draw(folder, f"slide-{index:02d}", {"Tumor": np.flatnonzero(hot).tolist(), "stroma": np.flatnonzero(~hot)[:20].tolist()})


def load(cohort: Path, rows: Path, regions: Path, said: list[str] | None = None) -> Cohort:
    read = read_manifest(rows)
    asked = read_target(read, ["label"], None, "tumour")
    return load_cohort(read, asked, cohort / "features", None, (said if said is not None else []).append, regions=[regions])


def test_regions_become_marks_of_tiles_and_names_are_understood(cohort: Path, tmp_path: Path) -> None:
    draw(tmp_path / "r", "slide-01", {"Tumor": [3, 4], "not tumour": [10], "stroma": [11], "ignore": [12]})
    said: list[str] = []
    found = load(cohort, cohort / "labels.csv", tmp_path / "r", said)
    marks = {bag.patient: bag.marks for bag in found.bags}
    assert marks["p3"] is None
    drawn = marks["p1"]
    assert drawn is not None
    assert drawn[[3, 4, 10, 11, 12], 0].tolist()[:4] == [1, 1, 0, 0]
    assert int(torch.isfinite(drawn).sum()) == 4
    assert any("stroma are taken for tissue without tumour" in text for text in said)


def test_slides_may_have_a_label_or_regions_or_both_or_neither(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index in (0, 1, 3, 5):
        rows[index]["label"] = ""
    draw(tmp_path / "r", "slide-01", {"tumour": [3], "normal": [9]})  # outlines tumour: so it has it
    draw(tmp_path / "r", "slide-03", {"normal": [9]})  # can teach, cannot judge
    draw(tmp_path / "r", "slide-07", {"tumour": [3]})
    found = load(cohort, write_table(tmp_path / "labels.csv", rows), tmp_path / "r")
    truth = {bag.patient: float(bag.truth[0]) for bag in found.bags}
    assert truth["p1"] == 1
    assert {bag.patient for bag in found.unlabelled} == {"p3"}
    assert not {"p0", "p5", "p3"} & {*truth}
    parts = split_patients(found, 0.2, 0.2, 0)
    assert "p3" in {bag.patient for bag in parts["train"]}
    assert all(bag.is_labelled for name in ("validation", "test") for bag in parts[name])


def test_a_group_that_is_held_out_does_not_teach_by_its_regions(cohort: Path, tmp_path: Path) -> None:
    rows = [row | {"site": f"s{index // 2}"} for index, row in enumerate(table(cohort))]
    rows[3]["label"] = ""
    draw(tmp_path / "r", "slide-03", {"normal": [9], "tumour*": [2]})
    draw(tmp_path / "r", "slide-01", {"tumour": [3]})
    read = read_manifest(write_table(tmp_path / "labels.csv", rows))
    found = load_cohort(read, read_target(read, ["label"], None, "tumour"), cohort / "features", "site", regions=[tmp_path / "r"])
    (alone,) = found.unlabelled
    (partner,) = (bag for bag in found.bags if bag.group == alone.group)
    assert not found.without([partner]).unlabelled
    assert found.without([found.bags[-1]]).unlabelled


@pytest.mark.parametrize(
    ("slide", "tiles", "message"),
    [
        ("slide-02", {"tumour": [3]}, "'normal' in the table, and 'tumour' is drawn"),
        ("slide-01", {"stroma": [3]}, "No region is of tumour"),
        ("slide-01", {"tumour": [900]}, "lies on no tile"),
        ("slide-99", {"tumour": [3]}, "slide-99"),
    ],
)
def test_regions_that_cannot_be_are_refused(
    cohort: Path, tmp_path: Path, slide: str, tiles: dict[str, list[int]], message: str
) -> None:
    draw(tmp_path / "r", slide, tiles)
    with pytest.raises(SettingsError, match=message):
        load(cohort, cohort / "labels.csv", tmp_path / "r")


def test_a_measurement_has_no_regions(cohort: Path, tmp_path: Path) -> None:
    draw(tmp_path / "r", "slide-01", {"tumour": [3]})
    rows = write_table(tmp_path / "l.csv", [row | {"size": str(index / 7)} for index, row in enumerate(table(cohort))])
    read = read_manifest(rows)
    with pytest.raises(SettingsError, match="regression target has none"):
        load_cohort(read, read_target(read, ["size"], None, None), cohort / "features", regions=[tmp_path / "r"])


def test_marked_tiles_are_judged_by_their_marks_however_many_they_are() -> None:
    settings = TrainSettings(label_smoothing=0.0)
    judge = Loss(Target("binary", ("x",), ("benign", "tumour")), settings, torch.ones(2, 1), 0.0, 1.0)
    right = torch.tensor([[4.0], [-4.0], [-4.0], [0.0]])
    marks = torch.tensor([[1.0], [0.0], [0.0], [NAN]])
    assert judge.of_marks(right, marks) < 0.05
    assert judge.of_marks(-right, marks) > 3
    one_wrong = right.clone()
    one_wrong[0] = -4.0
    assert judge.of_marks(one_wrong, marks) == pytest.approx(
        2.0, abs=0.1
    )  # the one of the class weighs as much as the two without


def test_regions_teach_beside_labels_that_are_wrong(cohort: Path, tmp_path: Path) -> None:
    """Most labels are drawn at random; with regions of six slides the map is better than without, on other patients."""
    rows = table(cohort)
    chance = np.random.default_rng(0).permutation([row["label"] for row in rows])
    for index, row in enumerate(rows):
        row["label"] = "tumour" if index in (1, 3, 5, 7, 9, 11, 13) else str(chance[index])
        row["split"] = "train" if index < 14 else "validation" if index < 20 else "test"
    path = write_table(tmp_path / "labels.csv", rows)
    draw_truth(cohort, tmp_path / "train", [1, 3, 5, 7, 9, 11])
    for index in (21, 23, 25, 27):
        rows[index]["label"] = "tumour"
    judged = write_table(tmp_path / "judged.csv", rows)
    draw_truth(cohort, tmp_path / "test", [21, 23, 25, 27])
    areas = {}
    for name, regions in (("with", [tmp_path / "train"]), ("without", [])):
        read = read_manifest(path)
        asked = read_target(read, ["label"], None, "tumour")
        taught = load_cohort(read, asked, cohort / "features", regions=regions)
        card = train_model(taught, tmp_path / name, FAST, 0).values
        assert (card["regions"] is not None) == (name == "with")
        found = evaluate_model(tmp_path / name, load(cohort, judged, tmp_path / "test"), tmp_path / f"e-{name}", "test")
        assert found.localisation is not None
        areas[name] = found.localisation["tile_auroc"].value
        assert (tmp_path / f"e-{name}" / "localisation.png").stat().st_size > 5000
    assert areas["with"] is not None
    assert areas["without"] is not None
    assert areas["with"] > max(0.9, areas["without"]), areas
    assert "Regions of 6 patients taught single tiles (tumour" in (tmp_path / "with" / "MODEL_CARD.md").read_text()


def test_an_aggregator_without_evidence_cannot_be_taught_by_regions(cohort: Path, tmp_path: Path) -> None:
    draw_truth(cohort, tmp_path / "r", list(range(1, 28, 2)))
    with pytest.raises(SettingsError, match="transmil has no evidence"):
        train_model(
            load(cohort, cohort / "labels.csv", tmp_path / "r"), tmp_path / "m", TrainSettings(kind="transmil", epochs=1), 0
        )


def test_figures_of_maps_are_means_over_patients_and_go_through_a_file(tmp_path: Path) -> None:
    maps = [MapOf("a", "t", 10, 5, 0.9, 0.8, 0.7, 0.1), MapOf("b", "t", 10, 0, NAN, NAN, NAN, 0.3)]
    found = localisation(maps)
    assert found is not None
    assert found["tile_auroc"].value == 0.9
    assert found["hot_outside"].value == 0.2
    (tmp_path / "m.csv").write_bytes(maps_csv(maps, str))
    again = read_maps(tmp_path / "m.csv")
    assert again[0] == maps[0]
    assert np.isnan(again[1].tile_ap)
    better = [MapOf("a", "t", 10, 5, 0.95, 0.8, 0.7, 0.1)]
    told = compare_maps(maps, better)
    assert told["tile_auroc"].difference == pytest.approx(0.05)
    assert told["tile_auroc"].patients == 1
    assert told["tile_auroc"].p_value is None
    assert compare_maps(maps, [MapOf("c", "t", 1, 1, 1, 1, 1, 1)]) == {}


def test_the_commands_take_regions(cohort: Path, tmp_path: Path) -> None:
    draw_truth(cohort, tmp_path / "r", list(range(1, 28, 2)))
    common = ["--features", cohort / "features", "--regions", tmp_path / "r"]
    done = pathovit("train", cohort / "labels.csv", *common, "-o", tmp_path / "m", "--epochs", 2, "--folds", 0)
    assert done.returncode == 0, done.stderr
    assert "map on regions" in done.stdout
    for name in ("a", "b"):
        done = pathovit("evaluate", tmp_path / "m", cohort / "labels.csv", *common, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "map, AUROC per tile" in done.stdout
    done = pathovit("compare", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "map, AUROC per tile" in done.stdout


def test_a_region_of_one_label_says_nothing_of_another() -> None:
    meaning = Meaning.for_target(
        {"s": [Region(name, box(0, 0, 1, 1), "s", 1) for name in ("tumour", "necrosis", "not tumour", "stroma")]},
        ("tumour", "necrosis"), None, lambda text: None,
    )  # fmt: skip
    tumour, necrosis = _one_by_one(meaning)
    assert tumour.allowed["tumour"] == (False, True)
    assert necrosis.allowed["tumour"] == (True, True), "nobody said that it is absent"
    assert tumour.allowed["not tumour"] == (True, False)
    assert necrosis.allowed["not tumour"] == (True, True)
    assert tumour.allowed["stroma"] == necrosis.allowed["stroma"] == (True, False)
