"""pathovit review and audit on real files: labels and regions out and in, a folder to look at, the corrected model."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command import pathovit
from made_cohort import FAST, write_table
from made_reader import Client
from made_runs import folder_of
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.manifest import read_manifest
from pathovit.model.slide_model import load_model
from pathovit.model.targets import read_target
from pathovit.outputs.folder import OutFolder
from pathovit.review.corrections import _settle, suggested
from pathovit.review.desk import Desk
from pathovit.review.opinion import Cell, painted_by_all
from pathovit.review.record import Record
from pathovit.review.static import hottest
from pathovit.show.heatmap import SCORE, Heatmap
from pathovit.show.ome_tiff import write_ome_tiff
from pathovit.show.qupath import dissolve, write_geojson
from pathovit.study.cohort import load_cohort
from pathovit.study.regions import read_regions
from pathovit.study.study import train_model


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def paint(client: Client, file: str, **cells: list[list[int]]) -> None:
    for label, runs in cells.items():
        client.say(client.keys()[file], event="painted", label=label.replace("_", " "), runs=runs)


def decide(client: Client, file: str, label: str | None, judgement: str = "none") -> None:
    client.look(client.keys()[file])
    client.say(client.keys()[file], event="decision", judgement=judgement, label=label)


def test_decisions_are_written_as_train_reads_them(client: Client, out: Path, tmp_path: Path) -> None:
    decide(client, "one.svs", "tumour")
    decide(client, "two.svs", None, "unsure")
    done = pathovit("review", out, "--export", tmp_path / "labels.csv")
    assert done.returncode == 0, done.stderr
    assert "1 label written" in done.stderr
    assert "left out: 1 unsure" in done.stderr
    (row,) = rows(tmp_path / "labels.csv")
    assert row["slide"] == folder_of(out, "one").name
    assert (row["label"], row["reader"]) == ("tumour", "Dr. A")


def test_painted_tiles_go_out_as_outlines_and_come_back_the_same(client: Client, out: Path, tmp_path: Path) -> None:
    desk = client.review.desk
    case = next(case for case in desk.cases() if desk.called(case) == "one.svs")
    stored = desk.features(case)
    cells = [(int(row), int(column)) for column, row in stored.grid.lattice()]
    chosen: dict[Cell, str] = (
        dict.fromkeys(cells[:9], "tumour") | dict.fromkeys(cells[20:30], "not tumour") | {cells[40]: "ignore"}
    )
    for label in set(chosen.values()):
        runs = [[row, column, 1] for (row, column), name in chosen.items() if name == label]
        client.say(case.key, event="painted", label=label, runs=runs)
    done = pathovit("review", out, "--regions", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    assert "20 painted tiles of 1 slide" in done.stderr
    (file,) = (tmp_path / "drawn").iterdir()
    assert {region.name for region in read_regions(file, print)} == {"tumour", "not tumour", "ignore"}
    (tmp_path / "drawn" / "mine.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    refused = pathovit("review", out, "--regions", tmp_path / "drawn")
    assert refused.returncode == 2
    assert "so that they stay" in refused.stderr
    (tmp_path / "drawn" / "mine.geojson").unlink()
    other = tmp_path / "other"
    shutil.copytree(out, other)
    for path in [*other.glob("slides/*/review.jsonl"), *(other / "review").glob("*")]:
        path.unlink()
    done = pathovit("review", other, "--import", tmp_path / "drawn", "--reader", "Dr. B")
    assert done.returncode == 0, done.stderr
    again, _ = painted_by_all(Record(OutFolder(other)).events(case.slide_id))
    assert again == chosen


def test_a_drawing_from_qupath_lands_on_its_tiles_also_where_qupath_crops(client: Client, out: Path, tmp_path: Path) -> None:
    desk = client.review.desk
    case = next(case for case in desk.cases() if desk.called(case) == "one.svs")
    x, y = (float(v) for v in desk.features(case).xy[5])
    side = desk.features(case).tile_l0[0]
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]

    def draw(moved: float) -> None:
        shape = {"type": "Polygon", "coordinates": [[[a - moved, b - moved] for a, b in ring]]}
        feature = {"type": "Feature", "id": "f", "geometry": shape, "properties": {"classification": {"name": "Tumor"}}}
        (tmp_path / "one.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))

    draw(0)
    done = pathovit("review", out, "--import", tmp_path / "one.geojson")
    assert done.returncode == 0, done.stderr
    column, row = desk.features(case).grid.lattice()[5]
    assert painted_by_all(Record(OutFolder(out)).events(case.slide_id))[0] == {(int(row), int(column)): "Tumor"}
    draw(90_000)
    off = pathovit("review", out, "--import", tmp_path / "one.geojson")
    assert off.returncode == 2
    assert "one.geojson" in off.stderr


def test_regions_upon_each_other_are_one_label_a_tile_as_teach_has_them() -> None:
    def square(left: int, right: int) -> set[tuple[int, int]]:
        return {(0, column) for column in range(left, right)}

    cells = {"carcinoma": square(2, 5), "complete": square(0, 9), "not carcinoma": square(4, 7), "ignore": square(2, 3)}
    _settle(cells, "a.geojson")
    assert cells["carcinoma"] == square(3, 5)
    assert cells["not carcinoma"] == square(5, 7)
    assert cells["complete"] == square(0, 9) - square(2, 7)
    with pytest.raises(
        SettingsError, match="a.geojson: regions of 'b' and of 'a' overlap|a.geojson: regions of 'a' and of 'b' overlap"
    ):
        _settle({"a": square(0, 3), "b": square(2, 4)}, "a.geojson")


def test_overlapping_tiles_are_told_apart_by_their_middles(tmp_path: Path) -> None:
    """Tiles at half the stride: two neighbours of different classes do not contradict each other."""
    from made import made_features

    from pathovit.review.corrections import write_cells
    from pathovit.study.regions import Meaning, label_tiles

    places = np.array([[c, r] for r in range(4) for c in range(6)])
    stored = made_features(places * 48, grid={"tile": 96.0, "stride": 48.0})
    painted = {(1, 1): "tumour", (1, 2): "normal", (2, 2): "tumour"}
    write_cells(tmp_path / "s.geojson", stored, painted)
    regions = read_regions(tmp_path / "s.geojson", print)
    labels = label_tiles(stored, regions, Meaning.of({"s-1": regions}), print)
    known = {(int(places[t][1]), int(places[t][0])) for t in np.flatnonzero(labels.known)}
    assert known == set(painted)


def test_a_folder_to_look_at_holds_pictures_and_says_how_large_it_becomes(client: Client, out: Path, tmp_path: Path) -> None:
    decide(client, "one.svs", "<b>tumour</b>")
    done = pathovit("review", out, "--static", tmp_path / "board")
    assert done.returncode == 0, done.stderr
    said = re.search(r"at most about ([\d.]+) MB", done.stderr)
    assert said
    page = (tmp_path / "board" / "index.html").read_text()
    assert "Not for use in diagnostic procedures" in page
    assert "&lt;b&gt;tumour&lt;/b&gt;" in page
    assert "<b>tumour" not in page
    assert "onerror=alert" not in page.replace("&lt;img src=x onerror=alert", "")
    written = sum(path.stat().st_size for path in (tmp_path / "board").rglob("*") if path.is_file())
    assert written < float(said.group(1)) * 1e6 * 1.05
    for source in re.findall(r'src="([^"]+)"', page):
        assert (tmp_path / "board" / source).is_file(), source
    assert len(re.findall(r"\d\d\.jpg", page)) >= 1
    again = pathovit("review", out, "--static", tmp_path / "board")
    assert again.returncode == 2
    assert "something in it" in again.stderr


def test_the_audit_finds_what_was_changed_and_prints_what_was_done(client: Client, out: Path) -> None:
    decide(client, "one.svs", "tumour")
    decide(client, "two.svs", "normal")
    whole = pathovit("audit", "verify", out)
    assert whole.returncode == 0, whole.stderr
    assert len(whole.stdout.strip()) == 64
    assert pathovit("audit", "verify", out, "--head", whole.stdout.strip()).returncode == 0
    text = pathovit("audit", "print", out).stdout
    assert "decided: tumour" in text
    found = json.loads(pathovit("audit", "print", out, "--to", "json").stdout)
    assert (len(found["events"]), found["head"]) == (6, whole.stdout.strip())  # first impression, shown, decision
    assert len(pathovit("audit", "print", out, "--to", "csv").stdout.splitlines()) == 7
    record = folder_of(out, "one") / "review.jsonl"
    record.write_bytes(record.read_bytes().replace(b"tumour", b"normal"))
    changed = pathovit("audit", "verify", out)
    assert changed.returncode == 3
    assert "CHANGED" in changed.stderr
    assert "line 3" in changed.stderr


def test_nothing_reviewed_is_said_and_a_wrong_folder_too(finished: Path, tmp_path: Path) -> None:
    assert "nothing was reviewed" in pathovit("audit", "verify", finished).stderr
    for command in (["audit", "verify"], ["audit", "print"], ["review"]):
        done = pathovit(*command, tmp_path / "nowhere")
        assert done.returncode == 2
        assert "no such folder" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "0.0.0.0"], "others could listen in"),
        (["--tls-key", "k.pem"], "go together"),
        (["--behind-proxy"], "go together"),
        (["--user-header", "X-User"], "go together"),
        (
            [
                "--listen",
                "0.0.0.0",
                "--host",
                "h",
                "--tls-certificate",
                "c",
                "--tls-key",
                "k",
                "--behind-proxy",
                "--user-header",
                "X",
            ],
            "could say who they are",
        ),
    ],
)
def test_an_address_that_is_not_safe_is_refused(finished: Path, options: list[str], said: str) -> None:
    done = pathovit("review", finished, "--no-browser", *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_a_review_corrected_another_model_learns(cohort: Path, tmp_path: Path) -> None:
    """Learned from labels that are all wrong, then from those that a reader corrected: the answers turn round."""
    features, truth = cohort / "features", {row["slide"]: row["label"] for row in rows(cohort / "labels.csv")}
    other = {"tumour": "normal", "normal": "tumour"}
    wrong = write_table(tmp_path / "wrong.csv", [{"slide": file, "label": other[label]} for file, label in truth.items()])
    desk = Desk(OutFolder(features))
    for case in desk.cases():
        label = truth[case.file]
        column, row = desk.features(case).grid.lattice()[int(desk.features(case).features[:, 0].argmax())]
        for said in (
            {"event": "decision", "judgement": "disagree", "label": label, "note": "", "reason": ""},
            {"event": "painted", "label": label, "runs": [[int(row), int(column), 1]], "asked": False},
        ):
            desk.record.append(case.slide_id, "Dr. A", "reader", said)
    done = pathovit("review", features, "--export", tmp_path / "reviewed.csv", "--regions", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    assert "28 labels written" in done.stderr
    before = says_tumour(wrong, features, tmp_path / "before", [])
    after = says_tumour(tmp_path / "reviewed.csv", features, tmp_path / "after", [tmp_path / "drawn"])
    is_tumour = np.array([truth[case.file] == "tumour" for case in desk.cases()])
    assert before[is_tumour].mean() < before[~is_tumour].mean() - 0.1
    assert after[is_tumour].mean() > after[~is_tumour].mean() + 0.1


def says_tumour(labels: Path, features: Path, model: Path, regions: list[Path]) -> NDArray[np.float64]:
    """Probability of tumour of every slide, in order of the worklist, by a model that learned from a table."""
    table = read_manifest(labels)
    known = load_cohort(table, read_target(table, ["label"], None, "tumour"), features, regions=regions)
    train_model(known, model, FAST, folds=0)
    learned, desk = load_model(model), Desk(OutFolder(features))
    return np.array([learned.predict(desk.features(case)).probabilities[-1] for case in desk.cases()])


def test_a_map_that_was_corrected_is_another_one_there(client: Client, out: Path) -> None:
    """run, review, correct, teach: tiles that were painted as normal are cold afterwards."""
    desk = client.review.desk
    case = next(case for case in desk.cases() if desk.called(case) == "one.svs")
    stored = desk.features(case)
    with tifffile.TiffFile(desk.out.slide(case.slide_id).path / "heatmap.ome.tiff") as tiff:
        before = tiff.series[0].asarray()[0]
    lattice = stored.grid.lattice()
    scores = before[lattice[:, 1], lattice[:, 0]]
    hottest, coldest = np.argsort(-scores)[:6], np.argsort(scores)[:30:5]
    others = np.argsort(-scores)[20:60:8]
    for label, tiles in (("normal", [*hottest, *coldest]), ("tumour", others)):
        runs = [[int(lattice[t][1]), int(lattice[t][0]), 1] for t in tiles]
        client.say(case.key, event="painted", label=label, runs=runs)
    done = pathovit("review", out, "--regions", out / "drawn")
    assert done.returncode == 0, done.stderr
    taught = pathovit("teach", out, out / "drawn", "--model", out / "taught")
    assert taught.returncode == 0, taught.stderr
    with tifffile.TiffFile(desk.out.slide(case.slide_id).path / "heatmap.ome.tiff") as tiff:
        after = tiff.series[0].asarray()[0]
    corrected = after[lattice[hottest, 1], lattice[hottest, 0]]
    assert scores[hottest].min() > 0.5
    assert corrected.mean() < scores[hottest].mean() - 0.2


def test_regions_of_all_classes_are_shown_where_they_are_hottest(tmp_path: Path) -> None:
    from made import made_features

    stored = made_features(np.array([[c, r] for r in range(6) for c in range(8)]) * 96)
    scores = np.full((48, 2), 0.1, np.float32)
    scores[[0, 1, 8, 9], 0] = 0.7
    scores[9, 0] = 0.9
    scores[[30, 31, 38, 39, 46, 47], 1] = 0.6
    scores[47, 1] = 0.8
    areas = [area for at, name in enumerate(("a", "b")) for area in dissolve(stored, scores[:, at] > 0.5, name, scores[:, at])]
    write_geojson(tmp_path, stored, scores[:, 0], {}, "a", regions=areas, marked={"Unread": np.arange(48) == 5}, max_tiles=10_000)
    layers = {f"{SCORE}a": scores[:, 0], f"{SCORE}b": scores[:, 1]}
    write_ome_tiff(tmp_path / "heatmap.ome.tiff", Heatmap.from_tiles(stored, layers, np.zeros(48, np.bool_)))
    found = hottest(tmp_path, stored)
    assert [(region.name, centre) for region, centre in found] == [
        ("b", tuple(stored.centres_l0()[47])), ("a", tuple(stored.centres_l0()[9])),
    ]  # fmt: skip


def test_what_a_person_drew_into_suggestions_does_not_stop_the_page(out: Path) -> None:
    name = folder_of(out, "one").name
    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}
    features: list[object] = [
        {"geometry": square, "properties": {"name": "suggested 1"}},
        {"geometry": square, "properties": {"name": "tumour"}},
        {"geometry": square, "properties": {}},
        {"geometry": None, "properties": {"name": "suggested 2"}},
        {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "properties": {"name": "suggested 3"}},
        "nothing",
    ]
    (out / "suggested").mkdir()
    (out / "suggested" / f"{name}.geojson").write_text(json.dumps({"features": features}))
    (out / "suggested" / f"{folder_of(out, 'two').name}.geojson").write_text("torn")
    assert [(asked.slide_id, asked.index) for asked in suggested(Desk(OutFolder(out)))] == [(name, 0)]
