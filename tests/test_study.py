import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_store import CHUNK

from pathovit.aggregator import load_model
from pathovit.errors import SettingsError
from pathovit.features import SlideFeatures
from pathovit.manifest import read_manifest
from pathovit.settings import TileSpec
from pathovit.store import FeatureStore, to_json, write_atomically
from pathovit.tiling import TileGrid
from pathovit.training import TrainSettings, _make_bag, auroc, train, with_interval

DIM, SIDE = 6, 8
FAST = TrainSettings(epochs=8, width=32, depth=1, learning_rate=5e-3, patience=8)


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


def test_a_model_learns_from_slide_labels_and_shows_where(cohort: Path, tmp_path: Path) -> None:
    card = train(read_manifest(cohort / "labels.csv"), cohort / "features", tmp_path / "model", settings=FAST)
    assert card["metrics"]["test"]["auroc"]["value"] >= 0.9
    assert sum(card["patients"].values()) == 28
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "model.safetensors",
        "model.json",
        "MODEL_CARD.md",
        "training.png",
        "split.csv",
    }
    model = load_model(tmp_path / "model")
    slide = FeatureStore(cohort / "features" / "slides" / "slide-01", Path("slide-01.svs")).read("slide-01")
    scores = model.predict(slide).tile_scores[:, 0]
    marked = slide.features[:, 0] > 3
    assert scores[marked].min() > np.median(scores[~marked])


def test_the_same_seed_gives_the_same_model(cohort: Path, tmp_path: Path) -> None:
    fast = TrainSettings(epochs=2, width=32, depth=1)
    for name in ("a", "b"):
        train(read_manifest(cohort / "labels.csv"), cohort / "features", tmp_path / name, settings=fast)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_patients_slides_stay_together(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["patient"] = f"p{index % 2}-{index // 4}"  # two slides each, of one label
    path = write_table(tmp_path / "labels.csv", rows)
    card = train(
        read_manifest(path), cohort / "features", tmp_path / "model", settings=TrainSettings(epochs=1, width=32, depth=1)
    )
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
    bag = _make_bag("p", [slide, slide, slide], 0)
    places = np.rint((bag.xy_um - bag.xy_um.min(0).values).numpy() / bag.pitch_um)
    assert len(np.unique(places, axis=0)) == 1200
    assert (places[400:800] - places[:400] == places[400] - places[0]).all()
    assert (places[400] - places[0])[0] % 16 == 0  # the same windows as when it is alone


def test_one_stored_slide_is_not_two_patients(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    rows[2]["slide"], rows[2]["patient"] = "elsewhere/slide-00.svs", "another"
    with pytest.raises(SettingsError, match=r"Lines 2 and 4 both mean slide-00"):
        train(read_manifest(write_table(tmp_path / "l.csv", rows)), cohort / "features", tmp_path / "model", settings=FAST)


def test_a_split_column_is_obeyed(cohort: Path, tmp_path: Path) -> None:
    rows = table(cohort)
    for index, row in enumerate(rows):
        row["split"] = ("train", "validation", "test")[index // 2 % 3]
    path = write_table(tmp_path / "labels.csv", rows)
    train(read_manifest(path), cohort / "features", tmp_path / "model", settings=TrainSettings(epochs=1, width=32, depth=1))
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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_label, r"one label \(tumour\)"),
        (spoil_patient, r"Patient 'p2' has two labels .*lines 4, 5"),
        (spoil_slide, r"1 slides have no finished features .*line 7: elsewhere.svs"),
        (spoil_split, r"Line 2: split is 'trian'"),
    ],
)
def test_a_bad_table_gets_a_message_that_names_the_row(cohort: Path, tmp_path: Path, spoil, message: str) -> None:
    rows = table(cohort)
    spoil(rows)
    with pytest.raises(SettingsError, match=message):
        train(read_manifest(write_table(tmp_path / "l.csv", rows)), cohort / "features", tmp_path / "model", settings=FAST)


def test_an_unknown_target_offers_the_columns(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no column 'grade'. Choose one with --target: label"):
        train(read_manifest(cohort / "labels.csv"), cohort / "features", tmp_path / "model", target="grade", settings=FAST)


def test_features_of_two_encoders_are_not_mixed(cohort: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    for index in range(8):
        write_slide(tmp_path / "slides" / "..", f"s{index}", bool(index % 2), chance, weights="w" if index else "other")
    rows = [{"slide": f"s{index}.svs", "label": str(index % 2)} for index in range(8)]
    with pytest.raises(SettingsError, match="made by another encoder"):
        train(read_manifest(write_table(tmp_path / "l.csv", rows)), tmp_path, tmp_path / "model", settings=FAST)


def test_the_card_says_research_use_and_gives_intervals_only_where_it_can(cohort: Path, tmp_path: Path) -> None:
    train(
        read_manifest(cohort / "labels.csv"),
        cohort / "features",
        tmp_path / "m",
        settings=TrainSettings(epochs=1, width=32, depth=1),
    )
    text = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "research use only" in text.lower()
    found = json.loads((tmp_path / "m" / "model.json").read_text())["metrics"]["test"]["auroc"]
    assert found["value"] is not None
    assert found["low"] is None  # six patients are too few for an interval
    truth = np.arange(40) % 2
    interval = with_interval(auroc, truth, np.stack([-truth, truth + np.arange(40) % 7 / 3], -1), 0)
    assert interval["low"] < interval["value"] < interval["high"]
