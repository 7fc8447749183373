"""What the records of an output folder hold. JSON is read and written here, and nowhere else.

slide.json        SlideRecord       written last: the done marker of a slide
features.json     FeaturesRecord    vouches for features.zarr, whatever becomes of the rest
.outcomes/        Outcome           what happened to a file that has no SlideRecord of its own, until it has one

Records of the folder are read with suspicion: it may come from another version, or from somebody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.outputs.recipe import EmbedRecipe, FinishRecipe
from pathovit.outputs.sealed import SEALED
from pathovit.slides.description import SlideDescription, Survey

FORMAT = 1  # of every record; those of before had none. As files they are sealed, and have another (sealed.py)
DONE = "slide.json"
UNSURE, OUTSIDE, A_MAP = "unsure", "outside", "map"  # answers that name no class
Json = Mapping[str, Any]


class RecordError(SettingsError):
    """A record that is not to be believed; its text says why, and what to do."""


class SlideVerdict(StrEnum):
    """How a slide came out."""

    OK = "ok"
    DEGRADED = "degraded"  # more of its tissue is unreadable than the settings allow
    FAILED = "failed"  # has no SlideRecord


@dataclass(frozen=True)
class TileCounts:
    """How many tiles of a slide have which verdict."""

    ok: int
    missing: int
    unreadable: int
    rejected: int
    pending: int

    @property
    def unread(self) -> int:
        return self.missing + self.unreadable

    @property
    def all(self) -> int:
        return self.ok + self.missing + self.unreadable + self.rejected + self.pending


@dataclass(frozen=True)
class TopTile:
    """A tile with one of the highest scores, and its picture."""

    file: str  # within the slide's folder
    score: float
    attention: float
    x: int  # level-0 pixels
    y: int
    name: str = ""  # the class that the score is of


@dataclass(frozen=True)
class ViewFile:
    """A picture of a scanned part of the slide, and the level-0 pixels that it covers: left, right, bottom, top."""

    file: str  # within the slide's folder
    extent: tuple[float, float, float, float]


@dataclass(frozen=True)
class OrderFigures:
    """Mean probabilities while tiles are taken away, or put back, in three orders."""

    evidence: float
    attention: float
    random: float


@dataclass(frozen=True)
class HeatmapCheck:
    """Whether a slide's heatmap shows what its answer rests on; deletion and insertion need a class that was called."""

    sum_error: float | None
    called: str | None = None
    deletion: OrderFigures | None = None
    insertion: OrderFigures | None = None

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        return {
            "sum_error": found["sum_error"],
            "class": found["called"],
            **{key: found[key] for key in ("deletion", "insertion")},
        }

    @classmethod
    def from_json(cls, found: Json) -> HeatmapCheck:
        figures = {name: OrderFigures(**found[name]) if found[name] else None for name in ("deletion", "insertion")}
        return cls(found["sum_error"], found["class"], **figures)


@dataclass(frozen=True)
class Answer:
    """What a slide model said of a slide."""

    model: str
    headline: str  # the answer in a few words
    answer: str  # a class, several, a number, or one of those that name no class
    columns: Mapping[str, float | None]  # of predictions.csv; None where the model was not made for the slide
    possible: tuple[tuple[str, ...], ...]  # of each question, the options that cannot be ruled out
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    interval: tuple[float | None, float | None] | None  # of a measurement
    novelty: float | None
    strange: bool

    @property
    def unsure(self) -> bool:
        return self.answer == UNSURE

    @property
    def risk(self) -> float:
        """The last number of the answer: for a binary target the probability of the positive class. Less than any, where there is none."""
        last = [None, *self.columns.values()][-1]
        return float("-inf") if last is None else last

    @classmethod
    def from_json(cls, found: Json) -> Answer:
        return cls(
            found["model"], found["headline"], found["answer"], dict(found["columns"]), tuple(map(tuple, found["possible"])),
            tuple(found["classes"]), tuple(found["probabilities"]), found["interval"] and tuple(found["interval"]), found["novelty"],
            found["strange"],
        )  # fmt: skip


@dataclass(frozen=True)
class SlideRecord:
    """slide.json: what was made of a slide, from what, with digests. `finish_recipe` is None until all is drawn.

    Examples
    --------
    >>> record = pathovit.OutFolder(out).slides()[0].record()
    >>> record.verdict.value, record.survey.tiles
    ('ok', 95)
    """

    slide_id: str
    sha256: str
    description: SlideDescription
    survey: Survey
    patient: str | None
    label: str | None
    verdict: SlideVerdict
    reason: str
    trial: str  # what to say of features of a part of the tiles; empty for whole ones
    tiles: TileCounts
    prediction: Answer | None
    heatmap_check: HeatmapCheck | None
    seconds: float  # that embedding took
    recipe: EmbedRecipe
    finish_recipe: FinishRecipe | None
    versions: Mapping[str, str]
    top_tiles: tuple[TopTile, ...] = ()
    views: tuple[ViewFile, ...] = ()  # records of before 2026-11-25 have none
    products: Mapping[str, str] = dataclasses.field(default_factory=dict)  # file within the slide's folder -> SHA-256
    code: str = ""  # of the reason for a verdict that is not ok; records of before 2026-11-28 have none

    @property
    def has_features(self) -> bool:
        """Not after `pathovit clean --features`."""
        return any(name.startswith("features.zarr/") for name in self.products)

    @property
    def shown(self) -> str:
        """What it is called in tables and pictures."""
        return self.description.file or self.slide_id

    def to_json(self) -> dict[str, Any]:
        slide = {
            "slide_id": self.slide_id,
            "sha256": self.sha256,
            **{key: value for key, value in dataclasses.asdict(self.description).items() if key != "file"},
            **dataclasses.asdict(self.survey),
            "file": self.description.file,
            "patient": self.patient,
            "label": self.label,
        }
        return {
            "research_use": RESEARCH_USE,
            "format": FORMAT,
            "slide": slide,
            "verdict": self.verdict.value,
            "code": self.code,
            "reason": self.reason,
            "trial": self.trial,
            "tiles": dataclasses.asdict(self.tiles),
            "prediction": self.prediction and dataclasses.asdict(self.prediction),
            "heatmap_check": self.heatmap_check and self.heatmap_check.to_json(),
            "seconds": self.seconds,
            "recipe": self.recipe.to_json(),
            "finish_recipe": self.finish_recipe and self.finish_recipe.to_json(),
            "versions": dict(self.versions),
            "top_tiles": [dataclasses.asdict(tile) for tile in self.top_tiles],
            "views": [dataclasses.asdict(view) for view in self.views],
            "products": dict(self.products),
        }

    @classmethod
    def from_json(cls, found: Any, slide_id: str) -> SlideRecord:
        """Raises RecordError for a record of another version, of another slide, or that leads out of its folder."""
        with reading(found, DONE):
            slide = found["slide"]
            if slide["slide_id"] != slide_id or not is_component(slide_id):
                raise RecordError(f"its {DONE} leads out of its own folder, and is not read")
            check, answer, finish = found["heatmap_check"], found["prediction"], found["finish_recipe"]
            record = cls(
                slide_id=slide_id,
                sha256=slide["sha256"],
                description=SlideDescription(
                    slide["file"],
                    slide["vendor"],
                    _pair(slide["size"]),
                    _pair(slide["mpp"]),
                    slide["mpp_source"],
                    slide["reader"],
                ),
                survey=Survey(
                    slide["tissue_mm2"], slide["tiles"], slide["upsampled"], dict(slide["left_out_mm2"]), tuple(slide["remarks"])
                ),
                patient=slide["patient"],
                label=slide["label"],
                verdict=SlideVerdict(found["verdict"]),
                reason=found["reason"],
                trial=found["trial"],
                tiles=TileCounts(**found["tiles"]),
                prediction=answer and Answer.from_json(answer),
                heatmap_check=check and HeatmapCheck.from_json(check),
                seconds=found["seconds"],
                recipe=EmbedRecipe(dict(found["recipe"])),
                finish_recipe=finish and FinishRecipe(dict(finish)),
                versions=dict(found["versions"]),
                top_tiles=tuple(TopTile(**tile) for tile in found.get("top_tiles", ())),
                views=tuple(ViewFile(view["file"], _four(view["extent"])) for view in found.get("views", ())),
                products=dict(found["products"]),
                code=str(found.get("code", "")),
            )
            pictures = [*(tile.file for tile in record.top_tiles), *(view.file for view in record.views)]
            if not all(is_inside(name) for name in [*record.products, *pictures]):
                raise RecordError(f"its {DONE} leads out of its own folder, and is not read")
        return record


@dataclass(frozen=True)
class FeaturesRecord:
    """features.json: the digests of all files of features.zarr, and how long it took to make them."""

    files: Mapping[str, str]  # within features.zarr -> SHA-256
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"research_use": RESEARCH_USE, "format": FORMAT, "seconds": round(self.seconds, 2), "files": dict(self.files)}

    @classmethod
    def from_json(cls, found: Any) -> FeaturesRecord:
        with reading(found, "features.json"):
            return cls({str(name): str(digest) for name, digest in found["files"].items()}, float(found["seconds"]))


@dataclass(frozen=True)
class Outcome:
    """What happened to a slide file that has no record of its own: it failed, or is the same slide as another one."""

    file: str  # its name, without the folder, or what stands for it where names are not kept
    reason: str
    slide_id: str = ""  # as far as it is known
    twin: bool = False
    patient: str | None = None
    when: str = ""  # day
    code: str = ""  # see reasons.py; outcomes of before 2026-11-28 have none

    def to_json(self) -> dict[str, Any]:
        return {"research_use": RESEARCH_USE, "format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, found: Any) -> Outcome:
        with reading(found, "outcome"):
            return cls(
                **{field.name: found[field.name] for field in dataclasses.fields(cls) if field.name != "code" or "code" in found}
            )


class reading:  # used as a statement
    """What a record of another form raises becomes a RecordError."""

    def __init__(self, found: Any, name: str) -> None:
        self.name = name
        if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > SEALED:
            raise RecordError(f"its {name} was written by a later version, and is not read: update pathovit")

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError) and not isinstance(error, RecordError):
            raise RecordError(f"its {self.name} was written by another version, and is not read: run it again") from error


def _pair(values: Any) -> tuple[Any, Any]:
    x, y = values
    return x, y


def _four(values: Any) -> tuple[float, float, float, float]:
    a, b, c, d = map(float, values)
    return a, b, c, d


def is_component(name: str) -> bool:
    """Whether a name is one component of a path, and so stays in its folder."""
    return PurePosixPath(name).name == name and name not in ("", ".", "..") and "\\" not in name and "\0" not in name


def is_inside(name: str) -> bool:
    """Whether a relative path cannot leave the folder it is relative to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)
