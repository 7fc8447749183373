"""Routes of the review page: what a reader gets, when, and what nobody gets."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from made_reader import ORIGIN, TOKEN, Client, client_of
from made_runs import HOSTILE, move_away, rewrite
from PIL import Image
from starlette.testclient import TestClient

from pathovit.review.audit import verify
from pathovit.review.readers import Readers
from pathovit.review.record import Record


def test_the_worklist_holds_every_slide_and_tells_nothing_before_it_is_read(client: Client, out: Path) -> None:
    found = client.http.get("/api/worklist").json()
    assert {row["file"] for row in found["rows"]} == {"one.svs", "two.svs", f"{HOSTILE}.svs"}
    assert sum(group["count"] for group in found["groups"]) == 3
    assert all(row["answer"] == "" for row in found["rows"])
    assert all(row["state"] == "new" for row in found["rows"])
    assert found["research_use"].startswith("For research use only")


def test_a_slide_opens_without_the_answer_and_shows_it_after_the_first_impression(client: Client) -> None:
    key = client.keys()["one.svs"]
    page = client.http.get(f"/api/slides/{key}").json()
    assert not page["first_done"]
    assert "answer" not in page
    assert page["layers"] == []
    assert "prob" not in json.dumps(page)
    assert client.http.get(f"/api/slides/{key}/heat/0").status_code == 403
    client.say(key, 409, event="shown", anyway=True)
    client.say(key, event="first_impression", label="tumour")
    client.say(key, event="shown", anyway=True)
    client.say(key, 409, event="first_impression", label="normal")
    page = client.http.get(f"/api/slides/{key}").json()
    assert page["answer"]["word"]
    assert page["opinion"]["first"] == "tumour"
    heat = client.http.get(f"/api/slides/{key}/heat/0")
    assert len(heat.content) == page["grid"]["rows"] * page["grid"]["columns"]
    assert max(heat.content) > 128


def test_with_open_the_answer_is_there_at_once(out: Path) -> None:
    client = client_of(out, blind=False)
    client.enter()
    page = client.http.get(f"/api/slides/{client.keys()['two.svs']}").json()
    assert page["first_done"]
    assert "answer" in page


def test_tiles_are_those_of_the_slide(client: Client, slides: list[Path]) -> None:
    key = client.keys()["one.svs"]
    page = client.http.get(f"/api/slides/{key}").json()
    level = page["levels"][0]
    answer = client.http.get(f"/api/slides/{key}/tile/{level['index']}/1/1")
    assert answer.headers["content-type"] == "image/jpeg"
    assert "immutable" in answer.headers["cache-control"]
    tile = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert tile.shape[:2] == tuple(level["tile"][::-1])
    for wrong in ("99/0/0", f"{level['index']}/-1/0", f"{level['index']}/0/9999", "x/0/0"):
        assert client.http.get(f"/api/slides/{key}/tile/{wrong}").status_code in (404, 422)


def test_a_tile_that_is_looked_at_has_numbers_and_look_alikes(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.look(key)
    grid = client.http.get(f"/api/slides/{key}/grid").content
    columns = client.http.get(f"/api/slides/{key}").json()["grid"]["columns"]
    cell = grid.index(1)
    facts = client.http.get(f"/api/slides/{key}/at/{cell // columns}/{cell % columns}").json()
    assert facts["verdict"] == "ok"
    assert 0 <= facts["layers"]["tumour"]["value"] <= 1
    alike = client.http.get(f"/api/slides/{key}/alike/{facts['index']}").json()
    assert len(alike["here"]) == 3
    assert facts["index"] not in [one["index"] for one in alike["here"]]
    assert {one["key"] for one in alike["elsewhere"]} <= set(client.keys().values()) - {key}
    assert client.http.get(f"/api/slides/{key}/at/0/0").status_code == 404
    picture = client.http.get(f"/api/slides/{key}/picture/{facts['index']}")
    assert Image.open(io.BytesIO(picture.content)).size == (192, 192)
    assert client.http.get(f"/api/slides/{key}/picture/999999").status_code == 404


def test_decisions_are_kept_and_changing_one_takes_a_reason(client: Client, out: Path) -> None:
    key = client.keys()["one.svs"]
    client.say(key, 409, event="decision", judgement="agree", label="tumour")  # nobody has looked yet
    client.look(key)
    client.say(key, 409, event="signed", meaning="agreed")
    client.say(key, event="decision", judgement="agree", label="tumour", note="clear <b>", reason="")
    assert "say why" in str(client.say(key, 409, event="decision", judgement="disagree", label="normal")["error"])
    client.say(key, event="decision", judgement="disagree", label="normal", reason="looked again")
    client.say(key, event="signed", meaning="corrected")
    row = next(row for row in client.http.get("/api/worklist").json()["rows"] if row["key"] == key)
    assert (row["label"], row["state"]) == ("normal", "signed")
    events = Record(client.review.desk.out).events(client.case(key).slide_id)
    assert events[-1].about["model"] == "reference"
    assert len(events[-1].about["model_sha256"]) == len(events[-1].about["code_sha256"]) == 64
    assert events[-1].reader == "Dr. A"
    assert verify(Record(client.review.desk.out)).broken == ()


def test_paint_can_be_taken_back_but_not_what_was_seen(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.say(key, event="opened", blind=True)
    opened = client.http.get(f"/api/slides/{key}").json()["opinion"]["last"]
    assert client.http.get(f"/api/slides/{key}").json()["opinion"]["can_undo"] is None
    client.say(key, 409, event="painted", label="tumour", runs=[[1, 2, 3000]])
    client.say(key, event="painted", label="tumour", runs=[[1, 2, 3]])
    opinion = client.http.get(f"/api/slides/{key}").json()["opinion"]
    assert opinion["painted"] == {"tumour": [[1, 2, 3]]}
    client.say(key, event="undo", of=opinion["can_undo"])
    assert client.http.get(f"/api/slides/{key}").json()["opinion"]["painted"] == {}
    client.say(key, 409, event="undo", of=opened)


def test_what_was_seen_is_what_the_server_showed_whatever_the_browser_says(client: Client) -> None:
    key = client.keys()["one.svs"]
    said = {"said": {"event": "opened", "blind": False}, "seen": {"answer": True}}
    assert client.http.post(f"/api/slides/{key}/events", json=said).status_code == 200
    case = client.case(key)
    (event,) = Record(client.review.desk.out).events(case.slide_id)
    assert (event.said["blind"], event.seen["answer"]) == (True, False)
    assert not client.http.get(f"/api/slides/{key}").json()["first_done"]


def test_another_model_is_looked_at_with_fresh_eyes(client: Client) -> None:
    """What was shown of one model says nothing of the next."""
    key = client.keys()["one.svs"]
    client.look(key)
    assert client.http.get(f"/api/slides/{key}").json()["may_see"]
    case = client.case(key)
    path = client.review.desk.out.slide(case.slide_id).path / "slide.json"
    found = json.loads(path.read_text())
    found["finish_recipe"]["model_sha256"] = "f" * 64
    rewrite(path, **found)
    assert not client.http.get(f"/api/slides/{key}").json()["first_done"]


def test_paint_on_another_tiling_does_not_count_and_that_is_said(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.say(key, event="painted", label="tumour", runs=[[1, 2, 3]])
    case = client.case(key)
    path = client.review.desk.out.slide(case.slide_id).path / "slide.json"
    found = json.loads(path.read_text())
    found["recipe"]["tiles"]["tile_px"] = 128
    rewrite(path, **found)
    opinion = client.http.get(f"/api/slides/{key}").json()["opinion"]
    assert (opinion["painted"], opinion["elsewhere"]) == ({}, 3)


def test_a_record_that_was_changed_stops_its_slide_and_not_the_worklist(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.say(key, event="painted", label="tumour", runs=[[1, 2, 3]])
    case = client.case(key)
    path = Record(client.review.desk.out).path(case.slide_id)
    path.write_bytes(path.read_bytes().replace(b"tumour", b"normal"))
    rows = {row["key"]: row for row in client.http.get("/api/worklist").json()["rows"]}
    assert "audit verify" in rows[key]["reason"]
    assert len(rows) == 3
    answer = client.http.get(f"/api/slides/{key}")
    assert answer.status_code == 409
    assert str(client.review.desk.out.path) not in answer.text  # folders can name patients


@pytest.mark.parametrize(
    "said",
    [
        {"event": "nonsense"},
        {"event": "opened"},
        {"event": "opened", "blind": True, "more": 1},
        {"event": "painted", "label": "x" * 200, "runs": []},
        {"event": "painted", "label": "x", "runs": [[-1, 0, 1]]},
        {"event": "painted", "label": "x", "runs": [[0, 0, 0]]},
        {"event": "painted", "label": "x", "runs": [[0, 0, 1_000_000]] * 3},
        {"event": "decision", "judgement": "maybe", "label": "x"},
        {"event": "note", "note": ""},
        {"event": "note", "note": "x" * 5000},
        {"event": "first_impression", "label": 7},
        "text",
        None,
    ],
)
def test_what_is_no_event_is_refused_and_leaves_no_trace(client: Client, said: object) -> None:
    key = client.keys()["one.svs"]
    answer = client.http.post(f"/api/slides/{key}/events", json={"said": said, "seen": {"answer": False}})
    assert answer.status_code == 422
    assert Record(client.review.desk.out).files() == []


# Several readers


@pytest.fixture
def people(out: Path) -> dict[str, str]:
    """Tokens of two readers and one who settles."""
    readers, tokens = Readers(), {}
    for name, role in (("Dr. A", "reader"), ("Dr. B", "reader"), ("Prof. Z", "adjudicator")):
        readers, tokens[name] = readers.added(name, role)
    (out / "review").mkdir(exist_ok=True)
    readers.save(out / "review")
    return tokens


def test_each_reader_is_blind_to_the_others_until_somebody_settles(out: Path, people: dict[str, str]) -> None:
    clients = {}
    for name, token in people.items():
        clients[name] = client_of(out)
        clients[name].enter(token)
    key = clients["Dr. A"].keys()["one.svs"]
    for one in clients.values():
        one.look(key)
    clients["Dr. A"].say(key, event="decision", judgement="agree", label="tumour", note="secret of A")
    clients["Dr. B"].say(key, event="decision", judgement="disagree", label="normal")
    assert "secret of A" not in clients["Dr. B"].http.get(f"/api/slides/{key}").text
    assert clients["Dr. B"].http.get(f"/api/slides/{key}").json()["others"] == []
    clients["Dr. B"].say(key, 409, event="settled", label="normal")
    (row,) = [row for row in clients["Prof. Z"].http.get("/api/worklist").json()["rows"] if row["disagreement"]]
    assert row["key"] == key
    assert clients["Prof. Z"].http.get(f"/api/slides/{key}").json()["others"] == []  # before a decision of one's own
    clients["Prof. Z"].say(key, event="decision", judgement="none", label="tumour")
    assert {one["label"] for one in clients["Prof. Z"].http.get(f"/api/slides/{key}").json()["others"]} == {"tumour", "normal"}
    clients["Prof. Z"].say(key, event="settled", label="tumour", note="seen on the microscope")
    assert not any(row["disagreement"] for row in clients["Prof. Z"].http.get("/api/worklist").json()["rows"])
    settles = clients["Prof. Z"]
    assert settles.review.desk.standing(settles.case(key)).label == "tumour"
    of = settles.http.get(f"/api/slides/{key}").json()["opinion"]["can_undo"]
    clients["Dr. B"].say(key, 409, event="undo", of=of)
    settles.say(key, event="undo", of=of)
    assert settles.review.desk.standing(settles.case(key)).label is None


def test_the_general_token_is_none_where_there_are_accounts(out: Path, people: dict[str, str]) -> None:
    client = client_of(out)
    assert client.http.post("/api/enter", json={"token": TOKEN}).status_code == 401


def test_who_was_removed_is_out_at_once(out: Path, people: dict[str, str]) -> None:
    client = client_of(out)
    client.enter(people["Dr. A"])
    Readers.load(out / "review").without("Dr. A").save(out / "review")
    assert client.http.get("/api/worklist").status_code == 401


def test_a_reader_gets_their_own_slides(out: Path, people: dict[str, str]) -> None:
    readers = Readers.load(out / "review").assigned("split")
    readers.save(out / "review")
    client = client_of(out)
    client.enter(people["Dr. A"])
    rows = client.http.get("/api/worklist").json()["rows"]
    for row in rows:
        assert client.http.get(f"/api/slides/{row['key']}").status_code == (200 if row["mine"] else 404)
        assert client.http.get(f"/api/slides/{row['key']}/tile/0/0/0").status_code == (200 if row["mine"] else 404)


def test_a_proxy_on_this_computer_says_who_asks_and_nobody_else_can(out: Path) -> None:
    client = client_of(out, user_header="X-Remote-User")
    assert client.http.get("/api/worklist").status_code == 401
    assert client.http.get("/api/worklist", headers={"x-remote-user": "Dr. P"}).json()["reader"]["name"] == "Dr. P"
    far = TestClient(client.http.app, base_url=ORIGIN, client=("10.0.0.7", 1))
    assert far.get("/api/worklist", headers={"x-remote-user": "Dr. P"}).status_code == 401


def test_a_slide_that_is_gone_or_changed_says_so(client: Client, out: Path, tmp_path: Path) -> None:
    key = client.keys()["one.svs"]
    desk = client.review.desk
    move_away(out, str(tmp_path))
    desk._paths.clear()
    page = client.http.get(f"/api/slides/{key}").json()
    assert "not where it was" in page["missing"]
    assert client.http.get(f"/api/slides/{key}/tile/0/0/0").status_code == 410
    (tmp_path / "one.svs").write_bytes(b"another")
    desk._gone.clear()  # it is looked for again after a while
    assert "content has changed" in client.http.get(f"/api/slides/{key}").json()["missing"]


def test_kinds_of_tissue_can_be_named(client: Client, out: Path) -> None:
    key = client.keys()["one.svs"]
    assert client.http.get(f"/api/slides/{key}/kinds").status_code == 403
    client.look(key)
    found = client.http.get(f"/api/slides/{key}/kinds").json()
    assert len(found) >= 2
    total = client.http.get(f"/api/slides/{key}").json()["tiles"]["ok"]
    assert sum(kind["tiles"] for kind in found) <= total
    assert all(kind["examples"] for kind in found)
    assert client.http.post("/api/kinds", json={"letter": found[0]["letter"], "name": "=tumour"}).status_code == 200
    again = {kind["letter"]: kind["name"] for kind in client.http.get(f"/api/slides/{key}/kinds").json()}
    with (out / "tissue" / "names.csv").open(newline="") as file:
        rows = {row["kind"]: row["name"] for row in csv.DictReader(file)}
    assert rows[found[0]["letter"]] == "'=tumour"
    assert "tumour" in again[found[0]["letter"]]
    assert client.http.post("/api/kinds", json={"letter": "Z", "name": "x"}).status_code == 409


def test_a_lesson_is_given_on_paint_or_on_kinds_that_have_a_name(
    client: Client, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []

    def start(regions: Path, positive: str | None) -> bool:
        given.append(regions)
        return True

    monkeypatch.setattr(client.review.lesson, "start", start)
    monkeypatch.setattr(client.review.lesson, "make_ready", lambda: None)
    for with_kinds, said in ((False, "Nothing is painted"), (True, "No kind has a name")):
        answer = client.http.post("/api/teach", json={"with_kinds": with_kinds})
        assert answer.status_code == 409
        assert said in answer.json()["error"]
    row, column = next(
        (int(r), int(c)) for c, r in client.review.desk.features(client.case(client.keys()["one.svs"])).grid.lattice()
    )
    client.say(client.keys()["one.svs"], event="painted", label="tumour", runs=[[row, column, 1]])
    assert client.http.post("/api/kinds", json={"letter": "A", "name": "stroma"}).status_code == 200
    assert client.http.post("/api/teach", json={}).status_code == 200
    assert client.http.post("/api/teach", json={"with_kinds": True}).status_code == 200
    assert given == [out / "review" / "regions", out / "tissue" / "names.csv"]
