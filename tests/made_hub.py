"""A model hub on the loopback interface, that redirects, asks for logins, answers ranges and breaks off, as the real one does."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save

from pathovit.encoders import RECORDS, make_model
from pathovit.encoders.records import _COMMITS

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """Files by "repository/file", and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)  # repositories
    status: int = 0  # answered to everything, if it is not 0
    breaks_off: int = 0  # times that a transfer ends after half of what was asked for
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *given: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _say(self, status: int, content: bytes = b"", code: str = "", **headers: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _answer(self, body: bool) -> None:
            hub.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            if hub.status:
                return self._say(hub.status)
            if self.path.startswith("/cdn/"):
                return self._send(hub.files[self.path.removeprefix("/cdn/")])
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if found is None:
                return self._say(404)
            repository, revision, file = found.groups()
            if not any(name.startswith(f"{repository}/") for name in hub.files):
                return self._say(404 if self.headers.get("Authorization") else 401, code="RepoNotFound")
            if repository in hub.gated and self.headers.get("Authorization") != "Bearer good":
                return self._say(403 if self.headers.get("Authorization") else 401, code="GatedRepo")
            if revision not in ("main", COMMIT, *_COMMITS.values()):
                return self._say(404, code="RevisionNotFound")
            content, commit = hub.files.get(f"{repository}/{file}"), COMMIT if revision == "main" else revision
            if content is None:
                return self._say(404, code="EntryNotFound", X_Repo_Commit=commit)
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._say(
                302, Location=f"http://localhost:{server.server_port}/cdn/{repository}/{file}", X_Repo_Commit=commit, X_Linked_Etag=etag, X_Linked_Size=str(len(content))
            )  # fmt: skip
            return None

        def _send(self, content: bytes) -> None:
            first = int(found.group(1)) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
            part = content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.breaks_off:
                hub.breaks_off -= 1
                self.wfile.write(part[: len(part) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def only_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[Hub]:
    """A hub in the place of the real one, caches under `folder`; it has the encoders of these names, with random weights."""
    monkeypatch.setenv("PATHOVIT_CACHE", str(folder / "ours"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own attempts
    made = {}
    for name in names:
        record = RECORDS[name]
        made[f"{record.hub}/model.safetensors"] = save(make_model(record, record.tile_px).state_dict())
    with serve_hub(Hub(files=made)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served
