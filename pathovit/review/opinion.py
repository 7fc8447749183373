"""Opinions: what the events of one reader on one slide amount to, and what several readers amount to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pathovit.review.record import Event

IGNORE, NOT = "ignore", "not "
Cell = tuple[int, int]  # row, column


@dataclass
class Opinion:
    """One reader on one slide, as it stands."""

    reader: str
    opened: bool = False
    first: str | None = None  # class of the first impression; "" for unsure; None for none yet
    shown: bool = False  # the answer was shown
    judgement: str = ""
    label: str | None = None  # what the slide is; "" for unsure; None for not decided
    note: str = ""
    signed: str = ""
    signed_number: int = 0
    painted: dict[Cell, str] = field(default_factory=dict)
    regions: list[Event] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def decided(self) -> bool:
        return self.label is not None


def opinions(events: Sequence[Event]) -> dict[str, Opinion]:
    """By reader. What was undone does not count; an event of another kind than these says nothing here."""
    undone = {(event.reader, event.said["of"]) for event in events if event.kind == "undo"}
    found: dict[str, Opinion] = {}
    for event in events:
        if event.kind == "settled":
            continue
        one = found.setdefault(event.reader, Opinion(event.reader))
        one.events.append(event)
        if (event.reader, event.number) not in undone:
            _add(one, event)
    return found


def _add(one: Opinion, event: Event) -> None:
    said = event.said
    match event.kind:
        case "opened":
            one.opened = True
            one.shown |= not said["blind"]
        case "first_impression":
            one.first = said["label"] or ""
        case "shown":
            one.shown = True
        case "decision":
            one.judgement, one.label, one.note = said["judgement"], said["label"] or "", said["note"]
            one.signed = ""  # signed was what stood before
        case "signed":
            one.signed, one.signed_number = said["meaning"], event.number
        case "region":
            one.regions.append(event)
            label = {"agree": said["label"], "disagree": f"{NOT}{said['label']}", "unsure": IGNORE}[said["judgement"]]
            one.painted |= dict.fromkeys(cells_of(said["runs"]), label)
        case "painted":
            _paint(one.painted, said["label"], said["runs"])
        case "imported":
            for label, runs in said["painted"].items():
                _paint(one.painted, label, runs)


def _paint(painted: dict[Cell, str], label: str, runs: Iterable[Sequence[int]]) -> None:
    for cell in cells_of(runs):
        if label:
            painted[cell] = label
        else:
            painted.pop(cell, None)


def cells_of(runs: Iterable[Sequence[int]]) -> list[Cell]:
    return [(row, column + step) for row, column, length in runs for step in range(length)]


def runs_of(cells: Iterable[Cell]) -> list[list[int]]:
    """The fewest runs that cover the cells, row by row."""
    found: list[list[int]] = []
    for row, column in sorted(set(cells)):
        if found and found[-1][0] == row and found[-1][1] + found[-1][2] == column:
            found[-1][2] += 1
        else:
            found.append([row, column, 1])
    return found


@dataclass(frozen=True)
class Standing:
    """What all readers together say of a slide."""

    label: str | None  # None where nobody decided, or readers disagree; "" for unsure
    by: str  # who says so
    disagreement: bool
    settled: bool


def standing(events: Sequence[Event]) -> Standing:
    """The newest settlement; else what all who decided agree on."""
    undone = {event.said["of"] for event in events if event.kind == "undo"}
    settled = [event for event in events if event.kind == "settled" and event.number not in undone]
    decided = {name: one.label for name, one in opinions(events).items() if one.label is not None}
    differ = len(set(decided.values())) > 1
    if settled:
        return Standing(settled[-1].said["label"] or "", settled[-1].reader, differ, True)
    if not decided or differ:
        return Standing(None, "", differ, False)
    return Standing(next(iter(decided.values())), ", ".join(sorted(decided)), False, False)


def painted_by_all(events: Sequence[Event]) -> tuple[dict[Cell, str], int]:
    """Tiles with a class, and of how many readers say different things: these are left out."""
    found: dict[Cell, str] = {}
    differ: set[Cell] = set()
    for one in opinions(events).values():
        for cell, label in one.painted.items():
            if found.setdefault(cell, label) != label:
                differ.add(cell)
    return {cell: label for cell, label in found.items() if cell not in differ}, len(differ)
