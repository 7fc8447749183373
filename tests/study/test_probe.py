"""Encoders compared on labelled tiles: patients apart, intervals, speed and size beside the quality."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import pathovit
from made_tiles import write_tiles
from PIL import Image

from pathovit.encoders import own_encoder
from pathovit.errors import SettingsError, SlideError
from pathovit.study.labelled_tiles import LabelledTiles, find_tiles
from pathovit.study.probe import folds_of, judged, probe


def quiet(*given: object) -> None:
    pass


def never(side: int, mpp: float) -> np.ndarray:
    raise AssertionError("no pixel is looked at")


def made(truth: list[int], groups: list[int], unit: str = "patient") -> LabelledTiles:
    return LabelledTiles(("normal", "tumour"), np.array(truth), np.array(groups), unit, never)


def test_the_command_ranks_encoders_and_draws_them(tmp_path: Path) -> None:
    table = write_tiles(tmp_path / "tiles", patients=20)
    done = pathovit("probe", table, "--encoders", "reference", "reference=random", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["tiles"], found["patients"], found["classes"]) == (160, 20, ["normal", "tumour"])
    good, noise = found["encoders"]
    assert (good["weights"], noise["weights"]) == ("bundled", "random")
    assert good["linear"]["value"] > 0.99
    assert good["linear"]["low"] <= good["linear"]["value"] <= good["linear"]["high"]
    assert good["tiles_per_s"] > 0
    with (tmp_path / "out" / "probe.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["reference", "reference"]
    assert (tmp_path / "out" / "probe.png").stat().st_size > 10_000
    assert "p3" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.[cj]s*"))  # nobody is named


def test_a_tile_of_nobody_known_does_not_part_the_others_from_their_patients(tmp_path: Path) -> None:
    table = write_tiles(tmp_path / "tiles", patients=6)
    rows = list(csv.DictReader(table.open()))
    rows[0]["patient"] = ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = find_tiles(table, "label", quiet)
    assert found.unit == "patient"
    assert len(set(found.groups.tolist())) == 7
    patients = np.array([row["patient"] for row in rows])
    for learn, judge in folds_of(found, 0):
        assert not set(patients[learn]) & set(patients[judge]) - {""}


def test_a_probe_learns_nothing_from_the_patient_that_it_judges() -> None:
    """Features that say the patient and nothing else are worth nothing, though tiles of one patient share their class."""
    chance = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    truth = np.repeat(chance.permutation(np.arange(40) % 2), 10)
    tiles = made(truth.tolist(), groups.tolist())
    for learn, judge in folds_of(tiles, 0):
        assert not set(groups[learn]) & set(groups[judge])
    whose = own_encoder(lambda batch: batch[:, 0, :, 0].astype(np.float32), "whose", mpp=1, tile_px=40, version="1")
    pixels = np.zeros((400, 40, 40, 3), np.uint8)
    pixels[np.arange(400), 0, groups, 0] = 255
    found = probe(whose, "", tiles, pixels, quiet)
    assert found.linear.value is not None
    assert 0.2 < found.linear.value < 0.8
    shuffled = replace(tiles, groups=np.arange(400), unit="tile")  # as if nobody knew whose they are
    flattered = probe(whose, "", shuffled, pixels, quiet)
    assert flattered.linear.value is not None
    assert flattered.linear.value > 0.95


def test_intervals_are_over_patients() -> None:
    chance = np.random.default_rng(1)
    truth = np.repeat(chance.permutation(np.arange(40) % 2), 25)
    score = np.repeat(chance.normal(size=40), 25) + truth  # tiles of a patient are alike
    by_patient = judged(np.stack([1 - score, score], 1), made(truth.tolist(), np.repeat(np.arange(40), 25).tolist()), 0)
    by_tile = judged(np.stack([1 - score, score], 1), made(truth.tolist(), np.arange(1000).tolist(), "tile"), 0)
    assert by_patient.low is not None and by_patient.high is not None and by_tile.low is not None and by_tile.high is not None
    assert by_patient.high - by_patient.low > 2 * (by_tile.high - by_tile.low)
    few = judged(np.stack([1 - score, score], 1)[:100], made(truth[:100].tolist(), np.repeat(np.arange(4), 25).tolist()), 0)
    assert (few.low, few.high) == (None, None)


def test_three_classes_are_one_number() -> None:
    truth = np.arange(90) % 3
    sure = np.eye(3)[truth] * 0.8 + 0.1
    tiles = LabelledTiles(("a", "b", "c"), truth, np.arange(90), "tile", never)
    assert judged(sure, tiles, 0).value == 1
    assert judged(np.roll(sure, 1, axis=0), tiles, 0).value == 0.25  # what is taken for the next one is right of neither


def test_a_folder_of_folders_serves_too(tmp_path: Path) -> None:
    for kind, colour in (("dark", 60), ("light", 200)):
        (tmp_path / "tiles" / kind).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (40 + number, 40), (colour, colour, colour + number)).save(
                tmp_path / "tiles" / kind / f"{number}.png"
            )
    said: list[str] = []
    found = find_tiles(tmp_path / "tiles", "label", said.append)
    assert (found.classes, len(found), found.unit) == (("dark", "light"), 12, "tile")
    assert any("patients are not known" in line for line in said)
    assert found.pixels(32, 1.0).shape == (12, 32, 32, 3)
    assert any("resized to 32" in line for line in said)


def test_a_table_that_was_moved_is_understood_and_said(tmp_path: Path) -> None:
    table = write_tiles(tmp_path / "tiles", 2)
    text = table.read_text().replace("pictures/", "data/old/pictures/").replace("normal,", "Normal,", 1)
    table.write_text(text)
    said: list[str] = []
    found = find_tiles(table, "label", said.append)
    assert len(found) == 16
    assert len(found.classes) == 2
    assert any("found beside tiles.csv" in line for line in said)


def test_tiles_without_a_label_are_left_out_and_said(tmp_path: Path) -> None:
    table = write_tiles(tmp_path / "tiles", 2)
    table.write_text(table.read_text().replace("normal,", ",", 1).replace("tumour,", "N/A,", 1))
    said: list[str] = []
    found = find_tiles(table, "label", said.append)
    assert (len(found), found.classes) == (14, ("normal", "tumour"))
    assert "2 tiles without a label left out" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("normal,", "tumour,"), "all tiles are 'tumour'"),
        (lambda text: text.replace("normal-0-0.png", "gone.png"), "1 file that it names is not there: "),
        (lambda text: text.replace("label", "diagnosis"), "no tile has a value in column 'label'"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    table = write_tiles(tmp_path / "tiles", 3)
    table.write_text(change(table.read_text()))
    done = pathovit("probe", table, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_torn_picture_is_named(tmp_path: Path) -> None:
    table = write_tiles(tmp_path / "tiles", 3)
    torn = tmp_path / "tiles" / "pictures" / "normal-1-1.png"
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(SlideError, match=r"normal-1-1.png: it cannot be read as a picture"):
        find_tiles(table, "label", quiet).pixels(32, 1.0)


def test_one_patient_alone_is_refused() -> None:
    with pytest.raises(SettingsError, match="Only one patient has tiles of 'tumour'"):
        folds_of(made([0, 0, 1, 1], [0, 1, 2, 2]), 0)
