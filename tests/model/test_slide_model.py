import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made import made_features
from made_bags import DIM, bag, network

from pathovit.errors import SettingsError, WeightsError
from pathovit.model.calibration import Calibration
from pathovit.model.card import ModelCard
from pathovit.model.novelty import Novelty
from pathovit.model.slide_model import SlideModel, load_model, save_model
from pathovit.model.targets import Target
from pathovit.outputs.features import SlideFeatures, TileVerdict
from pathovit.outputs.records import OUTSIDE, UNSURE

BINARY = Target("binary", ("label",), ("normal", "tumour"))
EVERY = tuple(np.linspace(0, 1, 101))  # conformity of a model whose probabilities are even


def slide_features(tiles: int = 50) -> SlideFeatures:
    features, xy = bag(tiles)
    recipe = {"encoder": {"encoder": "e", "weights_sha256": "w", "dim": DIM, "tile_px": 96}, "tiles": {"mpp": 1.0}}
    verdict = np.zeros(tiles, np.uint8)
    verdict[7] = TileVerdict.UNREADABLE
    values = features.numpy().astype(np.float16)
    values[7] = np.nan
    return made_features(xy.numpy().astype(np.int64), values, verdict, recipe=recipe)


def card(**changes: object) -> ModelCard:
    return ModelCard({"encoder": {"encoder": "e", "weights_sha256": "w", "dim": DIM, "tile_px": 96, "mpp": 1.0, **changes}})


def model(target: Target = BINARY, **calibration: object) -> SlideModel:
    options = len(target.classes)
    conformity = ((EVERY,) * 2,) * options if target.task == "multilabel" else ((EVERY,) * options,)
    known = {"hot": (0.0,) * target.outputs, "conformity": conformity, **calibration}
    features, _ = bag(500)
    novelty = Novelty.fit([features.numpy()], [features.numpy()])
    return SlideModel(network(target.outputs), target, Calibration(**known), novelty, card(), "")


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_tiles_add_up_to_the_calibrated_answer(temperature: float) -> None:
    answer = model(temperature=temperature).predict(slide_features())
    assert np.nansum(answer.contributions, 0) + answer.bias == pytest.approx(answer.logits, abs=1e-5)
    assert np.nansum(answer.attention) == pytest.approx(1, abs=1e-5)
    assert answer.probabilities.sum() == pytest.approx(1)
    assert answer.probabilities[1] == pytest.approx(1 / (1 + np.exp(-answer.logits[0])), abs=1e-5)
    plain = model().predict(slide_features())
    assert answer.logits * temperature == pytest.approx(plain.logits, abs=1e-5)


def test_tiles_that_were_not_read_have_no_score_and_no_influence() -> None:
    answer = model().predict(slide_features())
    for values in (answer.tile_scores[:, 0], answer.attention, answer.tile_novelty):
        assert np.isnan(values[7])
        assert np.isfinite(np.delete(values, 7, 0)).all()


def test_half_is_the_evidence_that_benign_patients_hardly_reach() -> None:
    cold = model().predict(slide_features()).tile_scores
    odds = np.log(cold / (1 - cold))
    shifted = model(hot=(1.5,)).predict(slide_features()).tile_scores
    assert np.log(shifted / (1 - shifted)) == pytest.approx(odds - 1.5, abs=1e-4, nan_ok=True)


def test_an_answer_that_cannot_be_ruled_out_is_unsure() -> None:
    slide = slide_features()
    chance = float(model().predict(slide).probabilities[1])
    rejected = min(chance, 1 - chance)  # p-value of the less likely class when conformity is even
    assert model().predict(slide, error_rate=rejected / 2).answer == UNSURE
    found = model().predict(slide, error_rate=rejected + 0.05)
    assert found.answer == ("tumour" if chance > 0.5 else "normal")
    assert "unsure" in model().predict(slide, error_rate=rejected / 2).headline


@pytest.mark.parametrize(("task", "total"), [("multiclass", 1.0), ("multilabel", None)])
def test_more_than_two_classes(task: str, total: float | None) -> None:
    answer = model(Target(task, ("a", "b", "c") if task == "multilabel" else ("x",), ("a", "b", "c"))).predict(slide_features())
    assert answer.probabilities.shape == (3,)
    assert answer.tile_scores.shape == (50, 3)
    assert len(answer.possible) == (3 if task == "multilabel" else 1)
    if total is not None:
        assert answer.probabilities.sum() == pytest.approx(total)


def test_a_measurement_has_its_unit_and_an_interval() -> None:
    asked = Target("regression", ("age",), ("age",))
    answer = model(asked, centre=50.0, scale=10.0, conformity=((tuple(np.linspace(0, 1, 99)),),)).predict(slide_features())
    assert answer.value == pytest.approx(answer.logits[0] * 10 + 50, abs=1e-4)
    assert answer.interval == pytest.approx((answer.value - 9.1, answer.value + 9.1), abs=0.15)  # the 90th of 99 residuals
    assert list(answer.columns()) == ["predicted_age", "low_age", "high_age"]
    assert json.loads(json.dumps(asdict(answer.to_answer("m"))))["columns"]["predicted_age"] == answer.value
    assert answer.headline.startswith("age: ")
    strange = slide_features()
    strange.features[:] += 10
    assert list(model(asked, conformity=(((0.0,) * 99,),)).predict(strange).columns()) == ["predicted_age"]


def test_a_strange_slide_is_flagged_and_its_tiles_too() -> None:
    slide = slide_features()
    usual = model().predict(slide)
    slide.features[:] += 10
    strange = model().predict(slide)
    assert not usual.strange
    assert strange.strange
    assert strange.answer == OUTSIDE
    assert strange.headline == "outside what this model was made for"
    assert strange.columns() == {"prob_normal": None, "prob_tumour": None}
    assert strange.to_answer("m").probabilities == ()
    assert "pathovit teach" in strange.remark
    assert usual.remark == ""
    assert strange.possible == (("normal", "tumour"),)
    assert np.nanmin(strange.tile_novelty) > np.nanmax(usual.tile_novelty)


def test_a_model_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    made = model(temperature=1.7, hot=(0.4,))
    save_model(tmp_path / "m", made)
    slide = slide_features()
    one, two = made.predict(slide), load_model(tmp_path / "m").predict(slide)
    assert np.array_equal(one.logits, two.logits)
    assert np.array_equal(one.tile_novelty, two.tile_novelty, equal_nan=True)
    assert one.to_answer("m") == two.to_answer("m")


@pytest.mark.parametrize(("key", "value"), [("encoder", "other"), ("weights_sha256", "other"), ("mpp", 0.5), ("tile_px", 224)])
def test_features_the_model_was_not_trained_on_are_refused_and_both_named(tmp_path: Path, key: str, value: object) -> None:
    calibration = Calibration(conformity=(((), ()),))
    save_model(tmp_path / "m", SlideModel(network(), BINARY, calibration, None, card(**{key: value}), ""))
    with pytest.raises(SettingsError, match=rf"'m' was trained on features with {key} = {value}, and these have"):
        load_model(tmp_path / "m").predict(slide_features())


def test_swapped_weights_are_noticed(tmp_path: Path) -> None:
    save_model(tmp_path / "m", model())
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**described, "weights_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="its SHA-256 is not the one in model.json"):
        load_model(tmp_path / "m")


def test_a_folder_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model.json is missing.*pathovit train"):
        load_model(tmp_path)
