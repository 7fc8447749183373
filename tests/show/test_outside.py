"""A slide that the model was not made for: nothing that leaves the folder shows its scores as a finding."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import anndata
import matplotlib as mpl
import numpy as np
import pytest
from made_runs import folder_of
from typer.testing import CliRunner, Result

import pathovit
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.errors import SettingsError
from pathovit.model.slide_model import load_model, save_model
from pathovit.outputs.folder import OutFolder
from pathovit.study.regions import read_regions

KEYS = ("config", "weights_sha256")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def outside(finished: Path, slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three slides, of which a model says that it was not made for them."""
    folder = tmp_path_factory.mktemp("outside")
    out = Path(shutil.copytree(finished, folder / "out"))
    model = load_model("reference")
    assert model.novelty
    strict = replace(model, novelty=replace(model.novelty, slide_limit=np.float32(1e-9), stray=np.float32(0)))
    card = replace(model.card, values={name: value for name, value in model.card.values.items() if name not in KEYS})
    save_model(folder / "m", replace(strict, card=card))
    assert call("heatmap", *slides, "--out", out, "--model", folder / "m").exit_code == 0
    assert set(pathovit.load_results(out)["answer"]) == {"outside"}
    return out


def test_qupath_is_shown_no_tumour(outside: Path) -> None:
    for folder in OutFolder(outside).slides():
        found = json.loads((folder.path / "heatmap.geojson").read_text())["features"]
        regions = [one["properties"] for one in found if one["properties"]["objectType"] == "annotation"]
        assert {one["name"] for one in regions} == {"Outside what the model was made for"}
        assert not any(one["measurements"] for one in regions)
        measured = {name for one in found for name in one["properties"].get("measurements", {})}
        assert "Score: tumour (outside)" in measured
        assert "Score: tumour" not in measured
        with pytest.raises(SettingsError, match="no region with a class"):
            read_regions(folder.path / "heatmap.geojson", lambda said: None)


def test_a_plot_has_no_colour_and_says_why(outside: Path) -> None:
    with mpl.rc_context({"backend": "agg"}):
        axes = pathovit.load_heatmap(outside, "one").plot()
        assert axes.images[0].get_cmap().name == "Greys"
        assert axes.get_title().startswith("outside what this model was made for")
        other = pathovit.load_heatmap(outside, "one").plot("attention")
        assert "outside" not in other.get_title()
    assert "outside what this model was made for" in pathovit.load_heatmap(outside, "one")._repr_html_()


def test_tables_name_the_scores_by_what_they_are(outside: Path, tmp_path: Path) -> None:
    assert call("export", outside, "--to", "csv", "--folder", tmp_path / "csv").exit_code == 0
    assert call("export", outside, "--to", "anndata", "--folder", tmp_path / "h5ad").exit_code == 0
    name = folder_of(outside, "one").name
    with (tmp_path / "csv" / f"{name}.csv").open() as file:
        columns = next(csv.reader(file))
    assert "outside the model, score: tumour" in columns
    assert "score: tumour" not in columns
    assert "outside the model, score: tumour" in anndata.read_h5ad(tmp_path / "h5ad" / f"{name}.h5ad").obs


def test_nothing_is_learned_from_such_maps(outside: Path, tmp_path: Path) -> None:
    done = call("export", outside, "--to", "wsinfer", "--folder", tmp_path / "w")
    assert done.exit_code != 0
    assert "no slide here has a map of a model that was made for it" in str(done.exception) + done.stderr
