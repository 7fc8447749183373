"""Routes of the review page: what a reader gets, when, and what nobody gets."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from made_reader import HOST, ORIGIN, TOKEN, Client, client_of
from made_runs import HOSTILE
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
    client.say(key, event="first_impression", label="tumour")
    client.say(key, event="shown", anyway=True)
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
    client.say(key, event="shown", anyway=True)
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
    client.say(key, 409, event="signed", meaning="agreed")
    client.say(key, event="decision", judgement="agree", label="tumour", note="clear <b>", reason="")
    assert "say why" in str(client.say(key, 409, event="decision", judgement="disagree", label="normal")["error"])
    client.say(key, event="decision", judgement="disagree", label="normal", reason="looked again")
    client.say(key, event="signed", meaning="corrected")
    row = next(row for row in client.http.get("/api/worklist").json()["rows"] if row["key"] == key)
    assert (row["label"], row["state"]) == ("normal", "signed")
    events = Record(client.review.desk.out).events(client.review.desk.case(key).slide_id)  # type: ignore[union-attr]
    assert events[-1].about["model"] == "reference"
    assert len(events[-1].about["model_sha256"]) == len(events[-1].about["code_sha256"]) == 64
    assert events[-1].reader == "Dr. A"
    assert verify(Record(client.review.desk.out)).broken == ()


def test_paint_can_be_taken_back_but_not_what_was_seen(client: Client) -> None:
    key = client.keys()["one.svs"]
    client.say(key, event="opened", blind=True)
    opened = client.http.get(f"/api/slides/{key}").json()["opinion"]["last"]
    assert client.http.get(f"/api/slides/{key}").json()["opinion"]["can_undo"] is None
    client.say(key, event="painted", label="tumour", runs=[[1, 2, 3]])
    opinion = client.http.get(f"/api/slides/{key}").json()["opinion"]
    assert opinion["painted"] == {"tumour": [[1, 2, 3]]}
    client.say(key, event="undo", of=opinion["can_undo"])
    assert client.http.get(f"/api/slides/{key}").json()["opinion"]["painted"] == {}
    client.say(key, 409, event="undo", of=opened + 1000)


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


# Who may speak to it


HOSTS = [
    "evil.example", "evil.example:8760", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8760.evil.example", "127.0.0.1:8760@evil.example", "localhost.evil.example:8760",
    "[::1]:80", "0.0.0.0:8760", "127.1:8760", "2130706433:8760", "",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_it_answers_to_its_own_name_alone(client: Client, host: str) -> None:
    for path in ("/", "/api/worklist"):
        answer = client.http.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "one.svs" not in answer.text


ORIGINS = [
    "http://evil.example", "null", "https://127.0.0.1:8761", "http://127.0.0.1", "http://127.0.0.1:8760.evil.example", "http://localhost:8760", "file://",
    "http://evil.example:8760",
]  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_another_page_can_do_nothing(client: Client, origin: str) -> None:
    key = client.keys()["one.svs"]
    body = {"said": {"event": "note", "note": "forged"}, "seen": {"answer": False}}
    assert client.http.post(f"/api/slides/{key}/events", json=body, headers={"origin": origin}).status_code == 403
    assert client.http.get("/api/worklist", headers={"origin": origin}).status_code == 403
    assert Record(client.review.desk.out).files() == []


def test_a_form_of_another_page_can_do_nothing_even_if_its_origin_is_hidden(client: Client) -> None:
    key = client.keys()["one.svs"]
    body = json.dumps({"said": {"event": "note", "note": "forged"}, "seen": {"answer": False}})
    bare = TestClient(client.http.app, base_url=ORIGIN, cookies=dict(client.http.cookies))
    assert bare.post(f"/api/slides/{key}/events", content=body, headers={"content-type": "application/json"}).status_code == 403
    sent = {"content-type": "text/plain", "origin": ORIGIN}
    assert bare.post(f"/api/slides/{key}/events", content=body, headers=sent).status_code == 415
    crossed = {"sec-fetch-site": "cross-site"}
    assert bare.get("/api/worklist", headers=crossed).status_code == 403
    assert Record(client.review.desk.out).files() == []


def test_nobody_gets_anything_without_a_session(client: Client) -> None:
    key = client.keys()["one.svs"]
    stranger = TestClient(client.http.app, base_url=ORIGIN, headers={"origin": ORIGIN})
    slide = f"/api/slides/{key}"
    for path in ("/api/worklist", slide, f"{slide}/grid", f"{slide}/heat/0", f"{slide}/tile/0/0/0", f"{slide}/picture/0", f"{slide}/at/1/1",
                 f"{slide}/alike/0", f"{slide}/kinds", "/api/teach", "/api/suggested"):  # fmt: skip
        assert stranger.get(path).status_code == 401, path
    for path in (f"{slide}/events", "/api/teach", "/api/kinds"):
        assert stranger.post(path, json={}).status_code in (401, 422), path
    assert stranger.get("/").status_code == 200
    assert "one.svs" not in stranger.get("/").text


def test_tokens_are_not_guessed_at_leisure(client: Client) -> None:
    stranger = TestClient(client.http.app, base_url=ORIGIN, headers={"origin": ORIGIN})
    codes = [stranger.post("/api/enter", json={"token": f"wrong-{n}"}).status_code for n in range(12)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert stranger.post("/api/enter", json={"token": TOKEN}).status_code == 429


def test_the_session_is_a_cookie_that_no_script_and_no_other_site_gets(client: Client) -> None:
    answer = client.http.post("/api/enter", json={"token": TOKEN})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    client.http.post("/api/leave", json={})
    assert client.http.get("/api/worklist").status_code == 401


def test_headers_forbid_what_a_page_does_not_need(client: Client) -> None:
    for path in ("/", "/api/worklist", "/assets/nothing"):
        headers = client.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert headers["x-content-type-options"] == "nosniff"
    assert client.http.options("/api/worklist").status_code in (403, 405, 415)


def test_too_large_a_body_is_not_read(client: Client) -> None:
    key = client.keys()["one.svs"]
    assert (
        client.http.post(
            f"/api/slides/{key}/events", content=b"x" * 3_000_000, headers={"content-type": "application/json"}
        ).status_code
        == 413
    )


PARTS = ["..", "%2e%2e", "..%2f", "%2e%2e%2f", "..%5c", "....//", "%252e%252e%252f", "/etc/passwd", "%00", "run.json"]


def test_no_path_leads_out(client: Client, out: Path) -> None:
    key = client.keys()["one.svs"]
    secret = json.loads((out / "run.json").read_text())["started"]
    tried = 0
    for part in PARTS:
        for target in ("etc/passwd", "run.json", "slides", "review/readers.json", "server.py"):
            for path in (
                f"/assets/{part}/{target}",
                f"/assets/{part}{target}",
                f"/api/slides/{part}/{target}",
                f"/api/slides/{key}/{part}/{target}",
            ):
                answer = client.http.get(path)
                assert answer.status_code in (400, 403, 404, 405, 422), path
                assert "root:" not in answer.text
                assert secret not in answer.text
                tried += 1
    assert tried == 200


SCRIPTS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "javascript:alert(1)", "{{7*7}}", "</style><script>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'>", "';alert(1)//", "\u2028alert(1)", "<b onmouseover=alert(1)>x</b>",
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_people_write_stays_text(client: Client, script: str) -> None:
    """It travels as JSON, whose type no browser takes for a page; the page itself puts it in as text (see test_page.py)."""
    key = client.keys()["one.svs"]
    client.say(key, event="decision", judgement="disagree", label=script, note=script)
    for path in ("/api/worklist", f"/api/slides/{key}"):
        answer = client.http.get(path)
        assert answer.headers["content-type"] == "application/json"
    assert client.http.get(f"/api/slides/{key}").json()["opinion"]["note"] == script


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
    clients["Dr. A"].say(key, event="decision", judgement="agree", label="tumour", note="secret of A")
    clients["Dr. B"].say(key, event="decision", judgement="disagree", label="normal")
    assert "secret of A" not in clients["Dr. B"].http.get(f"/api/slides/{key}").text
    assert clients["Dr. B"].http.get(f"/api/slides/{key}").json()["others"] == []
    clients["Dr. B"].say(key, 403, event="settled", label="normal")
    (row,) = [row for row in clients["Prof. Z"].http.get("/api/worklist").json()["rows"] if row["disagreement"]]
    assert row["key"] == key
    assert {one["label"] for one in clients["Prof. Z"].http.get(f"/api/slides/{key}").json()["others"]} == {"tumour", "normal"}
    clients["Prof. Z"].say(key, event="settled", label="tumour", note="seen on the microscope")
    assert not any(row["disagreement"] for row in clients["Prof. Z"].http.get("/api/worklist").json()["rows"])
    assert clients["Prof. Z"].review.desk.standing(clients["Prof. Z"].review.desk.case(key).slide_id).label == "tumour"  # type: ignore[union-attr]


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


def test_more_than_can_be_served_is_told_to_come_again(client: Client) -> None:
    key = client.keys()["one.svs"]
    for _ in range(52):
        client.review.gate._places.acquire()
    answer = client.http.get(f"/api/slides/{key}/tile/0/0/0")
    assert answer.status_code == 429
    assert answer.headers["retry-after"]


def test_a_slide_that_is_gone_or_changed_says_so(client: Client, out: Path, tmp_path: Path) -> None:
    key = client.keys()["one.svs"]
    desk = client.review.desk
    record = desk.case(key).record  # type: ignore[union-attr]
    assert record
    for run in [out / "run.json", *(out / ".runs").glob("*.json")]:
        found = json.loads(run.read_text())
        run.write_text(json.dumps(found | {"slides": [str(tmp_path / "one.svs")]}))
    desk._paths.clear()
    page = client.http.get(f"/api/slides/{key}").json()
    assert "not where it was" in page["missing"]
    assert client.http.get(f"/api/slides/{key}/tile/0/0/0").status_code == 410
    (tmp_path / "one.svs").write_bytes(b"another")
    assert "content has changed" in client.http.get(f"/api/slides/{key}").json()["missing"]


def test_kinds_of_tissue_can_be_named(client: Client, out: Path) -> None:
    key = client.keys()["one.svs"]
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


def test_nothing_of_the_readers_is_served(client: Client, out: Path) -> None:
    assert HOST in ORIGIN
    for name in ("readers.json", "head.json", "record.jsonl", "sources.sha256x"):
        assert client.http.get(f"/assets/{name}").status_code == 404
