"""Events: what a reader does on the page, and what it must look like. Everything comes from a browser, and is checked here.

A region of the tile grid is a list of runs: (row, column, length), cells of the heatmap's lattice that lie side by side.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

MOST_RUNS, MOST_CELLS = 20_000, 2_000_000  # of one event
Name = Annotated[str, Field(min_length=1, max_length=80)]  # of a class
Note = Annotated[str, Field(max_length=4000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Run: TypeAlias = tuple[Count, Count, Annotated[int, Field(ge=1, le=1_000_000)]]
Judgement = Literal["agree", "disagree", "unsure"]


class Strict(BaseModel):
    """Nothing beside the fields is taken, and nothing is changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cells(Strict):
    runs: tuple[Run, ...] = Field(max_length=MOST_RUNS)

    @field_validator("runs")
    @classmethod
    def _few_enough(cls, runs: tuple[Run, ...]) -> tuple[Run, ...]:
        if sum(length for _, _, length in runs) > MOST_CELLS:
            raise ValueError(f"more than {MOST_CELLS:,} tiles at once")
        return runs


class Opened(Strict):
    """The slide was opened; `blind` if the answer was not shown with it."""

    event: Literal["opened"]
    blind: bool


class FirstImpression(Strict):
    """What the reader thinks before the answer is shown; no class for "unsure"."""

    event: Literal["first_impression"]
    label: Name | None


class Shown(Strict):
    """The answer and the map were shown; `anyway` if the model was not made for the slide, or unsure of it."""

    event: Literal["shown"]
    anyway: bool = False


class Decision(Strict):
    """On the slide: whether the answer is right, and what the slide is; no class for "unsure"."""

    event: Literal["decision"]
    judgement: Judgement | Literal["none"]  # where the model has said nothing to agree with
    label: Name | None
    note: Note = ""
    reason: Note = ""  # for changing an earlier decision


class RegionDecision(Cells):
    """On a region that the map shows."""

    event: Literal["region"]
    judgement: Judgement
    label: Name  # the class that the map shows there
    note: Note = ""


class Painted(Cells):
    """Tiles that were given a class; "not CLASS", "ignore", or nothing to take it back."""

    event: Literal["painted"]
    label: Annotated[str, Field(max_length=84)]
    asked: bool = False  # they had been asked for


class Remark(Strict):
    event: Literal["note"]
    note: Annotated[str, Field(min_length=1, max_length=4000)]


class Undo(Strict):
    """An earlier event of the same reader on the same slide does not count any more."""

    event: Literal["undo"]
    of: Count


class Signed(Strict):
    """The reader is done with the slide, and says in what sense."""

    event: Literal["signed"]
    meaning: Literal["reviewed", "agreed", "corrected"]


class Settled(Strict):
    """Readers disagreed on the slide; somebody who may has settled it."""

    event: Literal["settled"]
    label: Name | None
    note: Note = ""


Said: TypeAlias = Annotated[
    Opened | FirstImpression | Shown | Decision | RegionDecision | Painted | Remark | Undo | Signed | Settled,
    Field(discriminator="event"),
]


class Seen(Strict):
    """What the reader had before their eyes."""

    answer: bool  # whether answer and map were to be seen
    layer: Annotated[str, Field(max_length=100)] = ""
    threshold: Annotated[float, Field(ge=0, le=100)] | None = None  # value of the layer
    opacity: Annotated[float, Field(ge=0, le=1)] | None = None
    zoom: Annotated[float, Field(gt=0, le=1e4)] | None = None  # screen pixels per level-0 pixel
    drawn: Annotated[str, Field(max_length=200)] | None = None  # digest of the map; None: not said
    tiles: Annotated[str, Field(max_length=64)] | None = None  # digest of where tiles lie
    last: Count | None = None  # the newest event of the reader's that the page knew
    reader: Annotated[str, Field(max_length=200)] | None = None  # whom the page named; None: not said


class Given(Strict):
    """What a browser sends."""

    said: Said
    seen: Seen
