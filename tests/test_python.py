"""pathovit as a library: what `import pathovit` gives, every example of its docstrings, and what a notebook shows."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch

import pathovit
from pathovit.errors import NoSlidesError, OutputInUseError, SettingsError
from pathovit.model.aggregator import Aggregator, TileEvidence
from pathovit.model.baselines import MeanPool, make_aggregator
from pathovit.model.contract import Fault
from pathovit.model.own_kinds import _REGISTERED
from pathovit.model.slide_model import load_model, save_model
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.lease import lease
from pathovit.outputs.runs import last_run
from pathovit.run.single import FROM_PYTHON
from pathovit.settings import AggregatorConfig, settings_from_dict

PUBLIC = sorted(name for name in pathovit.__all__ if not isinstance(getattr(pathovit, name), str))
PLAIN = ("SettingsError", "SlideError", "FeatureStore", "OutFolder")  # whose examples are elsewhere


@pytest.fixture(scope="module")
def results(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the first slide."""
    out = tmp_path_factory.mktemp("results") / "out"
    result = pathovit.run_folder(slides[0], out, progress=False)
    assert result.exit_code == 0
    return out


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_object_is_explained_with_an_example_that_runs(
    name: str, results: Path, slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pathovit.model.own_kinds._REGISTERED", {})
    found = getattr(pathovit, name)
    assert inspect.getdoc(found)
    if inspect.isfunction(found):
        taken = set(inspect.signature(found).parameters)
        assert not taken or "Examples" in (found.__doc__ or ""), name
    names: dict[str, Any] = {
        "pathovit": pathovit, "np": np, "torch": torch, "Path": Path, "dataclasses": dataclasses, "path": slides[0], "out": results,
    }  # fmt: skip
    with mpl.rc_context({"backend": "agg"}):
        tests = doctest.DocTestFinder(recurse=inspect.isclass(found)).find(found, name, globs=names)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        for one in tests:
            assert runner.run(one).failed == 0, one.name
    assert runner.tries or name in PLAIN, f"{name} has no example"


def test_the_stub_gives_what_is_there() -> None:
    tree = ast.parse((Path(pathovit.__file__).parent / "__init__.pyi").read_text("utf-8"))
    said = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert {alias.name for alias in said} == set(PUBLIC)
    assert all(alias.asname == alias.name for alias in said), "type checkers take others for private"
    assert set(dir(pathovit)) >= set(PUBLIC)


def test_importing_does_no_work() -> None:
    code = "import sys, pathovit; print(len(dir(pathovit)), 'torch' in sys.modules, 'zarr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False", "False"]


def test_results_are_a_table_with_the_names_of_files(results: Path) -> None:
    table = pathovit.load_results(results)
    (slide,) = OutFolder(results).slides()
    assert table["file"].tolist() == ["one.svs"]
    assert table["slide_id"].tolist() == [slide.slide_id]
    assert 0 <= table["prob_tumour"][0] <= 1
    assert table[["patient", "reason", "code"]].to_numpy().tolist() == [["", "", ""]]
    with pytest.raises(NoSlidesError, match="there is no predictions.csv in it. Make one with: pathovit run"):
        pathovit.load_results(results / "slides")


def test_what_is_text_in_the_table_stays_text(results: Path, tmp_path: Path) -> None:
    text = (results / "predictions.csv").read_text()
    head, first, *_ = text.splitlines()
    names, cells = head.split(","), first.split(",")
    cells[names.index("patient")], cells[names.index("answer")] = "007", "NA"
    (tmp_path / "predictions.csv").write_text("\n".join([head, ",".join(cells), first]) + "\n")
    found = pathovit.load_results(tmp_path)
    assert found["patient"].tolist() == ["007", ""]
    assert found["answer"].tolist()[0] == "NA"
    assert found["novelty"].dtype == float


def test_a_slide_is_found_by_any_of_its_names(results: Path, finished: Path) -> None:
    (slide,) = OutFolder(results).slides()
    ways = [
        (results, None),
        (results, "one"),
        (results, "one.svs"),
        (results, slide.slide_id),
        (slide.path, None),
        (slide.features, None),
    ]
    found = [pathovit.load_features(*way) for way in ways]
    assert {one.slide_id for one in found} == {slide.slide_id}
    with pytest.raises(SettingsError, match=r"it holds 3 slides .*Say which: load_features"):
        pathovit.load_features(finished)
    with pytest.raises(NoSlidesError, match=r"there is no slide 'four' in it, but .*one.svs"):
        pathovit.load_features(finished, "four")
    with pytest.raises(NoSlidesError, match="there is no slide in it"):
        pathovit.load_features(results / "tissue")


def test_a_map_is_read_back_as_it_was_drawn(results: Path) -> None:
    features, heatmap = pathovit.load_features(results), pathovit.load_heatmap(results)
    prediction = load_model("reference").predict(features)
    column, row = features.grid.lattice().T
    assert np.array_equal(heatmap.layers[0][row, column], prediction.tile_scores[:, 0])
    assert heatmap.unread.shape == heatmap.layers.shape[1:]
    with mpl.rc_context({"backend": "agg"}):
        axes = heatmap.plot("attention")
        (image,) = axes.images
        assert np.array_equal(image.get_array().filled(np.nan), heatmap.layers[1], equal_nan=True)
        left, right, bottom, top = image.get_extent()
        assert (right - left) / heatmap.layers.shape[2] == pytest.approx(0.096), "millimetres"
        assert (bottom - top) / heatmap.layers.shape[1] == pytest.approx(0.096)
        assert axes.get_title() == pathovit.RESEARCH_USE
        with pytest.raises(SettingsError, match="There is no layer 'tumour'. Use 'score: tumour', 'attention', 'novelty'"):
            heatmap.plot("tumour")


def test_a_notebook_shows_what_it_is_given(results: Path, slides: list[Path]) -> None:
    features = pathovit.load_features(results)
    with pathovit.open_slide(slides[0]) as slide:
        shown = [slide._repr_html_()]
    shown += [features._repr_html_(), pathovit.load_heatmap(results)._repr_html_()]
    assert all("<img alt='' src='data:image/png;base64," in one for one in shown)
    assert "95 tiles x 256" in shown[1]
    assert pathovit.RESEARCH_USE in shown[2]
    answer = load_model("reference").predict(features)._repr_html_()
    assert "tumour: " in answer
    assert pathovit.RESEARCH_USE in answer
    hostile = dataclasses.replace(features, slide_id="<script>")
    assert "<script>" not in hostile._repr_html_()


def test_names_paths_and_objects_serve_alike(slides: list[Path], tmp_path: Path) -> None:
    few = {"embed": {"max_tiles": 20}}
    (tmp_path / "few.toml").write_text("[embed]\nmax_tiles = 20\n")
    one, _ = pathovit.analyse_slide(slides[0], out=tmp_path / "a", settings=few)
    encoder, model = pathovit.load_encoder("reference"), pathovit.load_model("reference")
    two, _ = pathovit.analyse_slide(str(slides[0]), encoder, model, tmp_path / "b", tmp_path / "few.toml")
    three, _ = pathovit.analyse_slide(slides[0], "reference", "reference", tmp_path / "c", settings_from_dict(few, "few"))
    assert len(one.tile_scores) == 20
    assert np.array_equal(one.tile_scores, two.tile_scores)
    assert np.array_equal(one.tile_scores, three.tile_scores)
    with pytest.raises(SettingsError, match=r"pathovit.own_encoder\(it, name, mpp=..., tile_px=...\) makes one"):
        pathovit.analyse_slide(slides[0], lambda tiles: tiles, out=tmp_path / "d")
    with pytest.raises(SettingsError, match="encoder: Encoder is an object, and workers are processes of their own"):
        pathovit.run_folder(slides[0], tmp_path / "d", encoder=encoder)
    with pytest.raises(SettingsError, match=r"settings, \[embed\]: unknown setting 'max_tile'"):
        pathovit.run_folder(slides[0], tmp_path / "d", settings={"embed": {"max_tile": 20}})


def test_a_run_tells_how_it_goes_unless_it_is_asked_not_to(
    results: Path, slides: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    pathovit.run_folder(slides[0], results)
    assert re.search(r"\[1/1\] one\.svs: done already", capfd.readouterr().err)
    pathovit.run_folder(slides[0], results, progress=False)
    assert capfd.readouterr().err == ""


class Halved(MeanPool):
    """An aggregator of one's own."""


def test_an_aggregator_of_ones_own_is_trained_kept_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_REGISTERED, "halved", Halved)
    with pytest.raises(SettingsError, match="'mean' is the name of an aggregator of pathovit"):
        pathovit.register_aggregator("mean", Halved)
    known = load_model("reference")
    config = dataclasses.replace(known.network.config, kind="halved")
    network = make_aggregator(config)
    assert isinstance(network, Halved)
    card = dataclasses.replace(
        known.card, values={k: v for k, v in known.card.values.items() if k not in ("config", "weights_sha256")}
    )
    saved = save_model(tmp_path / "mine", dataclasses.replace(known, network=network.eval(), card=card))
    assert saved.card.config.kind == "halved"
    assert isinstance(load_model(tmp_path / "mine").network, Halved)
    monkeypatch.delitem(_REGISTERED, "halved")
    with pytest.raises((SettingsError, Fault), match="'halved' is unknown.*or what is registered here"):
        load_model(tmp_path / "mine")
    with pytest.raises(SettingsError, match="--kind 'halved' is unknown"):
        make_aggregator(AggregatorConfig(4, 1, kind="halved"))


def test_one_slide_at_a_time_is_written_into_a_folder(results: Path, slides: list[Path]) -> None:
    with lease(results), pytest.raises(OutputInUseError, match="another run is writing here"):
        pathovit.analyse_slide(slides[0], out=results)


class Exact(Aggregator):
    """An aggregator of one's own that takes what it was trained on, and nothing else."""

    def forward(self, features: torch.Tensor, xy_um: torch.Tensor, pitch_um: float) -> TileEvidence:
        assert (features.dtype, xy_um.dtype) == (torch.float32, torch.float32)
        assert xy_um.min() == 0
        some = torch.zeros(len(features), 1)
        return TileEvidence(torch.zeros(1), some, some[:, 0], torch.zeros(1))


def test_an_aggregator_of_ones_own_is_given_what_it_was_trained_on() -> None:
    model = dataclasses.replace(load_model("reference"), network=Exact(AggregatorConfig(4, 1, kind="exact")))
    seen = model.look(torch.zeros(5, 4, dtype=torch.float16), 10.0 + torch.rand(5, 2, dtype=torch.float64), 96.0)
    assert seen.evidence.shape == (5, 1)


def test_what_draws_a_map_anew_is_the_model_that_drew_it(slides: list[Path], tmp_path: Path) -> None:
    few, model = {"embed": {"max_tiles": 6}}, pathovit.load_model("reference")
    card = dataclasses.replace(
        model.card, values={k: v for k, v in model.card.values.items() if k not in ("config", "weights_sha256", "calibration")}
    )
    own = save_model(
        tmp_path / "own",
        dataclasses.replace(model, calibration=dataclasses.replace(model.calibration, temperature=2.0), card=card),
    )
    known = {
        "object": (model, few, "reference"),
        "folder": (own, few | {"heatmap": {"model": str(tmp_path / "own")}}, str(tmp_path / "own")),
    }
    for name, (given, settings, leads_to) in (known | {"lost": (own, few, FROM_PYTHON)}).items():
        out = pathovit.OutFolder(tmp_path / name)
        pathovit.analyse_slide(slides[0], model=given, out=out.path, settings=settings)
        assert last_run(out).with_names(out.names()).model == leads_to
        assert last_run(out).model_sha256 == given.sha256
