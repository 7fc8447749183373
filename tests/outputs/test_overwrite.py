"""--overwrite: what is replaced takes along what was made of it, and an interrupted call goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import stored_bytes
from made_steps import SETTINGS, CountingEncoder, run_one

from pathovit.errors import StoreError
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.provenance import STEP_VERSIONS
from pathovit.run.embed import embed_part, make_embedder
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


def test_replaced_features_take_along_what_was_made_of_them(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    plan = run_one(squares, out, encoder)
    folder = out.slide(plan.slide_id)
    (folder.path / "top_tiles").mkdir()
    for name in ("heatmap.ome.tiff", "heatmap.geojson", "overview.png", "top_tiles/01.jpg"):
        (folder.path / name).write_bytes(b"of the replaced features")
    run_one(squares, out, encoder, overwrite=True)
    assert {p.name for p in folder.path.iterdir()} == {"features.zarr", "features.json", "slide.json", "views"}
    record = folder.record()
    assert record
    assert all(name.startswith(("features.zarr/", "features.json", "views/")) for name in record.products)


def test_features_of_an_older_version_are_left_and_it_is_said_what_still_works(
    squares: Path, tmp_path: Path, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = OutFolder(tmp_path / "out")
    run_one(squares, out, encoder)
    before = stored_bytes(out.path)
    monkeypatch.setitem(STEP_VERSIONS, "tiling", STEP_VERSIONS["tiling"] + 1)
    with pytest.raises(
        StoreError, match=r"made by an older pathovit.*steps.tiling.*predict, teach, export and verify still work.*--overwrite"
    ):
        run_one(squares, out, encoder)
    assert stored_bytes(out.path) == before


def test_an_interrupted_overwrite_goes_on(squares: Path, tmp_path: Path, encoder: CountingEncoder) -> None:
    out = OutFolder(tmp_path / "out")
    all_tiles = run_one(squares, out, encoder).survey.tiles
    assert out.begin_replacing("call") is False
    run_one(squares, out, encoder, overwrite=True)
    assert encoder.tiles == 2 * all_tiles
    assert out.begin_replacing("call") is True  # interrupted, and called again
    assert run_one(squares, out, encoder, overwrite=True).done
    assert encoder.tiles == 2 * all_tiles
    assert out.begin_replacing("another call") is False  # other settings: from the beginning
    run_one(squares, out, encoder, overwrite=True)
    assert encoder.tiles == 3 * all_tiles
    out.end_replacing()
    run_one(squares, out, encoder, overwrite=True)
    assert encoder.tiles == 4 * all_tiles


def test_an_overwrite_interrupted_within_a_slide_keeps_its_chunks(
    squares: Path, tmp_path: Path, encoder: CountingEncoder
) -> None:
    out = OutFolder(tmp_path / "out")
    all_tiles = run_one(squares, out, encoder).survey.tiles
    out.begin_replacing("call")
    plan = plan_slide(SlideJob(squares), out, SETTINGS, encoder, None, overwrite=True)
    assert isinstance(plan, SlidePlan)
    with make_embedder(encoder, SETTINGS) as embedder:
        embed_part(plan, 0, out, SETTINGS, embedder, lambda tiles: None)
    encoder.tiles = 0
    out.begin_replacing("call")
    run_one(squares, out, encoder, overwrite=True)
    assert encoder.tiles == all_tiles - SETTINGS.embed.part_tiles
