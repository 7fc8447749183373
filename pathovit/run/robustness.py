"""How far answers and maps move when the same slides are stained, scanned and cut into tiles otherwise. No slide is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError, SlideError, TileReadError
from pathovit.files import to_json, write_atomically
from pathovit.machine import threads_for
from pathovit.model.card import BUNDLED, ModelCard, read_card
from pathovit.model.card_text import describe_model, describe_taught
from pathovit.outputs.features import FeatureAttributes, SlideFeatures, TileVerdict
from pathovit.outputs.names import Names, without_names
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import embed_recipe, feature_dtype, tile_spec
from pathovit.outputs.records import A_MAP, OUTSIDE, UNSURE
from pathovit.run.jobs import told
from pathovit.run.plan import SlideJob
from pathovit.settings import Settings
from pathovit.slides.alter import FAMILIES, NAMES, Alteration, alterations
from pathovit.slides.readers import RGB
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, lay_grid, read_tile
from pathovit.slides.tissue import find_tissue
from pathovit.study.figures import robustness_picture
from pathovit.text import counted, plain

if TYPE_CHECKING:
    from pathovit.encoders.encoder import Encoder
    from pathovit.model.prediction import SlidePrediction
    from pathovit.model.slide_model import SlideModel

BATCH = 64
NO_ANSWER = (UNSURE, OUTSIDE, A_MAP)  # a taught model has maps alone
AS_IT_IS = Alteration("as it is", "none")
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Moved:
    """One slide, altered, against the same slide as it is."""

    slide: str
    alteration: str
    family: str
    answer: str
    answer_as_it_is: str
    flipped: bool  # one answer became another one
    lost: bool  # there was an answer, and there is none
    change: float  # of the probability of the class called at first; for a taught model, of the share of tissue taken for it
    map_correlation: float | None  # Spearman, of tile scores at the same places; None where all are the same
    map_crossed: float  # share of tiles that crossed score 0.5
    is_number: bool = False  # a measurement or a risk, which moves and does not flip


@dataclass(frozen=True)
class Robustness:
    """robustness.json"""

    model: str
    model_sha256: str
    slides: int
    failed: Mapping[str, str]
    unread: Mapping[str, int]  # tiles that could not be read, by slide and, where it is read anew, way
    moved: tuple[Moved, ...]

    def of(self, family: str) -> dict[str, float | int | None]:
        """Of all slides under all alterations of a family."""
        return summary([one for one in self.moved if one.family == family])

    def by_alteration(self) -> dict[str, list[tuple[float, float]]]:
        """Of each alteration, for every slide how far the answer's number moved, and the share of tiles that crossed 0.5."""
        found: dict[str, list[tuple[float, float]]] = {}
        for one in self.moved:
            found.setdefault(one.alteration, []).append((one.change, one.map_crossed))
        return found

    def on_card(self) -> dict[str, object]:
        """What a model's card keeps."""
        return {"slides": self.slides, "families": {family: self.of(family) for family in FAMILIES}}

    def to_json(self) -> dict[str, object]:
        return {
            "research_use": RESEARCH_USE,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "slides": self.slides,
            "failed": dict(self.failed),
            "unreadable_tiles": dict(self.unread),
            "families": {family: self.of(family) for family in FAMILIES},
            "moved": [asdict(one) for one in self.moved],
            "versions": versions(),
        }


def summary(moved: Sequence[Moved]) -> dict[str, float | int | None]:
    """Shares of answers that flipped and were lost, of those that there were (None without any); means of how far maps moved."""
    answered = [one for one in moved if one.answer_as_it_is not in NO_ANSWER]
    return {
        "answers": len(answered),
        "flipped": _mean([one.flipped for one in answered if not one.is_number]),
        "lost": _mean([one.lost for one in answered]),
        "change": _mean([abs(one.change) for one in moved]),
        "map_correlation": _mean([one.map_correlation for one in moved if one.map_correlation is not None]),
        "map_crossed": _mean([one.map_crossed for one in moved]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def measure_robustness(
    jobs: Sequence[SlideJob], encoder: Encoder, model: SlideModel, settings: Settings, out: Path, max_tiles: int, on_step: OnStep
) -> Robustness:
    """Every slide as it is and altered; writes robustness.json and robustness.png, without names unless settings keep them.

    Parameters
    ----------
    max_tiles : of larger slides only the tiles next to their middle are looked at

    Raises
    ------
    SettingsError : not one slide could be looked at
    """
    names = None if settings.run.keep_names else Names.read(out)
    jobs = _told_apart(told(jobs, names))
    moved: list[Moved] = []
    failed: dict[str, str] = {}
    said: list[str] = []
    unread: dict[str, int] = {}
    looked_at = 0
    for number, job in enumerate(jobs, start=1):
        try:
            step = partial(on_step, f"slide {number} of {len(jobs)}, ways to look")
            first = _look(job, AS_IT_IS, encoder, settings, max_tiles)
            found, not_looked_at, unreadable = _of_slide(job, first, encoder, model, settings, max_tiles, step)
        except SlideError as error:
            said.append(str(error))
            failed[_called(job)] = without_names(error.reason, job.path, out) if names else error.reason
            continue
        moved += found
        told_of = {way: without_names(reason, job.path, out) if names else reason for way, reason in not_looked_at.items()}
        failed |= {f"{_called(job)}, {way}": reason for way, reason in told_of.items()}
        unread |= {f"{_called(job)}, {way}": tiles for way, tiles in unreadable.items() if tiles}
        looked_at += 1
    if not moved:
        raise SettingsError(f"Not one slide could be looked at: {'; '.join(said)}")
    robustness = Robustness(model.name, model.sha256, looked_at, failed, unread, tuple(moved))
    write_atomically(out / "robustness.json", to_json(robustness.to_json()))
    title = f"{model.name}, {counted(looked_at, 'slide')}"
    if names:
        names.write(out)
    robustness_picture(out / "robustness.png", NAMES, robustness.by_alteration(), title)
    return robustness


def _told_apart(jobs: Sequence[SlideJob]) -> list[SlideJob]:
    """Slides whose files have the same name in several folders are called by their paths."""
    count = Counter(job.called for job in jobs)
    return [replace(job, file=str(job.path)) if count[job.called] > 1 else job for job in jobs]


def _called(job: SlideJob) -> str:
    """A slide, as results may tell of it."""
    return plain(job.called)


def _of_slide(
    job: SlideJob, first: Look, encoder: Encoder, model: SlideModel, settings: Settings, max_tiles: int,
    on_step: Callable[[int, int], None],
) -> tuple[list[Moved], dict[str, str], dict[str, int]]:  # fmt: skip
    """How far a slide moved; by the name of the way, why it could not be looked at, and tiles that could not be read."""
    base = _predict(model, first, settings)
    found, failed, unreadable = [], {}, {AS_IT_IS.name: first.unreadable}
    ways = alterations(first.tiles)
    for done, way in enumerate(ways):
        on_step(done, len(ways))
        if way.change:
            altered = replace(first, features=_embed(encoder, way.change(first.tiles), settings))
        else:
            try:
                altered = _look(job, way, encoder, settings, max_tiles)
            except SlideError as error:
                failed[way.name] = error.reason
                continue
            unreadable[way.name] = altered.unreadable
        found.append(_compare(_called(job), way, first, base, altered, _predict(model, altered, settings)))
    return found, failed, unreadable


@dataclass(frozen=True)
class Look:
    """A slide in one way of looking at it."""

    tiles: RGB  # (N, side, side, 3)
    features: Floats  # (N, D)
    grid: TileGrid
    attributes: FeatureAttributes
    unreadable: int  # tiles that are left out

    def stored(self) -> SlideFeatures:
        verdict = np.full(len(self.grid), TileVerdict.OK, np.uint8)
        return SlideFeatures("slide", self.grid, self.features, verdict, self.attributes)

    @property
    def centres(self) -> NDArray[np.float64]:
        """(N, 2) in level-0 pixels."""
        return np.asarray(self.grid.xy + np.asarray(self.grid.tile_l0) / 2)


def _look(job: SlideJob, way: Alteration, encoder: Encoder, settings: Settings, max_tiles: int) -> Look:
    with _open(job, way, settings) as slide:
        spec = tile_spec(settings, encoder.record)
        if way.mpp_factor > 1:  # a slide that is just fine enough is no fault when it is said to be coarser
            spec = replace(spec, max_upsampling=spec.max_upsampling * way.mpp_factor)
        grid = _compact(
            lay_grid(slide, find_tissue(slide, settings.tissue), spec, None, encoder.record.scaled_decoding), max_tiles
        )
        if way.shift:
            grid = _shifted(slide, grid, way.shift)
        tiles, grid, unreadable = _read(slide, grid)
        recipe = embed_recipe("", slide.mpp, slide.reader, settings, encoder.record, encoder.recipe())
        attributes = FeatureAttributes.of_slide(slide, encoder.device.type, recipe, (1.0, 1.0))
    return Look(tiles, _embed(encoder, tiles, settings), grid, attributes, unreadable)


def _open(job: SlideJob, way: Alteration, settings: Settings) -> Slide:
    slide = open_slide(job.path, job.mpp, job.mpp_source, None, settings.embed.reader)
    if way.mpp_factor == 1:
        return slide
    with slide:
        x, y = slide.mpp
    said = (x * way.mpp_factor, y * way.mpp_factor)
    return open_slide(job.path, said, job.mpp_source, None, settings.embed.reader)


def _compact(grid: TileGrid, most: int) -> TileGrid:
    """The tiles nearest to the middle of the tissue, in grid order, so that they have their neighbours."""
    if len(grid) <= most:
        return grid
    place = grid.lattice()
    nearest = np.argsort(np.linalg.norm(place - np.median(place, axis=0), axis=1), kind="stable")[:most]
    return grid.kept(np.sort(nearest))


def _shifted(slide: Slide, grid: TileGrid, share: float) -> TileGrid:
    by = np.rint(np.asarray(grid.tile_l0) * share).astype(np.int64)
    xy = grid.xy + by
    corner = np.asarray((slide.bounds.x + slide.bounds.width, slide.bounds.y + slide.bounds.height))
    inside = (xy + np.asarray(grid.tile_l0) <= corner).all(1)
    origin = (grid.origin[0] + int(by[0]), grid.origin[1] + int(by[1]))
    return replace(grid, xy=xy, origin=origin).kept(np.flatnonzero(inside))


def _read(slide: Slide, grid: TileGrid) -> tuple[RGB, TileGrid, int]:
    """All tiles that the scanner filled and that can be read, the grid of these, and how many cannot be read."""
    tiles, rows, unreadable = [], [], 0
    for index in range(len(grid)):
        try:
            tile = read_tile(slide, grid, index)
        except TileReadError:
            unreadable += 1
            continue
        if tile is not None:
            tiles.append(tile)
            rows.append(index)
    if not tiles:
        raise TileReadError(slide.path, "not one of its tiles could be read.")
    return np.stack(tiles), grid.kept(np.asarray(rows)), unreadable


def _embed(encoder: Encoder, tiles: RGB, settings: Settings) -> Floats:
    """Features, rounded as they would be stored."""
    parts = [encoder.embed(np.ascontiguousarray(tiles[first : first + BATCH])) for first in range(0, len(tiles), BATCH)]
    return np.concatenate(parts).astype(feature_dtype(settings, encoder.record)).astype(np.float32)


def _predict(model: SlideModel, look: Look, settings: Settings) -> SlidePrediction:
    with threads_for(len(look.features)):
        return model.predict(look.stored(), settings.answer.error_rate)


def _compare(name: str, way: Alteration, first: Look, base: SlidePrediction, altered: Look, found: SlidePrediction) -> Moved:
    from scipy.spatial import cKDTree
    from scipy.stats import spearmanr

    column = 0 if base.target.outputs == 1 else int(np.nanmean(base.tile_scores, 0).argmax())
    reach = 0.75 * min(first.grid.stride_l0)
    # Where tiles lie elsewhere, each is compared with the one nearest to it; level-0 pixels are the same for all ways.
    away, nearest = cKDTree(altered.centres).query(first.centres, distance_upper_bound=reach)
    both = np.isfinite(away)
    before, after = base.tile_scores[both, column], found.tile_scores[nearest[both], column]
    is_number = not base.target.is_classification
    constant = len(before) < 3 or np.ptp(before) == 0 or np.ptp(after) == 0
    return Moved(
        slide=name,
        alteration=way.name,
        family=way.family,
        answer=found.answer,
        answer_as_it_is=base.answer,
        is_number=is_number,
        flipped=not is_number and base.answer not in NO_ANSWER and found.answer not in NO_ANSWER and found.answer != base.answer,
        lost=base.answer not in NO_ANSWER and found.answer in NO_ANSWER,
        change=round(_number(found, base) - _number(base, base), 4),
        map_correlation=None if constant else round(float(spearmanr(before, after).statistic), 4),
        map_crossed=round(float(((before >= 0.5) != (after >= 0.5)).mean()), 4) if len(before) else 0.0,
    )


def _number(prediction: SlidePrediction, base: SlidePrediction) -> float:
    """What is followed: the probability of the class called at first, a value, or the share of tissue of the class asked for."""
    if prediction.is_taught:
        return prediction.shares()[base.classes[-1]]
    if prediction.value is not None:
        return prediction.value
    return float(prediction.probabilities[int(base.probabilities.argmax())])


def keep_on_card(model: str, found: Robustness) -> Path | None:
    """Write the figures on the card of a model folder; the bundled one stays as it came. Returns the card."""
    folder, card = read_card(model)
    if BUNDLED in folder.parents:
        return None
    noted = ModelCard(dict(card.values) | {"robustness": found.on_card()})
    write_atomically(folder / "MODEL_CARD.md", (describe_taught if card.is_taught else describe_model)(noted).encode())
    write_atomically(folder / "model.json", to_json(noted.values))
    return folder / "MODEL_CARD.md"
