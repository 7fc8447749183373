"""What the routes of the review page share: who asks, which slide, its map and its pixels, the record, the lesson."""

from __future__ import annotations

import logging
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import HTTPException, Request

from pathovit.errors import PathovitError
from pathovit.files import read_bytes
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import SlideRecord
from pathovit.review import corrections, kinds
from pathovit.review.about import about, tiles_sha256
from pathovit.review.alike import Alike, alike_elsewhere, alike_here
from pathovit.review.desk import Case, Desk
from pathovit.review.events import Given
from pathovit.review.guard import LOOPBACK_CLIENTS, Gate, Sessions
from pathovit.review.heat import Heat
from pathovit.review.lesson import Lesson
from pathovit.review.pixels import MADE, Overviews, ServedLevel, Shelf, TileCache, served_levels, small_picture, tile_bytes
from pathovit.review.readers import READER, Reader, digest_of
from pathovit.review.record import Event
from pathovit.review.sight import PRESENT, Sight, checked, require_seen, sight

TILES_AT_ONCE, TILES_WAITING = 4, 20  # of the 40 threads that serve
LOOKS_AT_ONCE, LOOKS_WAITING = 2, 6  # at features
ALIKE = 3
TILE_PICTURE_PX, AROUND = 192, 1.0  # of a tile's picture, and tiles shown on every side of it


@dataclass(frozen=True)
class ReviewSettings:
    """How the page is served."""

    reader: Reader  # who reads where there are no accounts
    token: str
    hosts: tuple[str, ...]  # names of the server, with port
    blind: bool = True
    user_header: str = ""  # set by a proxy that has asked who it is
    secure: bool = False  # the cookie travels over TLS alone

    @property
    def cookie(self) -> str:
        """Its name: browsers keep cookies of one computer together, whatever the port."""
        return f"pathovit-review-{self.hosts[0].rpartition(':')[2]}"


@dataclass
class Review:
    """Everything that the routes share."""

    desk: Desk
    settings: ReviewSettings
    cache: TileCache
    shelf: Shelf = field(default_factory=Shelf)
    sessions: Sessions = field(default_factory=Sessions)
    gate: Gate = field(default_factory=lambda: Gate(TILES_AT_ONCE, TILES_WAITING))
    looks: Gate = field(default_factory=lambda: Gate(LOOKS_AT_ONCE, LOOKS_WAITING))
    comparisons: Gate = field(default_factory=lambda: Gate(1, LOOKS_WAITING))  # the first of a folder reads many slides
    lesson: Lesson = field(init=False)
    _levels: dict[str, list[ServedLevel]] = field(default_factory=dict)
    _heat: dict[str, tuple[str, Heat]] = field(default_factory=dict)
    _making: set[str] = field(default_factory=set)
    _suggested: tuple[int, list[corrections.Asked]] | None = None
    _teacher: Reader | None = None
    _saying: threading.Lock = field(default_factory=threading.Lock)
    _teaching: threading.Lock = field(default_factory=threading.Lock)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        folder = self.desk.record.folder
        self.lesson = Lesson(self.desk.out, folder / "taught", self._taught)

    # Who

    def reader(self, request: Request) -> Reader:
        """Raises HTTPException 401 for nobody."""
        readers = self.desk.readers()
        if header := self.settings.user_header:
            names = request.headers.getlist(header)
            name = names[0].strip() if len(names) == 1 else ""  # a second one could have come from outside
            if not name or request.client is None or request.client.host not in LOOPBACK_CLIENTS:
                raise HTTPException(401, "The proxy did not say who you are.")
            known = readers.by_name(name)
            if known is None and readers.people:
                raise HTTPException(403, "You have no account here. Ask for: pathovit review users")
            return known or Reader(name, READER)
        found = self.sessions.reader(request.cookies.get(self.settings.cookie))
        if found is None:
            raise HTTPException(401, "Not logged in.")
        # Removed, given another token, or of before there were accounts.
        if found != (readers.by_name(found.name) if readers.people else self.settings.reader):
            raise HTTPException(401, "This account is not there any more.")
        return found

    def enter(self, token: str, client: str) -> tuple[Reader, str] | None:
        """The reader of a token, and a session."""
        if not self.sessions.may_try(client):
            raise HTTPException(429, "Too many wrong tokens. Wait a minute.")
        readers = self.desk.readers()
        found = readers.by_token(token)
        alone = not readers.people and not self.settings.user_header
        if found is None and alone and (digest_of(token) == digest_of(self.settings.token) or self.sessions.take(token)):
            found = self.settings.reader
        if found is None:
            self.sessions.was_wrong(client)
            return None
        return found, self.sessions.begin(found)

    # What

    def case(self, key: str, reader: Reader) -> Case:
        case = self.desk.case(key)
        if case is None or not self.desk.is_assigned(case, reader, self.desk.readers()):
            raise HTTPException(404, "There is no such slide, or it is not yours.")
        return case

    def recorded(self, key: str, reader: Reader) -> tuple[Case, SlideRecord]:
        case = self.case(key, reader)
        if case.record is None:
            raise HTTPException(409, "This slide failed: there is nothing to see of it.")
        return case, case.record

    def heat(self, case: Case, record: SlideRecord) -> Heat:
        """Kept until another map is drawn."""
        mark = record.products.get("heatmap.ome.tiff", "") + tiles_sha256(record)
        with self._lock:
            kept = self._heat.get(case.key)
        if kept is None or kept[0] != mark:
            kept = mark, self.desk.heat(case)
            with self._lock:
                self._heat = {**dict(list(self._heat.items())[-7:]), case.key: kept}
        return kept[1]

    def file(self, record: SlideRecord) -> Path:
        path, whereabouts = self.desk.path(record)
        if path is None:
            raise HTTPException(410, f"The slide's file is {whereabouts.value}.")
        return path

    def levels(self, record: SlideRecord, path: Path) -> list[ServedLevel]:
        with self._lock:
            if record.sha256 in self._levels:
                return self._levels[record.sha256]
        with self.shelf.slide(record, path) as slide:
            found = served_levels(slide)
        with self._lock:
            self._levels[record.sha256] = found
        return found

    def overviews(self, case: Case, record: SlideRecord, path: Path) -> Overviews:
        """Those of a slide; if some are missing, they begin to be made."""
        found = Overviews(self.desk.record.folder / "overviews" / case.slide_id, self.levels(record, path))
        with self._lock:
            if found.is_whole or case.key in self._making:
                return found
            self._making.add(case.key)

        def make() -> None:
            try:
                with self.shelf.slide(record, path) as slide:
                    found.make(slide)
            except PathovitError as error:
                logging.getLogger("pathovit.review").warning("%s: no overview can be made (%s)", self.desk.called(case), error)
            finally:
                with self._lock:
                    self._making.discard(case.key)

        threading.Thread(target=make, daemon=True).start()
        return found

    def tile(self, case: Case, record: SlideRecord, index: int, column: int, row: int) -> bytes:
        """A tile of a level as JPEG."""
        path = self.file(record)
        level = next((level for level in self.levels(record, path) if level.index == index), None)
        if level is None or not (0 <= column < level.columns and 0 <= row < level.rows):
            raise HTTPException(404, "There is no such tile.")
        if index >= MADE:
            made = self.overviews(case, record, path).path(level, column, row)
            if not made.is_file():
                raise HTTPException(503, "This overview is being made.", {"retry-after": "1"})
            return read_bytes(made)
        name = f"{record.sha256[:24]}-{index}-{column}-{row}"
        if (kept := self.cache.get(name)) is not None:
            return kept
        with self.shelf.slide(record, path) as slide:
            content, as_it_lies = tile_bytes(slide, level, column, row)
        if not as_it_lies:
            self.cache.put(name, content)
        return content

    def picture(self, case: Case, record: SlideRecord, index: int) -> bytes:
        """A tile and what lies around it."""
        name = f"{record.sha256[:24]}-{tiles_sha256(record)[:16]}-tile-{index}"
        if (kept := self.cache.get(name)) is not None:
            return kept
        stored = self.desk.features(case)
        if not 0 <= index < len(stored.xy):
            raise HTTPException(404, "There is no such tile.")
        x, y = stored.centres_l0()[index]
        side = stored.tile_l0[0] * stored.mpp[0] * (1 + 2 * AROUND)
        with self.shelf.slide(record, self.file(record)) as slide:
            content = small_picture(slide, (float(x), float(y)), side, TILE_PICTURE_PX)
        self.cache.put(name, content)
        return content

    def say(self, case: Case, reader: Reader, given: Given) -> Event:
        """Keep what was said. Raises NotNow where it cannot be said now."""
        if case.record is None:
            raise HTTPException(409, "This slide failed: there is nothing to say of it.")
        with self._saying:  # what may be said depends on what was said before
            opinion, seen = self.desk.opinion(case, reader.name), self.sight(case, reader)
            require_seen(given, case.record, opinion)
            shape = self.heat(case, case.record).shape
            said = checked(given, case, opinion, seen, shape, reader.may_settle)
            eyes = given.seen.model_dump(mode="json", exclude=set(PRESENT)) | {"answer": seen.answer and case.answer is not None}
            event = self.desk.record.append(case.slide_id, reader.name, reader.role, said, eyes, about(case.record))
        if given.said.event == "painted" and reader.may_settle:
            self.lesson.make_ready()
        return event

    def sight(self, case: Case, reader: Reader) -> Sight:
        opinion, alone = self.desk.opinion(case, reader.name), not self.desk.readers().people
        return sight(case, opinion, self.settings.blind, alone)

    def alike(self, case: Case, reader: Reader, index: int) -> dict[str, list[dict[str, object]]]:
        stored = self.desk.features(case)
        sample = self.desk.sample()
        there = alike_elsewhere(sample, stored, index, 2 * ALIKE) if sample is not None else []
        keys = {c.slide_id: c for c in self.desk.cases()}
        readers = self.desk.readers()

        def told(one: Alike) -> dict[str, object]:
            return {
                "key": keys[one.slide_id].key,
                "file": self.desk.called(keys[one.slide_id]),
                "index": one.index,
                "cosine": round(one.cosine, 3),
            }

        mine = [one for one in there if one.slide_id in keys and self.desk.is_assigned(keys[one.slide_id], reader, readers)]
        return {"here": [told(one) for one in alike_here(stored, index, ALIKE)], "elsewhere": [told(one) for one in mine[:ALIKE]]}

    # Teaching

    def teach(self, reader: Reader, positive: str | None, with_kinds: bool) -> bool:
        """Begin a lesson on what all readers painted, or on the kinds that have a name; False where one is going on."""
        if not reader.may_settle:
            raise HTTPException(403, "Whoever settles disagreements teaches the model.")
        with self._teaching:  # not under the lock of saying: meanwhile others paint on
            if self.lesson.running:
                return False
            folder = self.desk.record.folder / "regions"
            if with_kinds:
                source = kinds.named_source(self.desk.out)
            else:
                source = folder if corrections.write_regions(self.desk, folder)[0] else None
            if source is None:
                raise HTTPException(409, "No kind has a name yet." if with_kinds else "Nothing is painted yet.")
            self._teacher = reader
            try:
                return self.lesson.start(source, positive)
            except OSError as error:
                raise HTTPException(409, f"The process that learns has died ({error.strerror}). Try once more.") from error

    def suggested(self) -> list[corrections.Asked]:
        """Read again only when others are asked for."""
        folder = self.desk.out.path / "suggested"
        mark = folder.stat().st_mtime_ns if folder.is_dir() else 0
        if self._suggested is None or self._suggested[0] != mark:
            self._suggested = mark, corrections.suggested(self.desk)
        return self._suggested[1]

    def _taught(self, taught: dict[str, object]) -> None:
        reader = self._teacher or self.settings.reader
        said = {"event": "taught", "taught": taught}
        self.desk.record.append("", reader.name, reader.role, said, {}, about(None))

    def lessons(self) -> list[dict[str, object]]:
        """How good the models were that were taught here, in order."""
        return [
            {"time": event.time, "reader": event.reader, **dict(event.said["taught"])}
            for event in self.desk.events("")
            if event.kind == "taught"
        ]

    def close(self) -> None:
        self.lesson.stop()
        self.shelf.close()
        self.cache.close()


def open_review(out: OutFolder, settings: ReviewSettings, elsewhere: tuple[Path, ...] = ()) -> Review:
    return Review(Desk(out, elsewhere), settings, TileCache(Path(tempfile.mkdtemp(prefix="pathovit-review-"))))
