"""Somebody at the review page: a client of the real application, without a socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.testclient import TestClient

from pathovit.outputs.folder import OutFolder
from pathovit.review.desk import Case
from pathovit.review.readers import at_this_computer
from pathovit.review.server import make_app
from pathovit.review.service import Review, ReviewSettings, open_review

HOST = "127.0.0.1:8760"
ORIGIN = f"http://{HOST}"
TOKEN = "t" * 32
SCRIPTS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "javascript:alert(1)", "{{7*7}}", "</style><script>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'>", "';alert(1)//", "\u2028alert(1)", "<b onmouseover=alert(1)>x</b>", "<svg><animate onbegin=alert(1)>", "<math><mtext>",
    "&lt;script&gt;alert(1)&lt;/script&gt;", "<body onload=alert(1)>", "<a href='javascript:alert(1)'>x</a>", "<object data=javascript:alert(1)>", "${alert(1)}",
    "<!--<img src='--><img src=x onerror=alert(1)//'>", "<input autofocus onfocus=alert(1)>", "\\u003cscript\\u003e", "<details open ontoggle=alert(1)>", "<style>@import'x'</style>",
    "<template><script>alert(1)</script></template>", "%3Cscript%3Ealert(1)%3C/script%3E", "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
]  # fmt: skip


@dataclass
class Client:
    """Somebody at the page."""

    http: TestClient
    review: Review

    def keys(self) -> dict[str, str]:
        """By file."""
        return {row["file"]: row["key"] for row in self.http.get("/api/worklist").json()["rows"]}

    def case(self, key: str) -> Case:
        found = self.review.desk.case(key)
        assert found, key
        return found

    def enter(self, token: str = TOKEN) -> None:
        assert self.http.post("/api/enter", json={"token": token}).status_code == 200

    def look(self, key: str) -> None:
        """First impression, then what the model says, whatever it is worth."""
        if not self.http.get(f"/api/slides/{key}").json()["first_done"]:
            self.say(key, event="first_impression", label=None)
        self.say(key, event="shown", anyway=True)

    def say(self, key: str, status: int = 200, **said: object) -> dict[str, object]:
        answer = self.http.post(f"/api/slides/{key}/events", json={"said": said, "seen": {"answer": False}})
        assert answer.status_code == status, answer.text
        return dict(answer.json())


def client_of(out: Path, blind: bool = True, user_header: str = "") -> Client:
    review = open_review(OutFolder(out), ReviewSettings(at_this_computer("Dr. A"), TOKEN, (HOST,), blind, user_header))
    http = TestClient(make_app(review), base_url=ORIGIN, headers={"origin": ORIGIN}, client=("127.0.0.1", 50000))
    return Client(http, review)
