"""The server of the review page: a folder of results on one address of this computer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException as AnyHTTPException

from pathovit.errors import PathovitError, SlideError
from pathovit.outputs.folder import OutFolder
from pathovit.review import kinds
from pathovit.review.desk import Whereabouts
from pathovit.review.events import Given, Name, Strict
from pathovit.review.guard import Guard, TooMuch
from pathovit.review.opinion import runs_of
from pathovit.review.pixels import JPEG
from pathovit.review.readers import Reader
from pathovit.review.service import Review
from pathovit.review.worklist import opinion_page, slide_page, worklist

BUILT = Path(__file__).parent / "built"
A_WHILE = {"cache-control": "private, max-age=60"}  # which tile has a number changes with the tiles
FOREVER = {"cache-control": "private, max-age=86400, immutable"}  # the content of a key never changes


def make_app(review: Review) -> Any:
    """The ASGI application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _report_errors(app, review.desk.out)
    _routes(app, review)
    _more_routes(app, review)
    return Guard(app, frozenset(host.lower() for host in review.settings.hosts))


def _report_errors(app: FastAPI, out: OutFolder) -> None:
    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, AnyHTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def ours(_: Request, error: Exception) -> Response:
        said = str(error)
        for path in (out.path, out.path.resolve()):  # folders above can name patients
            said = said.replace(f"{path}/", "").replace(str(path), out.path.name)
        return JSONResponse({"error": said}, 422 if isinstance(error, SlideError) else 409)

    async def too_much(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "Too much at once."}, 429, {"retry-after": "1"})

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    app.add_exception_handler(AnyHTTPException, http)
    app.add_exception_handler(PathovitError, ours)
    app.add_exception_handler(TooMuch, too_much)
    app.add_exception_handler(RequestValidationError, invalid)


class Token(Strict):
    token: str = Field(max_length=200)


class Wanted(Strict):
    positive: Name | None = None
    with_kinds: bool = False  # teach from kinds of tissue that have a name, instead of paint


class KindName(Strict):
    letter: str = Field(pattern="^[A-Z]$")
    name: str = Field(max_length=80)


def _who(review: Review) -> Callable[[Request], Reader]:
    def who(request: Request) -> Reader:
        return review.reader(request)

    return who


def _routes(app: FastAPI, review: Review) -> None:
    me, blind = Depends(_who(review)), review.settings.blind

    @app.get("/")
    def page() -> Response:
        if not (BUILT / "index.html").is_file():
            raise HTTPException(503, "The page was not built when pathovit was installed. In a checkout: make page")
        return FileResponse(BUILT / "index.html", media_type="text/html")

    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        path = {path.name: path for path in BUILT.glob("*.*")}.get(name)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(path)

    @app.post("/api/enter")
    def enter(request: Request, given: Token) -> Response:
        found = review.enter(given.token, request.client.host if request.client else "")
        if found is None:
            raise HTTPException(401, "This token is not known.")
        answer = JSONResponse({"reader": found[0].name})
        answer.set_cookie(
            review.settings.cookie, found[1], httponly=True, samesite="strict", secure=review.settings.secure, path="/"
        )
        return answer

    @app.post("/api/leave")
    def leave(request: Request) -> Response:
        review.sessions.end(request.cookies.get(review.settings.cookie))
        answer = JSONResponse({})
        answer.delete_cookie(review.settings.cookie, path="/")
        return answer

    @app.get("/api/worklist")
    def all_slides(reader: Reader = me) -> Any:
        return JSONResponse(worklist(review.desk, reader, blind) | {"lesson": review.lesson.to_json()})

    @app.get("/api/slides/{key}")
    def one_slide(key: str, reader: Reader = me) -> Any:
        case = review.case(key, reader)
        if case.record is None:
            return slide_page(review.desk, case, reader, blind, None, None, [], Whereabouts.HERE, True)
        path, whereabouts = review.desk.path(case.record)
        heat = review.heat(case, case.record)
        if path is None:
            return slide_page(review.desk, case, reader, blind, heat, None, [], whereabouts, True)
        ready = review.overviews(case, case.record, path).is_whole
        with review.shelf.slide(case.record, path) as slide:
            return slide_page(
                review.desk, case, reader, blind, heat, slide, review.levels(case.record, path), whereabouts, ready
            )  # fmt: skip

    @app.get("/api/slides/{key}/tile/{level}/{column}/{row}")
    def tile(key: str, level: int, column: int, row: int, reader: Reader = me) -> Response:
        case, record = review.recorded(key, reader)
        with review.gate.place():
            return Response(review.tile(case, record, level, column, row), media_type=JPEG, headers=FOREVER)

    @app.get("/api/slides/{key}/grid")
    def grid(key: str, reader: Reader = me) -> Response:
        """A byte for each cell of the lattice: 0 no tile, 1 a tile, 2 tissue that could not be read."""
        case, record = review.recorded(key, reader)
        with review.looks.place():
            stored, heat = review.desk.features(case), review.heat(case, record)
        cells, at = np.zeros(heat.shape, np.uint8), stored.grid.lattice()
        cells[at[:, 1], at[:, 0]] = np.where(stored.unread, 2, 1)
        return Response(cells.tobytes(), media_type="application/octet-stream")

    @app.get("/api/slides/{key}/heat/{layer}")
    def heat(key: str, layer: int, reader: Reader = me) -> Response:
        case, record = review.recorded(key, reader)
        if not review.sight(case, reader).answer:
            raise HTTPException(403, "The map is shown after the first impression.")
        layers = review.heat(case, record).layers
        if not 0 <= layer < len(layers):
            raise HTTPException(404, "There is no such layer.")
        return Response(layers[layer].cells.tobytes(), media_type="application/octet-stream")

    @app.get("/api/slides/{key}/picture/{index}")
    def picture(key: str, index: int, reader: Reader = me) -> Response:
        case, record = review.recorded(key, reader)
        with review.gate.place():
            return Response(review.picture(case, record, index), media_type=JPEG, headers=A_WHILE)

    @app.post("/api/slides/{key}/events")
    def say(key: str, given: Given, reader: Reader = me) -> Any:
        case = review.case(key, reader)
        event = review.say(case, reader, given)
        return {
            "number": event.number,
            "digest": event.digest,
            "opinion": opinion_page(review.desk.opinion(case, reader.name)),
        }


def _more_routes(app: FastAPI, review: Review) -> None:
    me = Depends(_who(review))

    @app.get("/api/slides/{key}/at/{row}/{column}")
    def at(key: str, row: int, column: int, reader: Reader = me) -> Any:
        """What is known of the tile at a cell."""
        case, record = review.recorded(key, reader)
        stored = review.desk.features(case)
        found_there = np.flatnonzero((stored.grid.lattice() == (column, row)).all(1))
        if not len(found_there):
            raise HTTPException(404, "There is no tile.")
        index = int(found_there[0])
        x, y = stored.centres_um()[index]
        found: dict[str, object] = {
            "index": index, "row": row, "column": column, "verdict": ("ok", "missing", "unreadable", "rejected")[int(stored.verdict[index])],
            "x_um": round(float(x), 1), "y_um": round(float(y), 1), "coverage": round(float(stored.coverage[index]), 2),
        }  # fmt: skip
        if review.sight(case, reader).answer:
            found["layers"] = {
                layer.name: facts for layer in review.heat(case, record).layers if (facts := layer.at(row, column))
            }
        return found

    @app.get("/api/slides/{key}/alike/{index}")
    def look_alikes(key: str, index: int, reader: Reader = me) -> Any:
        case, _ = review.recorded(key, reader)
        with review.comparisons.place():
            if not 0 <= index < len(review.desk.features(case).xy):
                raise HTTPException(404, "There is no such tile.")
            return review.alike(case, reader, index)

    @app.get("/api/slides/{key}/kinds")
    def kinds_of_tissue(key: str, reader: Reader = me) -> Any:
        case, _ = review.recorded(key, reader)
        if not review.sight(case, reader).first_done:
            raise HTTPException(403, "Kinds of tissue are shown after the first impression: their names could lead.")
        with review.looks.place():
            stored = review.desk.features(case)
            on_slide = kinds.kinds_on(review.desk.out, stored)
        lattice = stored.grid.lattice()
        return [
            {
                "letter": kind.letter,
                "name": kind.name,
                "colour": kind.colour,
                "tiles": len(kind.tiles),
                "runs": runs_of((int(row), int(column)) for column, row in lattice[kind.tiles]),
                "examples": kind.examples,
            }
            for kind in on_slide
        ]

    @app.post("/api/kinds")
    def name_kind(given: KindName, reader: Reader = me) -> Any:
        if not reader.may_settle:
            raise HTTPException(403, "Whoever settles disagreements names kinds of tissue.")
        kinds.name_kind(review.desk.out, given.letter, given.name.strip())
        review.desk.record.append(
            "", reader.name, reader.role, {"event": "kind_named", "kind": given.letter, "label": given.name.strip()}
        )
        return {}

    @app.post("/api/teach")
    def teach(given: Wanted, reader: Reader = me) -> Any:
        if not review.teach(reader, given.positive, given.with_kinds):
            raise HTTPException(409, "A lesson is going on.")
        return review.lesson.to_json()

    @app.get("/api/teach")
    def lesson(reader: Reader = me) -> Any:
        return review.lesson.to_json() | {"lessons": review.lessons()}

    @app.get("/api/suggested")
    def suggested(reader: Reader = me) -> Any:
        """Tiles that a taught model would like to know."""
        keys = {case.slide_id: case for case in review.desk.cases()}
        readers, found = review.desk.readers(), []
        with review.looks.place():
            asked = review.suggested()
        for one in asked:
            case = keys.get(one.slide_id)
            if case is not None and review.desk.is_assigned(case, reader, readers):
                found.append(
                    {"key": case.key, "file": review.desk.called(case), "index": one.index, "row": one.row, "column": one.column}
                )
        return found


def serve(
    review: Review, listen: str, port: int, started: Callable[[], None], certificate: tuple[Path, Path] | None = None
) -> None:
    """Serve until the process is told to stop."""
    import uvicorn

    config = uvicorn.Config(
        make_app(review), host=listen, port=port, log_level="warning", access_log=False, server_header=False, date_header=False,
        limit_concurrency=256, timeout_keep_alive=30, ssl_certfile=certificate and str(certificate[0]), ssl_keyfile=certificate and str(certificate[1]),
        ws="none", proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            started()
        await serving

    try:
        asyncio.run(run())
    finally:
        review.close()
