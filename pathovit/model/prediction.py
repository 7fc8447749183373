"""SlidePrediction: what a model says of a slide and of its tiles. Needs no torch: it is drawn by processes that have none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.model.targets import Target
from pathovit.outputs.records import UNSURE, Answer
from pathovit.text import as_card

SAID_OUTSIDE = "outside what this model was made for"


@dataclass(frozen=True)
class SlidePrediction:
    """The answer for a slide. Tile rows are in grid order; rows that were not read hold NaN.

    All logits, evidence and contributions are calibrated: divided by the model's temperature, the bias shifted.

    Examples
    --------
    >>> prediction = pathovit.load_model("reference").predict(pathovit.load_features(out, "one"))
    >>> prediction.answer, prediction.tile_scores.shape
    ('tumour', (95, 1))
    """

    slide_id: str
    target: Target
    answer: str  # a class, several, a number; or "unsure", "outside" (not what the model was made for), "map" (of a taught model)
    possible: tuple[tuple[str, ...], ...]  # of each question, the options that cannot be ruled out
    probabilities: NDArray[np.float32]  # (classes,); empty for a target without classes
    value: float | None  # a measurement or a risk; None for a target with classes
    interval: tuple[float, float] | None  # of a measurement
    tile_scores: NDArray[
        np.float32
    ]  # (N, C) in [0, 1]; 0.5 is the evidence that patients without the class hardly ever reach (for numbers: average)
    attention: NDArray[np.float32]  # (N,), sums to 1 over the tiles that were read
    contributions: NDArray[np.float32]  # (N, C), attention x evidence; their sum plus the bias is the logit
    logits: NDArray[np.float32]  # (C,)
    bias: NDArray[np.float32]  # (C,)
    novelty: float  # above 1: stranger than 95 % of the cohort's own slides
    tile_novelty: NDArray[np.float32]  # (N,); above 1: stranger than 95 % of the cohort's own tiles
    domain: str = ""  # what the model was made for, in words
    is_taught: bool = False  # on painted tiles: it says what tiles are, and nothing of the slide

    @property
    def classes(self) -> tuple[str, ...]:
        return self.target.classes

    @property
    def score_names(self) -> tuple[str, ...]:
        """Classes that `tile_scores` has columns for."""
        return self.target.score_names

    @property
    def unsure(self) -> bool:
        return self.answer == UNSURE

    @property
    def strange(self) -> bool:
        return self.novelty > 1

    @property
    def untaught(self) -> NDArray[np.bool_]:
        """(N,) tiles of which a taught model cannot know what they are."""
        return np.asarray(self.is_taught & (self.tile_novelty > 1))

    def shares(self) -> dict[str, float]:
        """Of the tiles that were read, how many are taken for each class; "untaught" are those that are for none."""
        read = np.isfinite(self.tile_scores[:, 0])
        scores = self.tile_scores[read & ~self.untaught]
        taken = scores.argmax(1) if self.target.outputs > 1 else (scores[:, 0] >= 0.5).astype(np.int64)
        counts = np.bincount(taken, minlength=len(self.classes)) / max(1, read.sum())
        return {"untaught": float(self.untaught.sum() / max(1, read.sum()))} | dict(
            zip(self.classes, map(float, counts), strict=True)
        )

    @property
    def headline(self) -> str:
        """The answer in a few words."""
        if self.is_taught:
            untaught, *shares = self.shares().items()
            told = [f"{name}: {share:.1%}" for name, share in reversed(shares)][: max(1, len(shares) - 1)]
            return f"{', '.join(told)} of the tissue" + (f"; {untaught[1]:.1%} unlike what was taught" if untaught[1] else "")
        if self.strange:
            return SAID_OUTSIDE
        return self.target.kind.headline(self.answer, self.probabilities, self.value, self.interval)

    @property
    def remark(self) -> str:
        """What must be said beside the answer, and what to do; empty if nothing."""
        if not self.strange:
            return ""
        known = f"the model was made for {self.domain}, and " if self.domain else ""
        return f"{known}this slide is unlike those it knows (novelty {self.novelty:.2f}): paint some of its tissue, and use `pathovit teach`"

    def columns(self) -> dict[str, float | None]:
        """The numbers of the answer, as columns of predictions.csv."""
        if self.is_taught:
            return {f"share_{name}": share for name, share in self.shares().items()}
        if self.strange:
            return dict.fromkeys(self.target.kind.answer_columns)
        values = [float(p) for p in self.probabilities] if self.value is None else [self.value]
        found: dict[str, float | None] = dict(zip(self.target.kind.answer_columns, values, strict=True))
        if self.interval is not None and np.isfinite(self.interval).all():
            found |= {f"{end}_{self.target.columns[0]}": value for end, value in zip(("low", "high"), self.interval, strict=True)}
        return found

    @property
    def scale_note(self) -> str:
        """What a tile score of 0.5 means."""
        if self.is_taught:
            return "0.5: as likely as not"
        return "0.5: hardly reached without it" if self.target.is_classification else "0.5: average of the cohort"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = {"slide": self.slide_id, "answer": self.headline}
        rows |= {name: "" if value is None else f"{value:.3f}" for name, value in self.columns().items()}
        rows |= {"novelty": f"{self.novelty:.2f}"} | ({"remark": self.remark} if self.remark else {})
        return as_card(rows | {"": RESEARCH_USE})

    def to_answer(self, model: str) -> Answer:
        """What slide.json keeps of it."""
        low, high = self.interval or (None, None)
        return Answer(
            model=model,
            headline=self.headline,
            answer=self.answer,
            columns=self.columns(),
            possible=self.possible,
            classes=self.classes,
            probabilities=() if self.is_taught or self.strange else tuple(float(p) for p in self.probabilities),
            interval=None if self.interval is None else (_finite(low), _finite(high)),
            novelty=_finite(round(self.novelty, 4)),
            strange=self.strange,
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Answered:
    """A prediction, and which model made it."""

    prediction: SlidePrediction
    model: str  # its name
    model_sha256: str
    remarks: tuple[str, ...]  # what must be said of an answer for these features
