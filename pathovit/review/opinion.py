"""Opinions: what the events of one reader on one slide amount to, and what several readers amount to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pathovit.review.record import Event
from pathovit.tables import spelling

IGNORE, NOT = "ignore", "not "
Cell = tuple[int, int]  # row, column


@dataclass
class Opinion:
    """One reader on one slide, as it stands."""

    reader: str
    opened: bool = False
    first: str | None = None  # class of the first impression; "" for unsure; None for none yet
    shown: set[str] = field(default_factory=set)  # digests of the models whose answer was shown
    anyway: set[str] = field(default_factory=set)  # of those that were in doubt, and shown all the same
    judgement: str = ""
    label: str | None = None  # what the slide is; "" for unsure; None for not decided
    note: str = ""
    judged: str = ""  # digest of the model that was judged
    signed: str = ""
    signed_at: int = 0  # number of that event
    painted: dict[Cell, str] = field(default_factory=dict)
    imported: dict[str, dict[Cell, str]] = field(default_factory=dict)  # by file, as it was read
    elsewhere: int = 0  # tiles of another lattice, which count for nothing
    regions: list[Event] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def decided(self) -> bool:
        return self.label is not None

    @property
    def decided_before(self) -> bool:
        """Whether there ever was a decision: one that is taken back was one."""
        return any(event.kind == "decision" for event in self.events)


def opinions(events: Sequence[Event], tiles_sha256: str = "") -> dict[str, Opinion]:
    """By reader. What was undone does not count; an event of another kind than these says nothing here.

    Parameters
    ----------
    tiles_sha256 : of the lattice as it is now; paint on another one is left out, and counted
    """
    undone = {(event.reader, event.said["of"]) for event in events if event.kind == "undo"}
    found: dict[str, Opinion] = {}
    for event in events:
        one = found.setdefault(event.reader, Opinion(event.reader))
        one.events.append(event)
        if event.kind == "undo" and event.said["of"] < one.signed_at:
            one.signed = ""  # what was signed is another thing now
        if (event.reader, event.number) not in undone:
            _add(one, event, tiles_sha256)
    for one in found.values():
        if not one.decided:
            one.signed = ""  # what was signed is taken back
    return found


def _add(one: Opinion, event: Event, tiles_sha256: str) -> None:
    said, model = event.said, str(event.about.get("model_sha256") or "")
    if event.kind in ("region", "painted", "imported"):
        one.signed = ""  # signed was what stood before
        if tiles_sha256 and event.about.get("tiles_sha256", tiles_sha256) != tiles_sha256:
            one.elsewhere += sum(length for runs in _all_runs(event) for _, _, length in runs)
            return
    match event.kind:
        case "opened":
            one.opened = True
            if not said["blind"]:
                one.shown.add(model)
        case "first_impression":
            one.first = said["label"] or ""
        case "shown":
            one.shown.add(model)
            if said["anyway"]:
                one.anyway.add(model)
        case "decision":
            one.judgement, one.label, one.note, one.judged = said["judgement"], said["label"] or "", said["note"], model
            one.signed = ""
        case "signed":
            one.signed, one.signed_at = said["meaning"], event.number
        case "region":
            one.regions.append(event)
            label = {"agree": said["label"], "disagree": f"{NOT}{said['label']}", "unsure": IGNORE}[said["judgement"]]
            one.painted |= dict.fromkeys(cells_of(said["runs"]), label)
        case "painted":
            _paint(one.painted, said["label"], said["runs"])
        case "imported":
            _import(one, said["files"], said["painted"])


def _all_runs(event: Event) -> list[Sequence[Sequence[int]]]:
    return [event.said["runs"]] if "runs" in event.said else list(event.said["painted"].values())


def _import(one: Opinion, files: Sequence[str], painted: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """A file that was read before is taken back first, where nothing was painted over it since."""
    name = "\0".join(files)
    for cell, label in one.imported.pop(name, {}).items():
        if one.painted.get(cell) == label:
            del one.painted[cell]
    read = {cell: label for label, runs in painted.items() for cell in cells_of(runs)}
    one.imported[name] = read
    one.painted |= read


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
    differ = len({spelling(label) for label in decided.values()}) > 1
    if settled:
        return Standing(settled[-1].said["label"] or "", settled[-1].reader, differ, True)
    if not decided or differ:
        return Standing(None, "", differ, False)
    return Standing(next(iter(decided.values())), ", ".join(sorted(decided)), False, False)


def painted_by_all(events: Sequence[Event], tiles_sha256: str = "") -> tuple[dict[Cell, str], int]:
    """Tiles with a class, and of how many readers say different things: these are left out."""
    found: dict[Cell, str] = {}
    differ: set[Cell] = set()
    for one in opinions(events, tiles_sha256).values():
        for cell, label in one.painted.items():
            if spelling(found.setdefault(cell, label)) != spelling(label):
                differ.add(cell)
    return {cell: label for cell, label in found.items() if cell not in differ}, len(differ)
