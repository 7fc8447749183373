"""What an output folder holds survives: twins, missing pictures, records of others, interrupted calls, failures of yesterday.

Whole runs in this process, with an encoder that needs no weights; real workers are in test_run.py.
"""

from __future__ import annotations

import csv
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import made_record
from made_slides import MeanColourEncoder
from made_steps import SETTINGS, CountingEncoder, run_one

from pathovit.errors import PathovitError, SettingsError, SlideError, StoreError
from pathovit.files import to_json
from pathovit.outputs.folder import OutFolder, Refused
from pathovit.outputs.records import Outcome
from pathovit.outputs.runs import RunLog, RunRecord, all_runs, last_run
from pathovit.run.drive import Drive
from pathovit.run.embed import embed_part, make_embedder
from pathovit.run.folder import exit_code
from pathovit.run.plan import SlideJob, SlidePlan, Twin, plan_slide
from pathovit.run.schedule import SlideState
from pathovit.run.worker import Failed, Ok, Work
from pathovit.settings import Settings
from pathovit.show.report import write_report
from pathovit.show.table import Contents, write_table


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


def rows(out: OutFolder) -> list[dict[str, str]]:
    write_table(out, Contents.of(out))
    return list(csv.DictReader(out.predictions.read_text().splitlines()))


def run_record(**more: Any) -> RunRecord:
    known: dict[str, Any] = {
        "command": ("run",), "started": "2026-11-25T12:00:00+0000", "settings": Settings().to_dict(), "weights_sha256": "w", "model": None,
        "model_sha256": None, "demonstration": False, "slides": (),
    }  # fmt: skip
    return RunRecord(**(known | more))


# 1. Twins


def test_a_twin_is_found_before_anything_of_the_first_is_touched(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    first = run_one(squares, out, encoder)
    (tmp_path / "B").mkdir()
    shutil.copy(squares, tmp_path / "B" / "squares.tif")
    before = {p: p.stat().st_mtime_ns for p in out.path.rglob("*") if p.is_file() and ".fingerprints" not in p.parts}
    found = plan_slide(
        SlideJob(tmp_path / "B" / "squares.tif"), out, SETTINGS, encoder, None, True, frozenset({first.slide_id})
    )  # fmt: skip
    assert found == Twin(first.slide_id)
    assert before == {p: p.stat().st_mtime_ns for p in out.path.rglob("*") if p.is_file() and ".fingerprints" not in p.parts}


def test_a_slide_that_counts_as_done_has_a_row_or_the_exit_is_not_0(tmp_path: Path) -> None:
    from pathovit.run.folder import _require_rows

    state = SlideState(0, SlideJob(tmp_path / "a.svs"), stage="done", done=made_record())
    state.twin_id = "a-1"
    _require_rows([state], Contents((made_record(),), (), (), frozenset()))
    assert exit_code([state]) == 0
    _require_rows([state], Contents((), (), (), frozenset()))
    assert exit_code([state]) == 1
    assert "its record is gone from slides/a-1" in state.reason


# 2. Only what is missing is made again


def test_a_lost_record_costs_no_tile(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    done, all_tiles = out.slide(plan.slide_id).record(), encoder.tiles
    assert done
    for damage in ("gone", "torn"):
        record = out.slide(plan.slide_id).path / "slide.json"
        record.unlink() if damage == "gone" else record.write_text(record.read_text()[:100])
        assert run_one(squares, out, encoder).embedded
        assert encoder.tiles == all_tiles
        assert out.slide(plan.slide_id).record() == done


def test_only_a_lost_or_changed_chunk_is_embedded_again(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    store, good = plan.store(out), plan.store(out).read()
    for damage in ("gone", "flipped"):
        chunk = store.chunk_files(2)[0]
        chunk.unlink() if damage == "gone" else chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
        (out.slide(plan.slide_id).path / "slide.json").unlink()
        encoder.tiles = 0
        again = run_one(squares, out, encoder)
        assert not again.embedded
        assert encoder.tiles == 8
        assert np.array_equal(store.read().features, good.features, equal_nan=True)


def test_a_changed_grid_is_laid_out_anew(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    xy = plan.store(out).zarr_path / "xy" / "c" / "0" / "0"
    good = xy.read_bytes()
    xy.write_bytes(good[:-1] + b"x")
    (out.slide(plan.slide_id).path / "slide.json").unlink()
    run_one(squares, out, encoder)
    assert xy.read_bytes() == good


def test_products_are_what_was_made_and_not_what_lies_there(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    folder = out.slide(plan.slide_id)
    for stray in (folder.path / ".DS_Store", folder.features / ".DS_Store", folder.features / "features" / "c" / ".DS_Store"):
        stray.write_bytes(b"x")
    (folder.path / "slide.json").unlink()
    run_one(squares, out, encoder)
    record = folder.record()
    assert record
    assert not [name for name in record.products if "DS_Store" in name]
    assert {name.split("/")[1] for name in record.products} == {"zarr.json", "features", "xy", "coverage", "verdict", "tissue"}


# 3. One slide's trouble is its own


def test_another_recipe_is_the_slides_own_failure(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    run_one(squares, out, encoder)
    other = replace(SETTINGS, embed=replace(SETTINGS.embed, max_tiles=5))
    with pytest.raises(StoreError, match=r"made by another recipe \(embed.max_tiles: None there, 5 now\). Choose another --out"):
        plan_slide(SlideJob(squares), out, other, encoder, None, overwrite=False)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_too_large_for_float16_are_stored_as_float32(
    squares: Path, tmp_path: Path, encoder: CountingEncoder, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeanColourEncoder, "embed", lambda self, tiles: np.asarray(tiles).mean((1, 2)).astype(np.float32) * 1e4)
    out = OutFolder(tmp_path / "out")
    settings = replace(SETTINGS, embed=replace(SETTINGS.embed, feature_dtype=dtype))
    if dtype == "float16":
        with pytest.raises(SlideError, match="--feature-dtype float32"):
            run_one(squares, out, encoder, settings)
        return
    found = run_one(squares, out, encoder, settings).store(out).read()
    assert found.features.dtype == np.float32
    assert found.features.max() > 1e6
    assert found.recipe.values["embed"]["feature_dtype"] == "float32"


def test_what_suits_an_encoder_is_stored_without_being_asked(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    encoder.record.feature_dtype = "float32"
    assert (
        run_one(squares, OutFolder(tmp_path / "out"), encoder).store(OutFolder(tmp_path / "out")).read().features.dtype
        == np.float32
    )


def drive(out: OutFolder, *paths: Path) -> Drive:
    states = [SlideState(index, SlideJob(path)) for index, path in enumerate(paths)]
    return Drive(states, Work(out, SETTINGS, "", None, None, False), lambda state: None, threading.Event(), lambda text: None)


def test_only_what_no_slide_can_get_past_ends_a_run(squares: Path, tmp_path: Path) -> None:
    driving = drive(OutFolder(tmp_path / "out"), squares)
    (state,) = driving.states
    step: Any = type("Step", (), {"name": "start"})()
    driving._take(state, step, Failed(StoreError(squares, "another recipe")))
    assert (state.stage, state.reason) == ("failed", "another recipe")
    with pytest.raises(SettingsError):
        driving._take(state, step, Failed(SettingsError("no such device")))


# 4, 13. Records of other versions, and of others


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '{"slide": 3}', '{"format": 99, "slide": {}}', '{"slide": {"slide_id": "../x"}}']
)
def test_a_foreign_record_is_a_row_and_the_report_is_whole(
    squares: Path, tmp_path: Path, encoder: CountingEncoder, content: str
) -> None:
    out = OutFolder(tmp_path / "out")
    run_one(squares, out, encoder)
    foreign = out.slide("foreign-0123456789ab")
    foreign.path.mkdir()
    (foreign.path / "slide.json").write_text(content)
    found = {row["slide_id"]: row for row in rows(out)}
    assert found["foreign-0123456789ab"]["verdict"] == "failed"
    assert "not read" in found["foreign-0123456789ab"]["reason"]
    assert len(found) == 2
    write_report(out, Contents.of(out), run_record())
    assert "foreign-0123456789ab" in out.report.read_text()


def test_a_link_among_the_top_tiles_is_not_followed(tmp_path: Path) -> None:
    from pathovit.outputs.records import Answer, TopTile

    out, folder = OutFolder(tmp_path / "out"), OutFolder(tmp_path / "out").slide("a-1")
    (folder.path / "top_tiles").mkdir(parents=True)
    (tmp_path / "private.txt").write_text("private words")
    (folder.path / "top_tiles" / "01.jpg").symlink_to(tmp_path / "private.txt")
    answer = Answer("m", "a: 0.5", "a", {"prob_a": 0.5}, (("a",),), ("a",), (0.5,), None, None, False)
    record = made_record(prediction=answer, top_tiles=(TopTile("top_tiles/01.jpg", 0.5, 0.1, 0, 0),))
    (folder.path / "slide.json").write_bytes(to_json(record.to_json()))
    write_report(out, Contents.of(out), run_record())
    import base64

    assert base64.b64encode(b"private words").decode() not in out.report.read_text()


# 12. What happened stays on disk


def test_a_failure_stays_in_the_table_until_the_slide_is_done(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out, bad = OutFolder(tmp_path / "out"), tmp_path / "bad.svs"
    bad.write_bytes(b"")
    driving = drive(out, bad)
    driving.refuse_at_sight()
    run_one(squares, out, encoder)  # a later command, on another slide
    found = {row["file"]: row for row in rows(out)}
    assert found["bad.svs"]["reason"].startswith("the file is empty")
    assert found["squares.tif"]["verdict"] == "ok"
    out.settle(bad, "bad-1", None)
    assert {row["file"] for row in rows(out)} == {"squares.tif"}


def test_a_slide_that_is_done_from_another_path_has_failed_no_longer(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "out")
    out.settle(tmp_path / "A" / "a.svs", "a-1", Outcome("a.svs", "its drive was gone", "a-1"))
    out.settle(tmp_path / "C" / "a.svs", "a-1", Outcome("a.svs", "", "a-1", twin=True))
    out.settle(tmp_path / "B" / "a.svs", "a-1", None)
    assert [outcome.twin for outcome in out.outcomes()] == [True]


# 14. Torn notes


@pytest.mark.parametrize("content", ["", '{"sta', "[]", '{"state": 3, "sha256": "x"}', '{"state": [[1]], "sha256": "x"}'])
def test_a_torn_fingerprint_is_computed_again(squares: Path, tmp_path: Path, content: str) -> None:
    out = OutFolder(tmp_path / "out")
    good, state = out.fingerprint(squares)
    (note,) = (out.path / ".fingerprints").iterdir()
    note.write_text(content)
    assert out.superseded() == set()
    assert out.fingerprint(squares) == (good, state)
    assert json.loads(note.read_text())["sha256"] == good


@pytest.mark.parametrize("content", ["", '{"chu', "{}", "[]"])
def test_a_torn_journal_entry_costs_its_chunk_alone(
    squares: Path, tmp_path: Path, encoder: CountingEncoder, content: str
) -> None:
    out = OutFolder(tmp_path / "out")
    plan = plan_slide(SlideJob(squares), out, SETTINGS, encoder, None, overwrite=False)
    assert isinstance(plan, SlidePlan)
    with make_embedder(encoder, SETTINGS) as embedder:
        embed_part(plan, 0, out, SETTINGS, embedder, lambda tiles: None)
    entries = sorted((out.slide(plan.slide_id).path / "journal").iterdir())
    entries[0].write_text(content)
    assert plan.store(out).committed() == {1}
    (out.slide(plan.slide_id).path / "features.json").write_text(content)
    assert plan.store(out).committed() == {1}


# 15. Run records


def test_run_records_are_kept_newest_first_and_a_refused_call_replaces_none(tmp_path: Path) -> None:
    out = OutFolder(tmp_path)
    RunLog(out, run_record(command=("run", "one"))).end(0, 1.0, ())
    log = RunLog(out, run_record(command=("run", "two")))
    assert last_run(out).exit_code is None  # as a run that was killed leaves it
    log.refuse(2, "no such device")
    assert last_run(out).command == ("run", "one")
    RunLog(out, run_record(command=("heatmap",))).end(3, 2.0, ())
    assert [(record.command[-1], record.exit_code) for record in all_runs(out)] == [("heatmap", 3), ("two", 2), ("one", 0)]
    assert last_run(out).command == ("heatmap",)


def test_features_alone_have_a_table_and_a_report_without_answers(
    squares: Path, tmp_path: Path, encoder: CountingEncoder
) -> None:
    out = OutFolder(tmp_path / "out")
    run_one(squares, out, encoder)
    (row,) = rows(out)
    assert "answer" not in row
    assert float(row["minutes"]) < 1
    write_report(out, Contents.of(out), run_record(demonstration=True))
    html = out.report.read_text()
    assert "<th>answer</th>" not in html
    assert "no slide model has answered yet" in html
    assert "demonstration" not in html


def test_a_step_that_fails_keeps_its_error_to_the_end(tmp_path: Path) -> None:
    from pathovit.errors import InternalError
    from pathovit.run.worker import guarded

    def step(error: BaseException) -> None:
        raise error

    assert guarded(lambda: 3, tmp_path) == Ok(3)
    for error in (SlideError(tmp_path / "a.svs", "why"), SettingsError("x")):
        assert guarded(step, tmp_path, error) == Failed(error)
    found = guarded(step, tmp_path, KeyError("x"))
    assert isinstance(found, Failed)
    assert isinstance(found.error, InternalError)
    assert "Traceback" in str(found.error)
    full = guarded(step, tmp_path / "a.svs", MemoryError())
    assert isinstance(full, Failed)
    assert isinstance(full.error, PathovitError)
    assert "needs more memory" in str(full.error)


def test_a_record_says_what_it_is(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    RunLog(out, run_record()).end(0, 1.0, ())
    folder = out.slide(plan.slide_id).path
    for path in (folder / "slide.json", folder / "features.json", out.path / "run.json"):
        found = json.loads(path.read_text())
        assert found["format"] == 1
        assert "research use only" in found["research_use"].lower()
    assert not isinstance(out.slide(plan.slide_id).read(), Refused)
