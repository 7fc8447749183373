"""Teaching: a few painted tiles and stored features become a slide model, in seconds.

The head is a regularised multinomial regression (`TaughtHead`). How far it can be believed is found by leaving out: patients
where several were painted, else slides, else blocks of a slide; nothing within reach of what is left out is learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.model.calibration import Calibration
from pathovit.model.card import ModelCard
from pathovit.model.judged import LeftOutFigures
from pathovit.model.lattice import Lattice
from pathovit.model.metrics import auroc
from pathovit.model.own_kinds import TAUGHT
from pathovit.model.slide_model import SlideModel
from pathovit.model.targets import Target
from pathovit.model.taught import AXES, REACHES, TaughtHead
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.recipe import differing
from pathovit.settings import AggregatorConfig
from pathovit.study.lessons import Lesson, Lessons, lessons_of, read_lessons

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]
RIDGE = 10.0  # on weights of standardised features, against a loss summed over tiles
MOST_WEIGHT = 1000.0  # that all tiles have together: neighbours say nearly the same
LEAST_TILES = 3  # of each class
APART = 6  # tiles, at least, from what is left out to what is learned from
BLOCK = 8  # tiles on the side of a block
FOLDS = 10
SPREAD_TILES = 20_000  # of all slides, that say how far tiles spread
SHOWN_TILES = 2000  # kept, that say what was shown
FLOOR = 0.02  # of the largest spread: directions in which tiles hardly differ are not blown up
UNLIKE_RATE = 0.05  # of the painted tiles, left out, that count as unlike what was shown
INTENDED_USE = "Research only: maps of tissue like that which was painted, to be looked at by a person."
LIMITS = [
    "It knows what was painted, and nothing else. Tiles unlike all of that are marked on the map, and left out of its figures.",
    "It answers with a map. It gives no probability for a slide.",
    "How good it is was estimated on painted tiles that were left out. People paint what is plain to see: the rest is harder.",
]


@dataclass(frozen=True)
class Paint:
    """Everything that is known of single tiles, over all slides; n painted tiles."""

    features: Floats  # (n, K, D) means over its neighbourhoods, the nearest first
    allowed: NDArray[np.bool_]  # (n, C)
    place: Whole  # (n, 2) column and row in the slide
    slide: Whole  # (n,)
    patient: Whole  # (n,)

    @property
    def sure(self) -> NDArray[np.bool_]:
        """(n,) tiles of which the class itself is known."""
        return np.asarray(self.allowed.sum(1) == 1)


@dataclass(frozen=True)
class Spread:
    """How far the tiles of the taught slides spread."""

    mean: Floats  # (K, D)
    scale: Floats  # (K, D)
    axes: Floats  # (D, AXES) in which distances are measured

    def whitened(self, paint: Paint) -> Floats:
        """(n, AXES) of the nearest means."""
        return np.asarray((paint.features[:, 0] - self.mean[0]) @ self.axes)


@dataclass(frozen=True)
class LeftOut:
    """What heads said of the painted tiles that they had not seen."""

    by: str  # patients, slides, blocks
    folds: int
    logits: NDArray[np.float64]  # (n, outputs); NaN where it cannot be told
    distance: Floats  # (n,) from the nearest tile that was shown; NaN likewise

    @property
    def told(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.distance))


def teach(
    features: Path | str | Sequence[SlideFeatures], labels: Path | str | Sequence[Path] | Mapping[str, Sequence[str]],
    positive: str | None = None,
) -> SlideModel:  # fmt: skip
    """A slide model from a few painted tiles and stored features; `save_model` keeps it.

    Parameters
    ----------
    features : an output folder, or features of slides
    labels : GeoJSON files or folders of them; for features, by slide_id the class of every tile in grid order, "" if not known
    positive : of two classes, the one that the map shows

    Raises
    ------
    SettingsError : labels that cannot be understood, features made in different ways, a class with too few tiles

    Examples
    --------
    >>> features = pathovit.load_features(out, "one")
    >>> left = features.centres_l0()[:, 0] < 1500
    >>> painted = ["left" if one else "right" for one in left]
    >>> pathovit.teach([features], {features.slide_id: painted}).target.classes
    ('left', 'right')
    """
    if isinstance(labels, Mapping):
        if isinstance(features, Path | str):
            raise SettingsError("Labels of single tiles are given with features, not with a folder.")
        return learn(lessons_of(features, labels, positive))
    if not isinstance(features, Path | str):
        raise SettingsError("GeoJSON files are given with a folder of features, whose slides they are named after.")
    paths = [labels] if isinstance(labels, Path | str) else labels
    return learn(read_lessons(OutFolder(Path(features)), [Path(path) for path in paths], positive))


def learn(given: Lessons) -> SlideModel:
    """A slide model from lessons.

    Raises
    ------
    SettingsError : features made in different ways, a class with too few tiles
    """
    lessons, classes = given.lessons, given.classes
    first = lessons[0].stored
    _require_alike([lesson.stored for lesson in lessons])
    target = Target("binary" if len(classes) == 2 else "multiclass", ("label",), classes)
    paint, spread = _gather(lessons)
    counts = {name: int(paint.sure[paint.allowed[:, i]].sum()) for i, name in enumerate(classes)}
    for name, count in counts.items():
        if count < LEAST_TILES:
            raise SettingsError(
                f"Class {name!r} has {count} painted tiles; {LEAST_TILES} are needed at least, and 20 are better."
            )
    patients_known = all(lesson.patient for lesson in lessons)
    left_out = _leave_out(paint, spread, target.outputs, patients_known)
    calibration = _calibrate(paint, left_out, target)
    network = _network(paint, spread, left_out, target)
    encoder, tiles = first.recipe.encoder, first.recipe.tiles
    values = {
        "research_use": RESEARCH_USE,
        "intended_use": INTENDED_USE,
        "limits": LIMITS,
        "config": asdict(network.config),
        "encoder": {
            **{key: encoder[key] for key in ("encoder", "weights_sha256", "dim")},
            "tile_px": tiles["tile_px"],
            "mpp": tiles["mpp"],
        },
        "shaping": first.shaping(),
        "taught": {
            "tiles": counts,
            "slides": len(lessons),
            "patients": len(np.unique(paint.patient)) if patients_known else None,
            "left_out": [asdict(_judge(paint, one, target)) for one in left_out],
        },
    }
    return SlideModel(network, target, calibration, None, ModelCard(values), "", TAUGHT)


def _require_alike(features: Sequence[SlideFeatures]) -> None:
    first = features[0]
    for other in features[1:]:
        if other.shaping() != first.shaping():
            said = "; ".join(
                differing(first.shaping(), other.shaping(), there=f"for {first.slide_id}", here=f"for {other.slide_id}")[:3]
            )
            raise SettingsError(f"Features made in different ways cannot be learned from together ({said}).")


def _gather(lessons: Sequence[Lesson]) -> tuple[Paint, Spread]:
    """Painted tiles of all slides, and the spread of all their tiles."""
    called = [lesson.patient or lesson.stored.slide_id for lesson in lessons]
    patients = {name: number for number, name in enumerate(dict.fromkeys(called))}
    found, samples = [], []
    every = max(1, sum(len(lesson.stored.xy) for lesson in lessons) // SPREAD_TILES)
    for number, lesson in enumerate(lessons):
        stored, ok = lesson.stored, lesson.stored.ok
        features = stored.features[ok].astype(np.float32)
        lattice = Lattice(stored.centres_um()[ok], stored.pitch_um)
        means = [lattice.mean(features, reach) for reach in REACHES]
        samples.append(np.stack([mean[::every] for mean in means], 1))
        painted = np.flatnonzero(lesson.labels.known[ok])
        here = np.stack([mean[painted] for mean in means], 1)
        place = np.stack([lattice.column, lattice.row], 1)[painted]
        count = len(painted)
        found.append(
            Paint(
                here, lesson.labels.allowed[ok][painted], place, np.full(count, number), np.full(count, patients[called[number]])
            )
        )
    sample = np.concatenate(samples)
    near = sample[:, 0]
    size, axes = np.linalg.eigh(np.cov(near.T.astype(np.float64)))
    size, axes = size[::-1][:AXES], axes[:, ::-1][:, :AXES]
    whiten = np.asarray(axes / np.sqrt(size + FLOOR * size[0]), np.float32)
    spread = Spread(sample.mean(0), sample.std(0) + 1e-3, whiten)
    return Paint(*(np.concatenate([getattr(part, name) for part in found]) for name in Paint.__annotations__)), spread


def _weights(paint: Paint, rows: Whole) -> NDArray[np.float64]:
    """(n,) Classes count alike, and within a class its slides."""
    sure = paint.allowed[rows]
    key = np.concatenate([paint.slide[rows][:, None], sure], 1)
    _, kind, counts = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    weight = 1.0 / counts[kind.ravel()]
    _, cls = np.unique(sure, axis=0, return_inverse=True)
    weight /= np.bincount(cls.ravel(), weight)[cls.ravel()]
    return np.asarray(weight * min(len(rows), MOST_WEIGHT) / weight.sum())


def fit_regression(
    x: Floats, allowed: NDArray[np.bool_], weight: NDArray[np.float64], ridge: float = RIDGE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (F, C) and bias (C,) of a multinomial regression on tiles (n, F) whose class is one of those `allowed` (n, C)."""
    count, classes = x.shape[1], allowed.shape[1]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w, b = flat[: count * classes].reshape(count, classes), flat[count * classes :]
        logits = x @ w.astype(np.float32) + b
        logits -= logits.max(1, keepdims=True)
        chance = np.exp(logits)
        chance /= chance.sum(1, keepdims=True)
        inside = np.where(allowed, chance, 0)
        total = inside.sum(1, keepdims=True).clip(1e-30)
        slope = weight[:, None] * (chance - inside / total)
        value = -(weight * np.log(total[:, 0])).sum() + 0.5 * ridge * np.square(w).sum()
        return float(value), np.concatenate([(x.T @ slope.astype(np.float32) + ridge * w).ravel(), slope.sum(0)])

    found = minimize(loss, np.zeros(count * classes + classes), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return found[: count * classes].reshape(count, classes), found[count * classes :]


def _fit(paint: Paint, spread: Spread, rows: Whole, outputs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (K, D, outputs) on features as they are, and bias (outputs,). Two classes have one logit."""
    x = ((paint.features[rows] - spread.mean) / spread.scale).reshape(len(rows), -1)
    w, b = fit_regression(x, paint.allowed[rows], _weights(paint, rows))
    if outputs == 1:
        w, b = w[:, 1:] - w[:, :1], b[1:] - b[:1]
    w = w.reshape(*spread.mean.shape, outputs) / spread.scale[..., None]
    return w, b - np.einsum("kd,kdc->c", spread.mean, w)


def _said(paint: Paint, rows: Whole, w: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("nkd,kdc->nc", paint.features[rows], w) + b)


def _leave_out(paint: Paint, spread: Spread, outputs: int, patients_known: bool) -> list[LeftOut]:
    """Heads taught without a part of what was painted, and what they say of it: blocks, slides, patients; those that can be told by."""
    blocks = np.unique(
        np.concatenate([paint.slide[:, None], paint.place // BLOCK, paint.allowed], 1), axis=0, return_inverse=True
    )[1]
    ways = {"blocks": blocks.ravel(), "slides": paint.slide, "patients": paint.patient}
    if not patients_known:
        ways["slides"] = ways.pop("patients")  # those of one patient together, as far as it is known
    elif len(np.unique(paint.patient)) == len(np.unique(paint.slide)):
        del ways["slides"]  # leaving out patients is the same
    found = [_leave_out_groups(paint, spread, outputs, by, groups) for by, groups in ways.items()]
    return [one for one in found if one.told.mean() > 0.5 and (paint.allowed[one.told & paint.sure].sum(0) >= LEAST_TILES).all()]


def _leave_out_groups(paint: Paint, spread: Spread, outputs: int, by: str, groups: Whole) -> LeftOut:
    logits = np.full((len(groups), outputs), np.nan)
    distance = np.full(len(groups), np.nan, np.float32)
    near = spread.whitened(paint)
    folds = 0
    for out in _folds(groups):
        rows = np.setdiff1d(np.arange(len(groups)), _within_reach(paint, out))
        if not (paint.allowed[rows][paint.sure[rows]].sum(0) >= LEAST_TILES).all():
            continue
        logits[out] = _said(paint, out, *_fit(paint, spread, rows, outputs))
        distance[out] = torch.cdist(torch.from_numpy(near[out]), torch.from_numpy(near[rows])).min(1).values.numpy()
        folds += 1
    return LeftOut(by, folds, logits, distance)


def _folds(groups: Whole) -> Iterator[Whole]:
    """Rows of each fold; whole groups, at most FOLDS of them, alike in size."""
    from sklearn.model_selection import GroupKFold

    count = len(np.unique(groups))
    if count > 1:
        for _, out in GroupKFold(min(count, FOLDS)).split(groups, groups=groups):
            yield out


def _within_reach(paint: Paint, out: Whole) -> Whole:
    """Rows of tiles that are left out, or nearer than APART to one along rows and columns: their neighbourhoods overlap."""
    from scipy.spatial import cKDTree

    place = np.concatenate([paint.place, paint.slide[:, None] * 10**6], 1)
    tree = cKDTree(place[out])
    near = tree.query(place, p=np.inf, distance_upper_bound=APART)[0]
    return np.flatnonzero(np.isfinite(near))


def _judge(paint: Paint, left_out: LeftOut, target: Target) -> LeftOutFigures:
    """How good heads are on tiles that they had not seen."""
    told = paint.sure & left_out.told
    cls, chances = paint.allowed[told].argmax(1), target.kind.probabilities(left_out.logits[told])
    right = {name: round(float((chances.argmax(1) == cls)[cls == i].mean()), 4) for i, name in enumerate(target.classes)}
    ranked = {name: round(auroc((cls == i).astype(np.int64), chances[:, i]), 4) for i, name in enumerate(target.classes)}
    mean = round(float(np.mean(list(ranked.values()))), 4)
    return LeftOutFigures(left_out.by, left_out.folds, int(told.sum()), mean, ranked, right)


def _calibrate(paint: Paint, left_out: Sequence[LeftOut], target: Target) -> Calibration:
    """By the widest parts that were left out. Score 0.5 is as likely as not."""
    none = (0.0,) * target.outputs
    neutral = Calibration(shift=none, hot=none, hot_patients=(0,) * target.outputs)
    if not left_out:
        return neutral
    told = paint.sure & left_out[-1].told
    truth = np.asarray(paint.allowed[told][:, -target.outputs :], np.float32)
    return replace(neutral, temperature=target.kind.scaling(left_out[-1].logits[told], truth, 0.0, 1.0).temperature)


def _network(paint: Paint, spread: Spread, left_out: Sequence[LeftOut], target: Target) -> TaughtHead:
    w, b = _fit(paint, spread, np.arange(len(paint.slide)), target.outputs)
    kept = np.unique(np.linspace(0, len(paint.slide) - 1, SHOWN_TILES).round().astype(np.int64))
    shown = spread.whitened(paint)[kept]
    network = TaughtHead(AggregatorConfig(feature_dim=w.shape[1], outputs=target.outputs, width=len(kept), kind=TAUGHT))
    most = spread.axes.shape[1] ** 0.5  # as far from all that was shown as tiles are, on average, from the mean of all
    limit = min([most, *(np.quantile(one.distance[one.told], 1 - UNLIKE_RATE) for one in left_out[:1])])
    values = {"weight": w, "bias": b, "shown": shown, "centre": spread.mean[0], "axes": spread.axes, "limit": limit}
    network.load_state_dict(
        network.state_dict() | {name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()}
    )
    return network.eval()
