"""What may be said, and of what: of the map, the tiles and the record that the page had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_reader import Client, client_of
from made_runs import folder_of

from pathovit.review.events import Given
from pathovit.review.opinion import Opinion
from pathovit.review.readers import Readers
from pathovit.review.sight import NotNow, Sight, checked


def test_what_is_said_is_bound_to_what_was_seen(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.look(key)
    page = client.http.get(f"/api/slides/{key}").json()
    now = {"drawn": page["drawn"], "tiles": page["about"]["tiles_sha256"], "last": page["opinion"]["last"]}
    stroke = {"event": "painted", "runs": [[0, 0, 1]], "label": "tumour"}
    decision = {"event": "decision", "judgement": "agree", "label": "tumour"}

    def said(what: dict[str, object], **seen: object) -> int:
        body = {"said": what, "seen": {"answer": True} | now | seen}
        return client.http.post(f"/api/slides/{key}/events", json=body).status_code

    assert said(stroke, tiles="0" * 64) == 409
    assert said(decision, drawn="another map") == 409
    assert said(stroke, drawn="another map") == 200, "paint is of tiles, not of a map"
    assert said(decision) == 200
    assert said({"event": "signed", "meaning": "agreed"}) == 409, "something was said since then"
    now["last"] = client.http.get(f"/api/slides/{key}").json()["opinion"]["last"]
    assert said({"event": "signed", "meaning": "agreed"}) == 200


def test_a_damaged_record_of_one_slide_takes_the_list_from_nobody(out: Path) -> None:
    client = client_of(out)
    readers, token = Readers().added("Dr. B")
    readers, other = readers.added("Dr. C")
    readers.assigned("split").save(client.review.desk.record.folder)
    for name in ("one", "two"):
        (folder_of(out, name) / "review.jsonl").write_text("torn\nand torn\n")
    for one in (token, other):
        client.enter(one)
        assert len(client.http.get("/api/worklist").json()["rows"]) == 3
    client.review.close()


def saying(client: Client, key: str) -> Callable[..., str]:
    """What is answered to something said; nothing where it is kept."""

    def said(event: str, reader: str | None = None, **more: object) -> str:
        page = client.http.get(f"/api/slides/{key}").json()
        seen = {"answer": True, "last": page["opinion"]["last"]} | ({"reader": reader} if reader else {})
        answer = client.http.post(f"/api/slides/{key}/events", json={"said": {"event": event} | more, "seen": seen})
        return "" if answer.status_code == 200 else str(answer.json()["error"])

    return said


def test_nothing_is_kept_for_another_reader_than_the_page_names(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.look(key)
    said, me = saying(client, key), client.http.get(f"/api/slides/{key}").json()["opinion"]["reader"]
    stroke = {"runs": [[0, 0, 1]], "label": "tumour"}
    assert "reads in this browser now, and not Dr. Z: nothing was kept" in said("painted", "Dr. Z", **stroke)
    assert said("painted", me, **stroke) == ""


def test_agreement_is_of_one_class_and_disagreement_of_two(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.look(key)
    said, word = saying(client, key), client.http.get(f"/api/slides/{key}").json()["answer"]["word"]
    other = {"tumour": "normal", "normal": "tumour"}[word]
    assert f"The model says {word}" in said("decision", judgement="agree", label=other)
    assert f"The model says {word}" in said("decision", judgement="disagree", label=word)
    assert said("decision", judgement="disagree", label=other) == ""


def test_a_decision_that_was_taken_back_was_one(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.look(key)
    said, word = saying(client, key), client.http.get(f"/api/slides/{key}").json()["answer"]["word"]
    agree = {"judgement": "agree", "label": word}
    assert said("decision", **agree) == ""
    assert said("signed", meaning="agreed") == ""
    assert said("signed", meaning="agreed") == "It is signed already."
    for kind in ("signed", "decision"):
        opinion = client.http.get(f"/api/slides/{key}").json()["opinion"]
        assert opinion["undoes"] == kind
        assert said("undo", of=opinion["can_undo"]) == ""
    assert client.http.get(f"/api/slides/{key}").json()["opinion"]["label"] is None
    assert "say why" in said("decision", **agree)
    assert said("decision", **agree, reason="a slip") == ""


def test_another_model_than_the_one_that_was_judged_is_not_agreed_with(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.look(key)
    case = next(case for case in client.review.desk.cases() if case.key == key)
    opinion = Opinion("me", label="tumour", judged="of before")
    signing = Given.model_validate({"said": {"event": "signed", "meaning": "agreed"}, "seen": {"answer": True}})
    with pytest.raises(NotNow, match="You judged another model"):
        checked(signing, case, opinion, Sight(True, True), (1, 1), False)
    with pytest.raises(NotNow, match="Say first what you see"):
        checked(signing, case, opinion, Sight(False, False), (1, 1), False)
    opinion.judged = case.model_sha256
    assert checked(signing, case, opinion, Sight(True, True), (1, 1), False)["meaning"] == "agreed"
