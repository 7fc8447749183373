"""Who may speak to the review page, and what nobody gets."""

from __future__ import annotations

import http.client
import json
import re
import time
from pathlib import Path

import pytest
from made_browser import serving
from made_reader import HOST, ORIGIN, SCRIPTS, TOKEN, Client
from starlette.testclient import TestClient

from pathovit.review.record import Record
from pathovit.review.server import BUILT

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
    assert stranger.get("/").status_code == (200 if (BUILT / "index.html").is_file() else 503)
    assert "one.svs" not in stranger.get("/").text


def test_tokens_are_not_guessed_at_leisure(client: Client) -> None:
    stranger = TestClient(client.http.app, base_url=ORIGIN, headers={"origin": ORIGIN})
    codes = [stranger.post("/api/enter", json={"token": f"wrong-{n}"}).status_code for n in range(12)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert stranger.post("/api/enter", json={"token": TOKEN}).status_code == 429


def test_a_ticket_is_good_once_and_for_a_minute(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a browser is started with can be read by other people of the computer."""
    stranger = TestClient(client.http.app, base_url=ORIGIN, headers={"origin": ORIGIN})
    ticket = client.review.sessions.ticket()
    assert [stranger.post("/api/enter", json={"token": ticket}).status_code for _ in range(2)] == [200, 401]
    late = client.review.sessions.ticket()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert stranger.post("/api/enter", json={"token": late}).status_code == 401


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
TARGETS = ["etc/passwd", "run.json", "slides", "review/head.json", "server.py"]


def leading_out(key: str) -> list[str]:
    """Two hundred paths that would lead out of what is served, were they followed."""
    found = []
    for part in PARTS:
        for target in TARGETS:
            found += [
                f"/assets/{part}/{target}",
                f"/assets/{part}{target}",
                f"//{part}/{target}",
                f"/api/slides/{key}/{part}/{target}",
            ]
    return found


def test_no_path_leads_out(client: Client, out: Path) -> None:
    paths = leading_out(client.keys()["one.svs"])
    secret = json.loads((out / "run.json").read_text())["started"]
    for path in paths:
        answer = client.http.get(f"{ORIGIN}{path}")
        assert answer.status_code in (400, 403, 404, 405, 422), path
        assert "root:" not in answer.text
        assert secret not in answer.text
    assert len(paths) == 200


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_people_write_stays_text(client: Client, script: str) -> None:
    """It travels as JSON, whose type no browser takes for a page; the page itself puts it in as text (see test_page_folders.py)."""
    key = client.keys()["one.svs"]
    client.look(key)
    client.say(key, event="decision", judgement="disagree", label=script, note=script)
    for path in ("/api/worklist", f"/api/slides/{key}"):
        answer = client.http.get(path)
        assert answer.headers["content-type"] == "application/json"
    assert client.http.get(f"/api/slides/{key}").json()["opinion"]["note"] == script


def test_more_than_can_be_served_is_told_to_come_again(client: Client) -> None:
    key = client.keys()["one.svs"]
    for _ in range(24):
        client.review.gate._places.acquire()
    answer = client.http.get(f"/api/slides/{key}/tile/0/0/0")
    assert answer.status_code == 429
    assert answer.headers["retry-after"]


def test_nothing_of_the_readers_is_served(client: Client, out: Path) -> None:
    assert HOST in ORIGIN
    for name in ("readers.json", "head.json", "record.jsonl", "sources.sha256x"):
        assert client.http.get(f"/assets/{name}").status_code == 404


def test_no_path_leads_out_of_a_real_server_either(out: Path) -> None:
    """Clients tidy paths before they send them; this one does not."""
    if not (BUILT / "review.js").is_file():
        pytest.skip("the page was not built: the npm registry was out of reach")
    with serving(out) as url:
        host, token = re.findall(r"//([\d.:]+)/#token=(\S+)", url)[0]
        link = http.client.HTTPConnection(host)
        link.request(
            "POST", "/api/enter", json.dumps({"token": token}), {"content-type": "application/json", "origin": f"http://{host}"}
        )
        answer = link.getresponse()
        answer.read()
        headers = {"cookie": answer.headers["set-cookie"].split(";")[0]}
        link.request("GET", "/api/worklist", headers=headers)
        key = json.loads(link.getresponse().read())["rows"][0]["key"]
        for path in leading_out(key):
            link.request("GET", path, headers=headers)
            found = link.getresponse()
            body = found.read()
            assert found.status in (400, 404, 405, 422), path
            assert b"root:" not in body
            assert b"exit_code" not in body
