"""Teaching: a few painted tiles to a model, what it is worth, what it does not know, what it asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import made_features
from sklearn.linear_model import LogisticRegression

import pathovit
from pathovit.errors import SettingsError
from pathovit.model.card_text import describe_taught
from pathovit.model.slide_model import load_model, save_model
from pathovit.outputs.features import SlideFeatures
from pathovit.study.lessons import lessons_of
from pathovit.study.suggest import _make_room
from pathovit.study.teach import fit_regression, learn

SIDE, DIM = 40, 12  # tiles on the side of a slide
RECIPE = {
    "encoder": {"encoder": "e", "weights_sha256": "w", "dim": DIM, "tile_px": 96},
    "tiles": {"mpp": 1.0, "stride_px": 96, "tile_px": 96},
    "embed": {"max_tiles": None},
}


def tissue(seed: int = 0, slide_id: str = "s-1", **recipe: Any) -> tuple[SlideFeatures, np.ndarray]:
    """A slide of 1,600 tiles, left half stroma, right half tumour, a corner of something else; and which is which."""
    chance = np.random.default_rng(seed)
    columns, rows = (part.ravel() for part in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    what = np.where(columns >= SIDE // 2, "tumour", "stroma").astype(object)
    what[(columns < 12) & (rows >= 30)] = "fat"
    centre = {"stroma": 0, "tumour": 1, "fat": 2}
    features = chance.normal(size=(SIDE * SIDE, DIM)).astype(np.float32)
    features[np.arange(len(what)), [centre[name] for name in what]] += np.where(what == "fat", 12, 2)
    xy = np.stack([columns, rows], -1) * 96
    slide = made_features(xy, features.astype(np.float16), recipe=RECIPE | recipe)
    return replace(slide, slide_id=slide_id), what


def paint(what: np.ndarray, *names: str, strokes: int = 5) -> list[str]:
    """Strokes of four tiles of each class, far from each other."""
    labels = np.full(SIDE * SIDE, "", object)
    for name in names:
        for row in np.linspace(2, 26, strokes).astype(int):
            row = row if name != "fat" else 30 + row // 3
            tiles = row * SIDE + np.arange(4) + (30 if name == "tumour" else 4)
            labels[tiles[what[tiles] == name]] = name
    return list(labels)


def far(labels: list[str]) -> np.ndarray:
    """Tiles at least six away from any that was painted."""
    painted = np.flatnonzero(np.array(labels) != "")
    place = np.stack(np.divmod(np.arange(SIDE * SIDE), SIDE), -1)
    away: np.ndarray = np.abs(place[:, None] - place[painted][None]).max(-1).min(1) >= 6
    return away


def test_a_few_strokes_are_carried_to_the_rest_and_what_was_not_taught_is_told() -> None:
    slide, what = tissue()
    labels = paint(what, "stroma", "tumour")
    model = pathovit.teach([slide], {"s-1": labels}, positive="tumour")
    found = model.predict(slide)
    judged = far(labels) & (what != "fat")
    taken = np.where(found.tile_scores[:, 0] >= 0.5, "tumour", "stroma")
    assert (taken == what)[judged].mean() > 0.95
    assert found.untaught[what == "fat"].mean() > 0.9
    assert found.untaught[judged].mean() < 0.3
    assert found.answer == "map"
    assert sum(found.shares().values()) == pytest.approx(1)
    assert found.headline.startswith("tumour: ")
    assert "unlike what was taught" in found.headline
    assert list(found.columns()) == ["share_untaught", "share_stroma", "share_tumour"]
    assert found.to_answer("m").probabilities == ()  # it has seen no slides to say anything of one


def test_what_it_is_worth_is_told_by_what_was_left_out_and_not_where_nothing_can_be() -> None:
    slide, what = tissue()
    taught = pathovit.teach([slide], {"s-1": paint(what, "stroma", "tumour")}).card.values["taught"]
    (blocks,) = taught["left_out"]
    assert blocks["by"] == "blocks"
    assert blocks["tiles"] == sum(taught["tiles"].values()) == 40
    assert blocks["auroc"] > 0.9
    once = pathovit.teach([slide], {"s-1": paint(what, "stroma", "tumour", strokes=1)})
    assert once.card.values["taught"]["left_out"] == []
    assert "cannot be told" in describe_taught(save_model_card(once))
    other, there = tissue(1, "s-2")
    both = pathovit.teach([slide, other], {"s-1": paint(what, "stroma", "tumour"), "s-2": paint(there, "stroma", "tumour")})
    assert [figures["by"] for figures in both.card.values["taught"]["left_out"]] == ["blocks", "slides"], (
        "nobody said whose they are"
    )
    assert both.card.values["taught"]["patients"] is None
    assert "2 slides, of patients that are not known" in describe_taught(save_model_card(both))
    labels = {"s-1": paint(what, "stroma", "tumour"), "s-2": paint(there, "stroma", "tumour")}
    known = learn(lessons_of([slide, other], labels, None, {"s-1": "P1", "s-2": "P2"})).card.values["taught"]
    assert [figures["by"] for figures in known["left_out"]] == ["blocks", "patients"]
    assert known["patients"] == 2


def save_model_card(model: pathovit.SlideModel) -> Any:
    values = {**model.card.values, "target": {"task": "binary", "columns": ["label"], "classes": list(model.target.classes)}}
    return replace(model.card, values=values)


def test_labels_by_chance_are_worth_nothing_and_said_to_be() -> None:
    slide, what = tissue()
    chance = np.random.default_rng(3)
    labels = np.array(paint(what, "stroma"), object)
    painted = np.flatnonzero(labels != "")
    rows = painted // SIDE
    flip = dict(zip(np.unique(rows), chance.permutation([True, True, False, False, True]), strict=True))
    labels[[tile for tile in painted if flip[tile // SIDE]]] = "tumour"
    (blocks,) = pathovit.teach([slide], {"s-1": list(labels)}).card.values["taught"]["left_out"]
    assert blocks["auroc"] < 0.8


def test_it_is_kept_like_any_other_model(tmp_path: Path) -> None:
    slide, what = tissue()
    model = pathovit.teach([slide], {"s-1": paint(what, "stroma", "tumour", "fat")})
    assert model.target.task == "multiclass"
    saved = save_model(tmp_path / "m", model, describe_taught)
    again = load_model(tmp_path / "m")
    assert again.sha256 == saved.sha256
    before, after = model.predict(slide), again.predict(slide)
    np.testing.assert_allclose(after.tile_scores, before.tile_scores, atol=1e-5)
    np.testing.assert_array_equal(after.untaught, before.untaught)
    assert json.loads((tmp_path / "m" / "model.json").read_text())["taught"]["tiles"] == {"fat": 20, "stroma": 20, "tumour": 20}
    other = replace(slide, attributes=tissue(encoder={**RECIPE["encoder"], "weights_sha256": "v"})[0].attributes)
    with pytest.raises(SettingsError, match="was trained on features with weights_sha256"):
        again.predict(other)


def test_a_tile_that_may_be_of_several_classes_counts_for_all_of_them() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(size=(60, 3)).astype(np.float32)
    truth = (x[:, 0] > 0).astype(int)
    allowed = np.eye(2, dtype=bool)[truth]
    weight = np.ones(60)
    w, b = fit_regression(x, allowed, weight, ridge=0.5)
    ours = x @ (w[:, 1] - w[:, 0]) + b[1] - b[0]
    theirs = LogisticRegression(C=1 / 0.25, tol=1e-8).fit(x, truth).decision_function(x)  # two symmetric columns weigh half
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    free = np.concatenate([allowed, np.ones((30, 2), bool)])
    w_more, _ = fit_regression(np.concatenate([x, chance.normal(size=(30, 3)).astype(np.float32)]), free, np.ones(90), ridge=0.5)
    np.testing.assert_allclose(w_more, w, atol=0.02)  # what is known of nothing changes nothing


def test_what_cannot_be_learned_from_is_refused_with_the_cause() -> None:
    slide, what = tissue()
    labels = paint(what, "stroma", "tumour")
    with pytest.raises(SettingsError, match="The labels show 1 class"):
        pathovit.teach([slide], {"s-1": paint(what, "stroma")})
    with pytest.raises(SettingsError, match="it has 1600 tiles, and 3 labels"):
        pathovit.teach([slide], {"s-1": ["stroma", "", "tumour"]})
    with pytest.raises(SettingsError, match="Labels of s-9: there are no features of it"):
        pathovit.teach([slide], {"s-9": labels})
    few = ["" if name == "tumour" else name for name in labels]
    few[30], few[31] = "tumour", "tumour"
    with pytest.raises(SettingsError, match="Class 'tumour' has 2 painted tiles; 3 are needed at least"):
        pathovit.teach([slide], {"s-1": few})
    other, there = tissue(1, "s-2", tiles={**RECIPE["tiles"], "mpp": 0.5})
    with pytest.raises(SettingsError, match=r"made in different ways .*tiles.mpp: 1.0 for s-1, 0.5 for s-2"):
        pathovit.teach([slide, other], {"s-1": labels, "s-2": paint(there, "stroma", "tumour")})
    with pytest.raises(SettingsError, match="'fat' is not a class"):
        pathovit.teach([slide], {"s-1": labels}, positive="fat")


def test_squares_that_somebody_gave_classes_are_put_aside(tmp_path: Path) -> None:
    folder, said = tmp_path / "suggested", list[str]()
    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}
    for about, kept in (({"name": "suggested 1"}, 0), ({"name": "suggested 1", "classification": {"name": "tumour"}}, 1)):
        folder.mkdir(exist_ok=True)
        (folder / "s.geojson").write_text(json.dumps([{"type": "Feature", "geometry": square, "properties": about}]))
        _make_room(folder, said.append)
        assert not folder.exists()
        assert len(list(tmp_path.glob("suggested-*/s.geojson"))) == kept == len(said)
