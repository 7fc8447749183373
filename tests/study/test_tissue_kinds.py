"""Kinds of tissue: found without a label, the same on every slide, kept when slides are added, and given names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_teach import RECIPE, SIDE, tissue

from pathovit.errors import SettingsError
from pathovit.study.kind_names import read_names
from pathovit.study.kinds import NONE, TissueKinds


def purity(kind: np.ndarray, what: np.ndarray) -> float:
    """Share of tiles that are of the commonest class of their kind."""
    told = kind != NONE
    right = sum(np.unique(what[kind == k].astype(str), return_counts=True)[1].max() for k in np.unique(kind[told]))
    return float(right / told.sum())


def test_kinds_are_pure_and_the_same_on_slides_that_were_not_looked_at() -> None:
    slides = [tissue(seed, f"s-{seed}")[0] for seed in range(3)]
    kinds = TissueKinds.fit(slides)
    other, what = tissue(9, "s-9")
    kind, unlike = kinds.tell(other)
    assert purity(kind, what) > 0.95
    assert (kind == NONE).mean() < 0.05
    assert unlike[kind != NONE].max() <= 1
    first = kinds.tell(slides[0])[0]
    tumour = np.bincount(first[(tissue(0)[1] == "tumour") & (first != NONE)]).argmax()
    assert (what[kind == tumour] == "tumour").mean() > 0.95


def test_the_order_of_slides_does_not_matter_and_nothing_depends_on_chance() -> None:
    slides = [tissue(seed, f"s-{seed}")[0] for seed in range(3)]
    a, b = TissueKinds.fit(slides), TissueKinds.fit(slides)
    assert np.array_equal(a.centres, b.centres)


def test_kinds_stay_when_slides_are_added_and_new_tissue_becomes_a_new_kind() -> None:
    slides = [tissue(seed, f"s-{seed}")[0] for seed in range(2)]
    kinds = TissueKinds.fit(slides)
    more = kinds.grown([tissue(5, "s-5")[0]])
    assert np.array_equal(more.centres, kinds.centres)
    assert "s-5" in more.slides
    new, _ = tissue(6, "s-6")
    new.features[: SIDE * SIDE // 2, 5] += 30  # half of a slide is like nothing before
    assert (kinds.tell(new)[0][: SIDE * SIDE // 4] == NONE).mean() > 0.9
    grown = kinds.grown([new])
    assert np.array_equal(grown.centres[: len(kinds.centres)], kinds.centres)
    assert len(grown.centres) > len(kinds.centres)
    assert (grown.tell(new)[0][: SIDE * SIDE // 4] >= len(kinds.centres)).mean() > 0.8


def test_tiles_that_were_not_read_are_of_no_kind() -> None:
    slide, _ = tissue()
    kinds = TissueKinds.fit([slide])
    slide.verdict[:50] = 3
    kind, unlike = kinds.tell(slide)
    assert (kind[:50] == NONE).all()
    assert np.isnan(unlike[:50]).all()


def test_names_are_kept_on_disk_and_a_person_may_edit_them(tmp_path: Path) -> None:
    kinds = TissueKinds.fit([tissue()[0]]).named({"A": "tumour"})
    kinds.save(tmp_path)
    text = (tmp_path / "names.csv").read_text()
    assert "A,tumour" in text
    (tmp_path / "names.csv").write_text(text.replace("B,", "B,stroma"))
    found = TissueKinds.load(tmp_path)
    assert found is not None
    assert found.said(0) == "A tumour"
    assert found.said(1) == "B stroma"
    assert found.said(2) == "C"
    assert np.array_equal(found.centres, kinds.centres)
    with pytest.raises(SettingsError, match="'Z' is not a kind"):
        kinds.named({"Z": "x"})


def test_damaged_kinds_are_said_and_found_anew(tmp_path: Path) -> None:
    TissueKinds.fit([tissue()[0]]).save(tmp_path)
    (tmp_path / "kinds.safetensors").write_bytes(b"nothing")
    said: list[str] = []
    assert TissueKinds.load(tmp_path, said.append) is None
    assert "cannot be read" in said[0]
    assert TissueKinds.load(tmp_path / "none") is None


def test_features_of_another_recipe_are_refused() -> None:
    slide, _ = tissue()
    other, _ = tissue(1, "s-2", tiles=RECIPE["tiles"] | {"mpp": 0.5})
    with pytest.raises(SettingsError, match="different ways"):
        TissueKinds.fit([slide, other])
    with pytest.raises(SettingsError, match="made otherwise"):
        TissueKinds.fit([slide]).tell(other)
    kinds = TissueKinds.fit([slide])
    other.features[: SIDE * SIDE // 2, 5] += 30
    grown = kinds.grown([other])
    assert np.array_equal(grown.centres, kinds.centres), "they have no place among them"
    assert "s-2" in grown.slides


@pytest.mark.parametrize(
    ("text", "coding", "said"),
    [
        ("kind;name\nA;Dr\u00fcse\n", "cp1252", "not a CSV file in UTF-8"),
        ("kind;name\nA;Dr\u00fcse\n", "utf-8-sig", ""),
        ("kind,name\nA\n", "utf-8", ""),
        ("a,b\nA,x\n", "utf-8", "no columns kind and name"),
    ],
)
def test_names_of_a_spreadsheet_are_read_or_refused(text: str, coding: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_bytes(text.encode(coding))
    if said:
        with pytest.raises(SettingsError, match=said):
            read_names(tmp_path)
    else:
        assert read_names(tmp_path) == ({"A": "Dr\u00fcse"} if ";" in text else {})
