"""What a reader may see of a slide, and may say: the one place that decides it. Nothing else is sent, and nothing else is kept."""

from __future__ import annotations

from dataclasses import dataclass

from pathovit.errors import SettingsError
from pathovit.outputs.records import A_MAP, SlideRecord
from pathovit.review.about import tiles_sha256
from pathovit.review.desk import Case
from pathovit.review.events import Given
from pathovit.review.opinion import Opinion
from pathovit.tables import spelling

PRESENT = ("drawn", "tiles", "last", "reader")  # what `require_seen` looks at; the record has it in other words
OF_TILES = ("painted", "region")
OF_THE_ANSWER = ("first_impression", "shown", "decision", "region", "signed", "settled")
UNDOABLE = ("decision", "region", "painted", "imported", "signed", "settled")


class NotNow(SettingsError):
    """What was said cannot be said now; its text says why."""


@dataclass(frozen=True)
class Sight:
    """Of one reader on one slide."""

    first_done: bool  # a first impression was given of what the present model says, or none is asked for
    answer: bool  # answer and map may be seen


def sight(case: Case, opinion: Opinion, blind: bool, alone: bool) -> Sight:
    """What may be seen: of a doubtful slide the cause comes first, and the rest when it is asked for.

    Nothing can lead where the model has no answer. A taught model has none, but its map may show what another reader painted: so, unless
    one reads `alone`, something of one's own comes first there, too.
    """
    answer = case.answer
    done = not blind or answer is None or case.model_sha256 in opinion.shown
    if answer is not None and answer.answer == A_MAP:
        done = done or alone or opinion.decided or opinion.first is not None or bool(opinion.painted)
    return Sight(done, done and (not case.doubtful or case.model_sha256 in opinion.anyway))


def require_seen(given: Given, record: SlideRecord, opinion: Opinion) -> None:
    """What is said is bound to what it is said of: the map, the tiles, and what was said before, as the page had them.

    Raises
    ------
    NotNow : these are others now
    """
    said, seen = given.said.event, given.seen
    if seen.reader is not None and seen.reader != opinion.reader:
        raise NotNow(f"{opinion.reader} reads in this browser now, and not {seen.reader}: nothing was kept. Load the page anew.")
    other_tiles = seen.tiles is not None and seen.tiles != tiles_sha256(record)
    other_map = seen.drawn is not None and seen.drawn != record.products.get("heatmap.ome.tiff", "")
    if (said in OF_TILES and other_tiles) or (said in OF_THE_ANSWER and (other_map or other_tiles)):
        raise NotNow("This slide was drawn anew meanwhile: nothing was kept. Look at it as it is now, and say it again.")
    if said == "signed" and seen.last is not None and opinion.events and seen.last < opinion.events[-1].number:
        raise NotNow("Something was said in another window meanwhile: look at it, and sign then.")


def checked(
    given: Given, case: Case, opinion: Opinion, seen: Sight, shape: tuple[int, int], may_settle: bool
) -> dict[str, object]:
    """What was said, as it is kept.

    Parameters
    ----------
    shape : rows and columns of the slide's lattice

    Raises
    ------
    NotNow : it cannot be said now
    """
    said = given.said
    match said.event:
        case "opened":
            return {"event": "opened", "blind": not seen.first_done or case.answer is None}
        case "first_impression" if seen.first_done:
            raise NotNow("The answer has been shown: a first impression comes before it.")
        case "shown":
            if not seen.first_done and opinion.first is None:
                raise NotNow("Say first what you see.")
        case "decision" if opinion.decided_before and not said.reason.strip():
            raise NotNow("This changes a decision: say why.")
        case "decision" | "signed" if not seen.first_done:
            raise NotNow("Say first what you see.")
        case "decision" if contradicts(said.judgement, said.label, case):
            raise NotNow(
                f"The model says {case.answer.answer if case.answer else 'nothing'}: to agree is to say the same, to disagree another class."
            )
        case "signed" if not opinion.decided:
            raise NotNow("Decide first, then sign.")
        case "signed" if opinion.signed:
            raise NotNow("It is signed already.")
        case "signed" if said.meaning != "reviewed" and opinion.judged != case.model_sha256:
            raise NotNow("You judged another model than this one: look at its answer, decide anew, and sign then.")
        case "settled" if not may_settle:
            raise NotNow("Only an adjudicator settles disagreements.")
        case "undo" if said.of not in {event.number for event in opinion.events if event.kind in UNDOABLE}:
            raise NotNow("There is nothing of yours to undo there.")
        case "painted" | "region":
            rows, columns = shape
            if any(row >= rows or column + length > columns for row, column, length in said.runs):
                raise NotNow("These tiles are not on the slide.")
    return said.model_dump(mode="json")


def contradicts(judgement: str, label: str | None, case: Case) -> bool:
    """Whether a class that is said is not what was said of the model's one: agreement is of the same class, disagreement of another."""
    word = case.answer.answer if case.answer else ""
    if label is None or case.answer is None or word not in case.answer.classes:
        return False
    return (judgement == "agree") != (spelling(label) == spelling(word)) if judgement in ("agree", "disagree") else False
