"""The desk: what lies in a folder of results, and what readers have said of it, as the page asks for it.

Records are read once and again only when their file changes. Slides go by opaque keys, so that no address holds the name of a file.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from pathovit.errors import PathovitError, SlideError
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder, Refused, SlideFolder
from pathovit.outputs.records import A_MAP, DONE, OUTSIDE, Answer, Outcome, SlideRecord, SlideVerdict, is_component
from pathovit.outputs.runs import files_at_hand, given_files
from pathovit.outputs.store import FeatureStore
from pathovit.review.about import tiles_sha256
from pathovit.review.alike import Part, Sample
from pathovit.review.heat import Heat, read_heat
from pathovit.review.opinion import Opinion, Standing, opinions, standing
from pathovit.review.readers import Reader, Readers
from pathovit.review.record import NAME, Event, Record
from pathovit.slides.find import find_slides

SAMPLED_TILES, SAMPLED_SLIDES = 20_000, 400  # of the whole folder, for tiles that look alike
MORE = 1.2  # times as many slides as were looked at: then again
KEPT_FEATURES = 2  # slides
LOOK_AGAIN_S = 5.0  # for a file that was not there
Stamp: TypeAlias = tuple[int, int]


class Group(StrEnum):
    """Where a slide stands in the worklist, and the order of these."""

    FAILED = "failed"
    UNREAD = "unread"
    STRANGE = "strange"
    UNSURE = "unsure"
    ANSWERED = "answered"
    NO_ANSWER = "no answer"


CAUSES = {
    Group.FAILED: "pathovit could not finish these files; nothing is known of them.",
    Group.UNREAD: "Part of their tissue could not be read: what is not shown may hold anything.",
    Group.STRANGE: "Unlike the slides that the model was made from, so that it has no answer for them.",
    Group.UNSURE: "More than one answer is possible at the error rate that was asked for.",
    Group.ANSWERED: "The model has an answer; the strongest come first.",
    Group.NO_ANSWER: "Features alone: no model was asked.",
}


@dataclass(frozen=True)
class Case:
    """A row of the worklist: a slide that is done, or a file that is not."""

    key: str
    slide_id: str
    file: str
    patient: str
    group: Group
    reason: str
    record: SlideRecord | None

    @property
    def answer(self) -> Answer | None:
        return self.record.prediction if self.record else None

    @property
    def model_sha256(self) -> str:
        finished = self.record.finish_recipe if self.record else None
        return str((finished.values.get("model_sha256") if finished else None) or "")

    @property
    def doubtful(self) -> bool:
        """Whether the model has no answer to rely on, whatever else is true of the slide."""
        answer = self.answer
        return answer is not None and (answer.unsure or _is_strange(answer))

    @property
    def blind_rank(self) -> tuple[float, str]:
        """The same where the answer is not to be told by the order: whatever it is, what the model is least sure of comes first."""
        answer = self.answer
        if answer is None or self.group == Group.STRANGE:
            return self.rank
        chances = answer.probabilities
        if abs(sum(chances) - 1) > 0.01:  # of labels that do not exclude each other: the one that is least sure
            return min((max(chance, 1 - chance) for chance in chances), default=0.0), self.key
        return max(chances), self.key

    @property
    def rank(self) -> tuple[float, str]:
        """By risk within a group; strange ones by novelty."""
        answer = self.answer
        if answer is None:
            return 0.0, self.slide_id
        return -(answer.novelty or 0.0) if self.group == Group.STRANGE else -answer.risk, self.slide_id


class Whereabouts(StrEnum):
    """What became of the slide's file."""

    HERE = "here"
    MISSING = "missing"
    CHANGED = "changed"


@dataclass
class Desk:
    """A folder of results with its review. Safe from several threads."""

    out: OutFolder
    elsewhere: tuple[Path, ...] = ()  # folders in which slides are looked for that are not where they were
    record: Record = field(init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _records: dict[str, tuple[Stamp, SlideRecord | Refused]] = field(default_factory=dict)
    _events: dict[str, tuple[Stamp, list[Event]]] = field(default_factory=dict)
    _paths: dict[str, Path] = field(default_factory=dict)
    _folders: tuple[Stamp | None, list[SlideFolder]] | None = None
    _cases: dict[str, Case] = field(default_factory=dict)
    _features: dict[tuple[str, Stamp | None], SlideFeatures] = field(default_factory=dict)
    _sample: tuple[int, Sample | None] | None = None  # of a folder of so many slides
    _sampling: threading.Lock = field(default_factory=threading.Lock)
    _gone: dict[str, tuple[float, Whereabouts]] = field(default_factory=dict)  # files that were not there, and when

    def __post_init__(self) -> None:
        self.record = Record(self.out)
        self._paths = files_at_hand(self.out)

    # What lies there

    def cases(self) -> list[Case]:
        """All of the folder, in the order of the worklist."""
        with self._lock:
            found: dict[str, Case] = {}
            for folder in self._all_folders():
                if (stamp := _stamp(f"{folder.path}/{DONE}")) is None:
                    continue
                kept = self._records.get(folder.slide_id)
                if kept is None or kept[0] != stamp:
                    read = folder.read()
                    if read is None or (isinstance(read, SlideRecord) and read.finish_recipe is None):  # being drawn
                        if kept is None:
                            continue
                    else:
                        kept = self._records[folder.slide_id] = stamp, read
                case = _case(kept[1])
                found[case.key] = case
            done = {case.slide_id for case in found.values()}
            for outcome in self.out.outcomes():
                if not outcome.twin and not (outcome.slide_id in done and outcome.slide_id):
                    case = _failed(outcome)
                    found[case.key] = case
            self._cases = found
            order = list(Group)
            return sorted(found.values(), key=lambda case: (order.index(case.group), case.rank))

    def _all_folders(self) -> list[SlideFolder]:
        """Listed again when there are others."""
        mark = _stamp(self.out.path / "slides")
        if self._folders is None or self._folders[0] != mark:
            self._folders = mark, self.out.slides()
        return self._folders[1]

    def case(self, key: str) -> Case | None:
        """By its opaque key."""
        with self._lock:
            case = self._cases.get(key)
            if case is None or (
                case.record and _stamp(self.out.slide(case.slide_id).path / DONE) != self._records[case.slide_id][0]
            ):
                self.cases()
                case = self._cases.get(key)
            return case

    def path(self, record: SlideRecord) -> tuple[Path | None, Whereabouts]:
        """The slide's file, where it is at hand as it was. A file that was touched or moved is known by its content."""
        path = self._paths.get(record.sha256)
        if path is not None and self.out.unchanged(path) == record.sha256:
            return path, Whereabouts.HERE
        gone = self._gone.get(record.sha256)
        if gone is not None and time.monotonic() - gone[0] < LOOK_AGAIN_S:
            return None, gone[1]
        there = [path for path in self._candidates(record) if path.exists()]
        for path in there:
            with suppress(SlideError):  # being written to, or unreadable: then it is not this one
                if self.out.fingerprint(path)[0] == record.sha256:
                    self._paths[record.sha256] = path
                    return path, Whereabouts.HERE
        whereabouts = Whereabouts.CHANGED if there else Whereabouts.MISSING
        self._gone[record.sha256] = time.monotonic(), whereabouts
        return None, whereabouts

    def _candidates(self, record: SlideRecord) -> list[Path]:
        """Files of its name, where runs found them or where slides are said to lie now."""
        found = given_files(self.out)
        if self.elsewhere:
            with suppress(PathovitError):
                found += find_slides(self.elsewhere)
        name = self.out.called(record).name  # its slide_id, where nobody knows: any may be it
        return list(dict.fromkeys(path for path in found if name in (path.name, record.slide_id)))

    def called(self, case: Case) -> str:
        """What to call a slide before its reader: by the name of its file, as far as it is known."""
        return self.out.name_of(case.file or case.slide_id) or case.file or case.slide_id

    def patient(self, case: Case) -> str:
        """Whose it is, by name, as far as it is known."""
        return self.out.names().patient_of(case.patient)

    def features(self, case: Case) -> SlideFeatures:
        """Stored features of a slide; the last few are kept. Raises SlideError where they are missing or damaged."""
        key = case.slide_id, _stamp(self.out.slide(case.slide_id).path / "features.json")
        with self._lock:
            if (kept := self._features.get(key)) is not None:
                return kept
        stored = FeatureStore(self.out.slide(case.slide_id), Path(self.called(case))).read()
        with self._lock:
            self._features[key] = stored
            while len(self._features) > KEPT_FEATURES:
                self._features.pop(next(iter(self._features)))
        return stored

    def heat(self, case: Case) -> Heat:
        """Raises SlideError where it is missing or damaged."""
        return read_heat(self.out.slide(case.slide_id), self.features(case))

    def sample(self) -> Sample | None:
        """Some tiles of many slides with features like each other's; made when it is asked for the first time, and again for many more slides."""
        cases = [case for case in self.cases() if case.record]
        with self._sampling:
            if self._sample is None or len(cases) > MORE * self._sample[0]:
                self._sample = len(cases), self._drawn(cases)
            return self._sample[1]

    def _drawn(self, cases: list[Case]) -> Sample | None:
        count = min(len(cases), SAMPLED_SLIDES)
        parts: list[Part] = []
        each, width = SAMPLED_TILES // max(1, count), 0
        for step in range(count):
            case = cases[len(cases) * step // count]
            try:
                stored = FeatureStore(self.out.slide(case.slide_id), Path(self.called(case))).read()
            except PathovitError:  # its own page says so
                continue
            width = width or stored.features.shape[1]
            if stored.features.shape[1] == width:  # rows alone are kept: stores of hundreds of slides do not fit into memory
                parts.append(Part.of(stored, each))
        return Sample.joined(parts) if parts else None

    # What was said of it

    def events(self, slide_id: str) -> list[Event]:
        """Raises SettingsError where the record was changed from outside."""
        with self._lock:
            # Of all slides at once, for the worklist: text is joined faster than paths.
            stamp = _stamp(f"{self.out.path}/slides/{slide_id}/{NAME}" if slide_id else self.record.path(""))
            if stamp is None:
                return []
            kept = self._events.get(slide_id)
            if kept is None or kept[0] != stamp:
                kept = self._events[slide_id] = stamp, self.record.events(slide_id)
            return kept[1]

    def readers(self) -> Readers:
        return Readers.load(self.record.folder)

    def is_assigned(self, case: Case, reader: Reader, readers: Readers, opinion: Opinion | None = None) -> bool:
        """Whether a slide is a reader's: all slides of a patient are the same reader's, and one stays whose slide was begun.

        Parameters
        ----------
        opinion : of the reader, where it is at hand
        """
        names = readers.readers_of(case.patient or case.slide_id)
        if not names or reader.name in names or reader.may_settle:
            return True
        return (opinion or self.opinion(case, reader.name)).opened

    def opinion(self, case: Case, reader: str) -> Opinion:
        return self.opinions(case).get(reader, Opinion(reader))

    def opinions(self, case: Case) -> dict[str, Opinion]:
        """Of all readers on a slide, on its tiles as they lie now."""
        events = self.events(case.slide_id) if case.record else []
        return opinions(events, tiles_sha256(case.record)) if case.record and events else {}

    def standing(self, case: Case) -> Standing:
        return standing(self.events(case.slide_id) if case.record else [])


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stamp(path: Path | str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _case(found: SlideRecord | Refused) -> Case:
    if isinstance(found, Refused):
        return Case(key_of(found.slide_id), found.slide_id, found.slide_id, "", Group.FAILED, found.reason, None)
    return Case(
        key_of(found.slide_id), found.slide_id, found.description.file, found.patient or "", _group(found), found.reason, found
    )


def _failed(outcome: Outcome) -> Case:
    slide_id = outcome.slide_id if is_component(outcome.slide_id) else ""
    key = key_of(f"file {outcome.file} {outcome.slide_id}")
    return Case(key, slide_id, outcome.file, outcome.patient or "", Group.FAILED, outcome.reason, None)


def _group(record: SlideRecord) -> Group:
    answer = record.prediction
    if record.verdict == SlideVerdict.DEGRADED:
        return Group.UNREAD
    if answer is None:
        return Group.NO_ANSWER
    if _is_strange(answer):
        return Group.STRANGE
    return Group.UNSURE if answer.unsure else Group.ANSWERED


def _is_strange(answer: Answer) -> bool:
    """Unlike what the model was made from; of a taught model single tiles are, and its map says which."""
    return answer.answer == OUTSIDE or (answer.strange and answer.answer != A_MAP)
