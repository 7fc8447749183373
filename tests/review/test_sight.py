"""What may be said, and of what: of the map, the tiles and the record that the page had."""

from __future__ import annotations

from pathlib import Path

from made_reader import Client, client_of
from made_runs import folder_of

from pathovit.review.readers import Readers


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
