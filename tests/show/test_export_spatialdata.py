"""A store for LazySlide: read back by spatialdata, and by what LazySlide's own reader checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import folder_of
from typer.testing import CliRunner

from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore


def test_lazyslide_finds_tiles_tissue_and_features(finished: Path, tmp_path: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata", reason="it holds dask back: an environment of its own", exc_type=ImportError)
    done = CliRunner().invoke(app, ["export", str(finished), "--to", "spatialdata", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    name = folder_of(finished, "one").name
    stored = FeatureStore(OutFolder(finished).slide(name), Path("one.svs")).read()
    store = spatialdata.read_zarr(tmp_path / f"{name}.zarr")
    (table,) = store.tables.values()
    assert list(store.tables) == ["reference_tiles"]
    assert np.array_equal(table.X, stored.features[stored.ok].astype(np.float32))
    about = table.uns["spatialdata_attrs"]
    assert (about["region"], about["region_key"], about["instance_key"]) == ("tiles", "library_id", "tile_id")
    tiles, tissues = store.shapes["tiles"], store.shapes["tissues"]
    assert np.array_equal(tiles[["x", "y"]].to_numpy(), stored.xy[stored.ok])
    assert np.array_equal(tiles["tile_id"].to_numpy(), table.obs["tile_id"].to_numpy())
    assert np.array_equal(tiles.geometry.bounds[["minx", "miny"]].to_numpy().round(), stored.xy[stored.ok])
    pieces = tissues.set_index("tissue_id").geometry
    for tile, piece in zip(tiles.geometry, tiles["tissue_id"], strict=True):
        assert pieces[piece].buffer(1).covers(tile)
    assert tiles["score_tumour"].to_numpy().max() > 0.5
    assert np.array_equal(tiles["score_tumour"].to_numpy(), table.obs["score_tumour"].to_numpy())
    spec = store.attrs["tile_spec"]["tiles"]
    assert int(spec["width"] * spec["base_downsample"]) == round(stored.tile_l0[0]), "as TileSpec.base_width has it"
    assert spec["tissue_name"] == "tissues"
    width, height = stored.attributes.level0_size
    assert store.attrs["slide_properties"]["shape"] == [height, width], "else it is the store of another slide"
    assert store.attrs["slide_properties"]["mpp"] == stored.mpp[0]
    assert "research use" in store.attrs["pathovit"]["research_use"].lower()
