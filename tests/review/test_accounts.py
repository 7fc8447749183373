"""Who reads, and which slides."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pathovit.errors import SettingsError
from pathovit.review.agreement import kappa, kappa_interval
from pathovit.review.readers import ADJUDICATOR, READER, Readers

SLIDES = [f"slide-{number}" for number in range(2000)]


def three(assignment: str) -> Readers:
    found = Readers()
    for name in ("A", "B", "C"):
        found, _ = found.added(name, "reader")
    return found.added("Z", "adjudicator")[0].assigned(assignment)


def test_a_token_is_known_and_not_kept(tmp_path: Path) -> None:
    readers, token = Readers().added("Dr. A", "reader")
    readers.save(tmp_path)
    assert token not in (tmp_path / "readers.json").read_text()
    again = Readers.load(tmp_path)
    assert again.by_token(token) == again.by_name("Dr. A") == readers.people[0]
    assert again.by_token("x" * 32) is None
    renewed, other = again.added("dr. a", "reader")
    assert (len(renewed.people), renewed.by_token(token)) == (1, None)
    assert renewed.by_token(other) is not None


def test_slides_are_shared_out_evenly_and_always_the_same_way() -> None:
    readers = three("split")
    found = [readers.readers_of(slide) for slide in SLIDES]
    assert {len(names) for names in found} == {1}
    counts = [found.count((name,)) for name in ("A", "B", "C")]
    assert max(counts) < 1.15 * min(counts)
    assert found == [three("split").readers_of(slide) for slide in SLIDES]


def test_another_reader_takes_over_their_share_and_moves_nothing_else() -> None:
    before, after = three("split"), three("split").added("D", "reader")[0]
    moved = [(before.readers_of(slide), after.readers_of(slide)) for slide in SLIDES]
    changed = [now for old, now in moved if old != now]
    assert set(changed) == {("D",)}
    assert 0.2 < len(changed) / len(SLIDES) < 0.3


def test_a_fifth_is_read_by_two_different_ones() -> None:
    found = [three("split-20").readers_of(slide) for slide in SLIDES]
    twice = [names for names in found if len(names) == 2]
    assert 0.17 < len(twice) / len(found) < 0.23
    assert all(a != b for names in twice for a, b in pairwise(names))
    assert len(set(map(frozenset, twice))) == 3


def test_all_read_all_unless_said_otherwise() -> None:
    assert three("all").readers_of("s") == ()
    assert Readers().readers_of("s") == ()


@pytest.mark.parametrize("content", ["{", "[]", '{"readers": 3}'])
def test_damaged_accounts_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "readers.json").write_text(content)
    with pytest.raises(SettingsError, match="damaged"):
        Readers.load(tmp_path)


def test_wrong_roles_names_and_assignments_are_refused() -> None:
    for wrong, said in (
        (lambda: Readers().added("A", "boss"), "boss"),
        (lambda: Readers().added(" ", "reader"), "name"),
        (lambda: Readers().assigned("some"), "some"),
    ):
        with pytest.raises(SettingsError, match=said):
            wrong()
    with pytest.raises(SettingsError, match="there are A"):
        Readers().added("A", "reader")[0].without("B")


def test_a_name_from_outside_is_text(tmp_path: Path) -> None:
    readers, _ = Readers().added("Dr.\x1b[2J <img src=x>", "reader")
    readers.save(tmp_path)
    assert "\x1b" not in json.loads((tmp_path / "readers.json").read_text())["readers"][0]["name"]


def test_kappa_is_that_of_the_textbook() -> None:
    """Cohen's example: 20 both yes, 15 both no, 5 and 10 otherwise."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert kappa(pairs) == pytest.approx(0.4)
    low, high = kappa_interval(pairs) or (0, 0)
    assert low < 0.4 < high
    assert kappa([("y", "y")] * 5) is None
    assert kappa_interval(pairs[:9]) is None
    assert np.isclose(kappa([("y", "y"), ("n", "n")]) or 0, 1)


def test_a_new_token_leaves_a_reader_their_role() -> None:
    readers, old = Readers().added("Dr. A", ADJUDICATOR)
    readers, new = readers.added("dr. a")
    assert [(one.name, one.role) for one in readers.people] == [("Dr. A", ADJUDICATOR)], "what was decided is known by the name"
    assert readers.by_token(old) is None
    assert readers.by_token(new)
    assert readers.added("Dr. A", READER)[0].people[0].role == READER
