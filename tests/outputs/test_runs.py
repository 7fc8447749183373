"""What happened stays on disk: failures, torn notes that cost nothing, the records of runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from made_steps import SETTINGS, CountingEncoder, drive, run_one

from pathovit.errors import PathovitError, SettingsError, SlideError
from pathovit.files import to_json
from pathovit.outputs.folder import OutFolder, Refused
from pathovit.outputs.records import Outcome
from pathovit.outputs.runs import RunLog, RunRecord, all_runs, last_run
from pathovit.run.embed import embed_part, make_embedder
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide
from pathovit.run.worker import Failed, Ok
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


# 12. What happened stays on disk


def test_a_failure_stays_in_the_table_until_the_slide_is_done(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out, bad = OutFolder(tmp_path / "out"), tmp_path / "bad.svs"
    bad.write_bytes(b"")
    driving = drive(out, bad)
    driving.refuse_at_sight()
    run_one(squares, out, encoder)  # a later command, on another slide
    found = {row["file"]: row for row in rows(out)}
    assert "bad.svs" not in found  # names are not kept
    found = {row["slide_id"] and "squares.tif": row for row in rows(out)}
    assert found[""]["reason"].startswith("the file is empty")
    assert found["squares.tif"]["verdict"] == "ok"
    out.settle(bad, "bad-1", None)
    assert [row["slide_id"][:6] for row in rows(out)] == ["slide-"]


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
    (tmp_path / "run.json").write_bytes(to_json(run_record(command=("run", "zero")).to_json()))  # of a version that kept one
    RunLog(out, run_record(command=("run", "one"))).end(0, 1.0, ())
    log = RunLog(out, run_record(command=("run", "two")))
    assert last_run(out).exit_code is None  # as a run that was killed leaves it
    log.refuse(SettingsError("no such device"))
    assert last_run(out).command == ("run", "one")
    RunLog(out, run_record(command=("heatmap",))).end(3, 2.0, ())
    assert [(record.command[-1], record.exit_code) for record in all_runs(out)] == [
        ("heatmap", 3),
        ("two", 2),
        ("one", 0),
        ("zero", None),
    ]
    assert last_run(out).command == ("heatmap",)
    first, joined = RunLog(out, run_record(command=("first",))), RunLog(out, run_record(command=("joined",)))
    first.end(0, 1.0, ())
    joined.refuse(SettingsError("no such device"))
    assert (last_run(out).command, last_run(out).exit_code) == (("first",), 0), "not as it was when the other one began"


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
    assert ">answer</button>" not in html
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
        assert found["format"] == 2
        assert "research use only" in found["research_use"].lower()
    assert not isinstance(out.slide(plan.slide_id).read(), Refused)
