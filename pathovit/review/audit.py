"""Whether the record of a review is whole, and what is in it, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.review.record import NOTHING, Event, Head, Record, _lines


@dataclass(frozen=True)
class Audit:
    """What was found."""

    events: tuple[Event, ...]  # those that can be believed, in order
    broken: tuple[str, ...]  # what is wrong, and where
    remarks: tuple[str, ...]  # what is odd, and may be
    head: Head


@dataclass
class _Found:
    events: list[Event] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def verify(record: Record, known_head: str = "") -> Audit:
    """Check every line and both chains.

    Parameters
    ----------
    known_head : a digest that was noted elsewhere; it must be in the record
    """
    found = _Found()
    with record.at_rest():
        try:
            head = record.head()
        except SettingsError as error:
            found.broken.append(str(error))
            head = Head()
        for slide_id, path in record.files():
            name = path.relative_to(record.out.path).as_posix()
            _check_file(found, slide_id, name, *_lines(path), interrupted=head.writing == slide_id)
    found.events.sort(key=lambda event: event.number)
    _check_folder(found, head)
    if known_head and known_head not in {event.digest for event in found.events}:
        found.broken.append(
            f"the digest {known_head[:16]}..., noted before, is not in the record: it was written anew, or is another one"
        )
    return Audit(tuple(found.events), tuple(found.broken), tuple(found.remarks), head)


def _check_file(found: _Found, slide_id: str, name: str, lines: list[bytes], torn: bytes, interrupted: bool) -> None:
    if torn and not interrupted:
        found.broken.append(f"{name}: its last line was cut off")
    elif torn:
        found.remarks.append(f"{name}: its end was being written when the power went, and was never acknowledged")
    before = NOTHING
    for number, line in enumerate(lines, start=1):
        try:
            event = Event.from_line(line)
        except ValueError as error:
            found.broken.append(f"{name}, line {number}: {error}")
            before = "?"
            continue
        if event.slide_id != slide_id:
            found.broken.append(f"{name}, line {number}: event {event.number} belongs to {event.slide_id or 'the folder'}")
        if before != "?" and event.before_here != before:
            found.broken.append(f"{name}, line {number}: event {event.number} does not follow on the line before it")
        before = event.digest
        found.events.append(event)


def _check_folder(found: _Found, head: Head) -> None:
    before, number = NOTHING, 0
    time = None
    for event in found.events:
        if event.number != number + 1:
            missing = f"events {number + 1} to {event.number - 1} are" if event.number > number + 2 else f"event {number + 1} is"
            found.broken.append(f"{missing} missing" if event.number > number else f"event {event.number} is there twice")
        elif event.before != before:
            found.broken.append(f"event {event.number} does not follow on event {number}")
        now = datetime.fromisoformat(event.time)
        if time is not None and now < time:
            found.remarks.append(f"event {event.number}: the clock had been set back ({event.time})")
        before, number, time = event.digest, event.number, now
    if head.number > number:
        found.broken.append(f"events {number + 1} to {head.number} are missing at the end")
    elif head.number < number - 1 or (head.number == number and head.digest != before):
        found.broken.append("review/head.json is not of this record: it is an older one, or was changed")
    elif head.number == number - 1:  # the power went before the head was written
        last = found.events[-1]
        if last.before != head.digest or last.slide_id != head.writing:
            found.broken.append("review/head.json is not of this record: it is an older one, or was changed")


def to_rows(events: tuple[Event, ...]) -> list[Mapping[str, object]]:
    """A row for each event, for CSV and for reading."""
    return [
        {
            "number": event.number,
            "time": event.time,
            "slide_id": event.slide_id,
            "reader": event.reader,
            "role": event.role,
            "event": event.kind,
            "said": json.dumps({key: value for key, value in event.said.items() if key != "event"}, ensure_ascii=False),
            "seen": json.dumps(dict(event.seen), ensure_ascii=False),
            "model": event.about.get("model", ""),
            "model_sha256": event.about.get("model_sha256", ""),
            "digest": event.digest,
        }
        for event in events
    ]


def to_text(found: Audit) -> str:
    """The record as a page to read: what each reader did, in order, and what was before their eyes."""
    lines = [RESEARCH_USE, f"Record of a review: {len(found.events)} events, newest {found.head.digest or 'none'}"]
    lines += [f"NOT WHOLE: {broken}" for broken in found.broken]
    slide = None
    for event in found.events:
        if event.slide_id != slide:
            slide = event.slide_id
            lines += ["", slide or "the folder"]
        lines.append(f"  {event.number:5}  {event.time}  {event.reader} ({event.role})  {_words(event)}{_seen(event)}")
    return "\n".join(lines)


def _words(event: Event) -> str:
    said = event.said
    label = said.get("label") or "unsure"
    tiles = sum(length for _, _, length in said.get("runs", ()))
    note = f': "{said["note"]}"' if said.get("note") else ""
    why = f' (changed because: "{said["reason"]}")' if said.get("reason") else ""
    match event.kind:
        case "opened":
            return "opened the slide" + (", without the answer" if said["blind"] else "")
        case "first_impression":
            return f"first impression: {label}"
        case "shown":
            return "saw the answer all the same" if said["anyway"] else "saw what the model says"
        case "decision":
            return f"decided: {label} ({said['judgement']}){note}{why}"
        case "region":
            return f"region of {tiles} tiles taken for {said['label']}: {said['judgement']}{note}"
        case "painted":
            return f"painted {tiles} tiles as {said['label']}" if said["label"] else f"erased {tiles} tiles"
        case "note":
            return f"noted{note}"
        case "undo":
            return f"took back event {said['of']}"
        case "signed":
            return f"signed: {said['meaning']}"
        case "settled":
            return f"settled: {label}{note}"
        case _:
            more = {key: value for key, value in said.items() if key not in ("event", "painted")}
            return f"{event.kind} {json.dumps(more, ensure_ascii=False)}" if more else event.kind


def _seen(event: Event) -> str:
    if not event.seen:
        return ""
    if not event.seen.get("answer"):
        return "  [answer not shown]"
    threshold = event.seen.get("threshold")
    layer = (
        f", map {event.seen['layer']}" + (f" from {threshold:.2f}" if threshold is not None else "")
        if event.seen.get("layer")
        else ""
    )
    return f"  [answer shown{layer}; model {event.about.get('model')} {str(event.about.get('model_sha256'))[:12]}]"
