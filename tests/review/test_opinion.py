"""What the events of readers amount to."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pathovit.review.opinion import cells_of, opinions, painted_by_all, runs_of, standing
from pathovit.review.record import Event

ROW = [[0, 0, 3]]


def events(*said: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(n, "", "s-1", reader, "reader", what, {}, {}, "", "", "") for n, (reader, what) in enumerate(said, start=1)]


def decision(label: str | None, judgement: str = "agree") -> dict[str, Any]:
    return {"event": "decision", "judgement": judgement, "label": label, "note": "", "reason": ""}


def painted(label: str, runs: list[list[int]] = ROW) -> dict[str, Any]:
    return {"event": "painted", "runs": runs, "label": label, "asked": False}


def test_what_was_taken_back_does_not_count() -> None:
    found = opinions(events(("A", decision("tumour")), ("A", painted("tumour")), ("A", {"event": "undo", "of": 2})))["A"]
    assert (found.label, found.painted) == ("tumour", {})


def test_one_cannot_take_back_what_another_said() -> None:
    found = opinions(events(("A", decision("tumour")), ("B", {"event": "undo", "of": 1})))
    assert found["A"].label == "tumour"


def test_a_decision_that_changes_is_not_signed_any_more() -> None:
    signed = ("A", {"event": "signed", "meaning": "agreed"})
    assert opinions(events(("A", decision("tumour")), signed))["A"].signed == "agreed"
    changed = opinions(events(("A", decision("tumour")), signed, ("A", decision("normal", "disagree"))))["A"]
    assert (changed.signed, changed.label) == ("", "normal")


def test_paint_lies_over_paint_and_is_erased() -> None:
    said = [painted("tumour"), painted("ignore", [[0, 1, 1]]), painted("", [[0, 2, 1]])]
    assert opinions(events(*(("A", one) for one in said)))["A"].painted == {(0, 0): "tumour", (0, 1): "ignore"}


def test_a_file_that_is_read_again_takes_back_what_it_said_before() -> None:
    first = {"event": "imported", "files": ["a.geojson"], "regions": 1, "painted": {"tumour": [[0, 0, 3]]}}
    again = first | {"painted": {"tumour": [[0, 0, 1]]}}
    said = [("A", first), ("A", painted("normal", [[0, 1, 1]])), ("A", again)]
    assert opinions(events(*said))["A"].painted == {(0, 0): "tumour", (0, 1): "normal"}


def test_paint_after_a_signature_is_not_signed() -> None:
    said = [decision("tumour"), {"event": "signed", "meaning": "agreed"}, painted("tumour")]
    assert opinions(events(*(("A", one) for one in said)))["A"].signed == ""
    taken_back = [decision("tumour"), {"event": "signed", "meaning": "agreed"}, {"event": "undo", "of": 1}]
    assert opinions(events(*(("A", one) for one in taken_back)))["A"].signed == ""


def test_a_region_that_was_judged_is_painted() -> None:
    for judgement, label in (("agree", "tumour"), ("disagree", "not tumour"), ("unsure", "ignore")):
        region = {"event": "region", "runs": ROW, "judgement": judgement, "label": "tumour", "note": ""}
        assert set(opinions(events(("A", region)))["A"].painted.values()) == {label}


def test_readers_who_agree_make_a_label_and_others_none() -> None:
    assert standing(events(("A", decision("tumour")), ("B", decision("tumour")))).label == "tumour"
    differ = standing(events(("A", decision("tumour")), ("B", decision("normal"))))
    assert (differ.label, differ.disagreement) == (None, True)
    assert standing(events(("A", decision(None, "unsure")))).label == ""
    assert standing([]).label is None


def test_the_newest_settlement_counts_whatever_readers_say() -> None:
    said = [("A", decision("tumour")), ("B", decision("normal")), ("C", {"event": "settled", "label": "normal", "note": ""})]
    found = standing(events(*said, ("C", {"event": "settled", "label": "tumour", "note": ""}), ("B", decision("normal"))))
    assert (found.label, found.by, found.settled, found.disagreement) == ("tumour", "C", True, True)


def test_tiles_that_readers_disagree_on_are_left_out() -> None:
    found, differ = painted_by_all(events(("A", painted("tumour")), ("B", painted("normal", [[0, 2, 2]]))))
    assert (found, differ) == ({(0, 0): "tumour", (0, 1): "tumour", (0, 3): "normal"}, 1)


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 9))))
def test_runs_are_the_cells_they_were_made_of_and_as_few_as_can_be(cells: set[tuple[int, int]]) -> None:
    runs = runs_of(cells)
    assert set(cells_of(runs)) == cells
    assert sum(length for *_, length in runs) == len(cells)
    starts = {(row, column) for row, column in cells if (row, column - 1) not in cells}
    assert len(runs) == len(starts)


def test_one_word_in_two_spellings_is_no_disagreement() -> None:
    found = events(("A", decision("Tumour")), ("B", decision("tumour ")), ("A", painted("Tumour")), ("B", painted("tumour")))
    assert (standing(found).label, standing(found).disagreement) == ("Tumour", False)
    assert painted_by_all(found) == (dict.fromkeys([(0, 0), (0, 1), (0, 2)], "Tumour"), 0)


def test_what_is_taken_back_below_a_signature_is_not_signed() -> None:
    first, second = decision("benign"), decision("tumour", "disagree") | {"reason": "I see it now"}
    signed = {"event": "signed", "meaning": "corrected"}
    back = opinions(events(*(("A", one) for one in (first, second, signed, {"event": "undo", "of": 2}))))["A"]
    assert (back.label, back.signed) == ("benign", "")
    paint = opinions(events(*(("A", one) for one in (painted("tumour"), first, signed, {"event": "undo", "of": 1}))))["A"]
    assert paint.signed == ""
    later = opinions(events(*(("A", one) for one in (first, signed, painted("tumour"), {"event": "undo", "of": 3}))))["A"]
    assert later.signed == "corrected", "what was signed is as it was"
