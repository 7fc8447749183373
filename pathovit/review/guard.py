"""Who may speak to the server: the right address, the right origin, a session; not too much at once.

A page in another tab cannot: it has another origin, its requests carry no cookie (SameSite=Strict), and a name that points to this computer
(DNS rebinding) is no name that the server answers to.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pathovit.review.readers import Reader, digest_of

LARGEST_BODY = 2 * 2**20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LOOPBACK_CLIENTS = ("127.0.0.1", "::1")
SESSION_S = 12 * 3600
TICKET_S = 60.0
TRIES, TRIES_S = 10, 60.0  # wrong tokens in a minute, then none is looked at
OF_OPENSEADRAGON = (
    "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"  # a rule against an outline on touch screens, which it adds itself
)
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {OF_OPENSEADRAGON}",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware: refuses by host, origin and size, and puts the headers on every answer."""

    app: ASGIApp
    hosts: frozenset[str]  # of the Host header, with the port
    schemes: tuple[str, ...] = ("http", "https")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)
        if refused is not None:
            await refused(scope, receive, _with_headers(send))
            return
        await self.app(scope, _limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if scope["type"] != "http":
            return _no(404, "Nothing here speaks that.")
        if headers.getlist("host") != [headers.get("host", "")] or headers.get("host", "").lower() not in self.hosts:
            return _no(421, "This server does not go by that name.")
        origins = {f"{scheme}://{host}" for scheme in self.schemes for host in self.hosts}
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in origins:
            return _no(403, "Not from another page.")
        followed = (
            scope["path"] == "/" and scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        )  # a link to the page
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not followed:
            return _no(403, "Not from another page.")
        if scope["method"] not in ("GET", "HEAD"):
            if origin is None:
                return _no(403, "Not without an origin.")
            if headers.get("content-type", "").split(";")[0].strip() != "application/json":
                return _no(415, "Send JSON.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            return _no(413, "That is too much.")
        return None


def _no(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending


def _limited(receive: Receive) -> Receive:
    taken = 0

    async def receiving() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > LARGEST_BODY:  # without a length that was stated
                return {"type": "http.disconnect"}
        return message

    return receiving


@dataclass
class Sessions:
    """Who is logged in. A session ends half a day after it was last used, and with the server."""

    _open: dict[str, tuple[Reader, float]] = field(default_factory=dict)
    _wrong: list[tuple[str, float]] = field(default_factory=list)  # address and time
    _ticket: tuple[str, float] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, reader: Reader) -> str:
        name = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            self._open = {key: value for key, value in self._open.items() if now - value[1] < SESSION_S}
            self._open[name] = reader, now
        return name

    def reader(self, name: str | None) -> Reader | None:
        with self._lock:
            found, now = self._open.get(name or ""), time.monotonic()
            if found is None or now - found[1] >= SESSION_S:
                return None
            self._open[name or ""] = found[0], now
            return found[0]

    def end(self, name: str | None) -> None:
        with self._lock:
            self._open.pop(name or "", None)

    def ticket(self) -> str:
        """A token for one use, within a minute: a browser is told it where other people of the computer may read along."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._ticket = digest_of(name), time.monotonic()
        return name

    def take(self, ticket: str) -> bool:
        """Whether it was the ticket; it is used up then."""
        with self._lock:
            given = self._ticket
            if given is None or given[0] != digest_of(ticket):
                return False
            self._ticket = None
            return time.monotonic() - given[1] < TICKET_S

    def may_try(self, client: str) -> bool:
        """Whether another token from an address is looked at, after wrong ones."""
        with self._lock:
            now = time.monotonic()
            self._wrong = [(who, when) for who, when in self._wrong if now - when < TRIES_S]
            return sum(who == client for who, _ in self._wrong) < TRIES

    def was_wrong(self, client: str) -> None:
        with self._lock:
            self._wrong.append((client, time.monotonic()))


class TooMuch(Exception):
    """More is asked for at once than can be served; it may be asked for again."""


@dataclass
class Gate:
    """So many at a time do the work, and so many wait; others are told to come again."""

    at_once: int
    waiting: int
    _running: threading.Semaphore = field(init=False)
    _places: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._running = threading.Semaphore(self.at_once)
        self._places = threading.Semaphore(self.at_once + self.waiting)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises TooMuch."""
        if not self._places.acquire(blocking=False):
            raise TooMuch
        try:
            with self._running:
                yield
        finally:
            self._places.release()
