"""What an output folder holds survives: twins, missing pictures, records of others, interrupted calls, failures of yesterday.

Whole runs in this process, with an encoder that needs no weights; real workers are in test_run.py.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import made_record
from made_slides import MeanColourEncoder
from made_steps import SETTINGS, CountingEncoder, drive, run_one

from pathovit.errors import SettingsError, SlideError, StoreError
from pathovit.files import to_json
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.names import Names
from pathovit.outputs.records import Outcome
from pathovit.outputs.runs import RunRecord
from pathovit.outputs.sealed import read_sealed, write_sealed
from pathovit.run.folder import exit_code
from pathovit.run.plan import SlideJob, Twin, plan_slide
from pathovit.run.schedule import SlideState
from pathovit.run.worker import Failed
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


def test_a_twin_shares_the_fate_of_its_first(tmp_path: Path) -> None:
    from pathovit.run.folder import _require_rows

    first, twin = (SlideState(index, SlideJob(tmp_path / name / "a.svs")) for index, name in enumerate("AB"))
    first.fail(SlideError(first.job.path, "damaged"))
    twin.stage, twin.twin_of, twin.twin_id = "done", first, "a-1"
    _require_rows([first, twin], Contents((), (), (), frozenset()))
    assert twin.stage == "failed"
    assert twin.reason.endswith("A/a.svs, which failed")
    assert exit_code([first, twin]) == 3


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
    inside = {"zarr.json", "features", "xy", "coverage", "verdict", "tissue"}
    assert {name.split("/")[-1 if "/" not in name else 1] for name in record.products} == inside | {"01.jpg", "features.json"}


# 3. One slide's trouble is its own


def test_another_recipe_is_the_slides_own_failure(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    run_one(squares, out, encoder)
    other = replace(SETTINGS, embed=replace(SETTINGS.embed, max_tiles=5))
    with pytest.raises(StoreError, match=r"made by another recipe \(embed.max_tiles: None there, 5 now\). Choose another --out"):
        plan_slide(SlideJob(squares), out, other, encoder, None, overwrite=False)


def test_features_of_a_version_of_long_ago_are_refused_and_never_wiped(
    squares: Path, tmp_path: Path, encoder: CountingEncoder
) -> None:
    """Days of work: an attribute that it lacks must not make it count as damaged."""
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    about = plan.store(out).zarr_path / "zarr.json"
    found = json.loads(about.read_text())
    del found["attributes"]["tissue_downsample"]
    found["attributes"]["recipe"]["steps"]["tissue"] = 1
    about.write_text(json.dumps(found))
    for name in ("slide.json", "features.json"):
        (out.slide(plan.slide_id).path / name).unlink()
    chunk = plan.store(out).chunk_files(0)[0]
    kept = chunk.read_bytes()
    with pytest.raises(StoreError, match=r"made by an older pathovit.*\(steps.tissue: 1 there"):
        run_one(squares, out, encoder)
    assert chunk.read_bytes() == kept


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


def test_only_what_no_slide_can_get_past_ends_a_run(squares: Path, tmp_path: Path) -> None:
    driving = drive(OutFolder(tmp_path / "out"), squares)
    (state,) = driving.states
    step: Any = type("Step", (), {"name": "start"})()
    driving._take(state, step, Failed(StoreError(squares, "another recipe")))
    assert (state.stage, state.reason) == ("failed", "another recipe")
    with pytest.raises(SettingsError, match="no such device"):
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


def test_a_slide_that_was_replaced_keeps_its_name_beside_the_new_one(tmp_path: Path) -> None:
    names, path = Names(), tmp_path / "a.svs"
    names.note(path, "P1", "old-1")
    names.write(tmp_path)
    names = Names.read(tmp_path)
    names.note(path, "P1")  # a run begins
    names.note(path, "P1", "new-2")  # and ends
    names.note(path, "P1", "new-2")
    names.write(tmp_path)
    found = Names.read(tmp_path)
    assert (found.by_id()["old-1"], found.by_id()["new-2"]) == ("a.svs", "a.svs")
    (about,) = found.files.values()
    assert (about.slide_id, about.earlier) == ("new-2", ("old-1",))


def test_outcomes_are_read_once_and_again_where_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = OutFolder(tmp_path)
    reads: list[Path] = []

    def counted(path: Path) -> Any:
        reads.append(path)
        return read_sealed(path)

    monkeypatch.setattr("pathovit.outputs.folder.read_sealed", counted)
    failed = Outcome("a.svs", "it is damaged")
    out.settle(tmp_path / "a.svs", "", failed)
    for number in range(5):
        out.settle(tmp_path / f"{number}.svs", f"{number}-1", None)
    assert len(reads) == 1
    out.settle(tmp_path / "a.svs", "", replace(failed, reason="it is gone"))
    assert [outcome.reason for outcome in out.outcomes()] == ["it is gone"]


def test_an_old_record_vouches_for_chunks_while_one_is_mended_and_for_none_while_all_are_made_anew(
    squares: Path, tmp_path: Path, encoder: CountingEncoder
) -> None:
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    store, folder = plan.store(out), out.slide(plan.slide_id)
    (folder.path / "features.json").unlink()  # as a version of long ago had it
    record = read_sealed(folder.path / "slide.json")
    record["products"] = {name: digest for name, digest in record["products"].items() if name != "features.json"}
    write_sealed(folder.path / "slide.json", record)
    before = store.committed()
    assert len(before) > 1
    kept = store.read()
    store.write_chunk(0, kept.features[:8], kept.verdict[:8])
    assert store.committed() == before
    store.create(store.grid(), kept.features.shape[1], 8, store.attributes(), store.tissue(), forget=False)
    assert folder.features_record() is None
    assert store.committed() == set()
