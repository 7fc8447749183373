"""SlideModel: a trained aggregator with what it knows about itself; SlideFeatures to SlidePrediction."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pathovit.encoders.weights import read_safetensors
from pathovit.errors import SettingsError, WeightsError
from pathovit.files import file_sha256
from pathovit.model.aggregator import Aggregator
from pathovit.model.baselines import make_aggregator
from pathovit.model.calibration import Calibration
from pathovit.model.card import ModelCard, Trained, model_digest, read_card
from pathovit.model.novelty import Novelty
from pathovit.model.targets import Target
from pathovit.model.taught import TaughtHead
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.recipe import EmbedRecipe, differing
from pathovit.outputs.records import A_MAP, OUTSIDE, UNSURE, Answer
from pathovit.settings import AnswerSettings

Floats = NDArray[np.float64]
SAID_OUTSIDE = "outside what this model was made for"


@dataclass(frozen=True)
class SlidePrediction:
    """The answer for a slide. Tile rows are in grid order; rows that were not read hold NaN.

    All logits, evidence and contributions are calibrated: divided by the model's temperature, the bias shifted.
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
        return f"unlike the slides that the model knows (novelty {self.novelty:.2f}): paint some of this tissue, and use `pathovit teach`"

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
class Seen:
    """Calibrated evidence of a bag of N tiles: logits = sum(attention * evidence) + bias, as far as there is evidence."""

    logits: Floats  # (C,)
    evidence: Floats  # (N, C)
    attention: Floats  # (N,)
    bias: Floats  # (C,)


@dataclass(frozen=True)
class SlideModel:
    """A trained slide model with its card: what it was made for, from what, and how well it does."""

    network: Aggregator
    target: Target
    calibration: Calibration
    novelty: Novelty | None
    card: ModelCard
    sha256: str
    name: str = ""

    @property
    def is_taught(self) -> bool:
        """On painted tiles: it has seen no slides to say anything of one."""
        return isinstance(self.network, TaughtHead)

    def check(self, recipe: EmbedRecipe) -> None:
        """Refuse features of another recipe than the model was trained on; before they are made, best of all."""
        check_recipe(self.card.trained, recipe, self.name)

    def remarks(self, stored: SlideFeatures) -> list[str]:
        """What must be said of an answer for features that were made otherwise than those the model learned from."""
        learned, given = self.card.shaping, stored.shaping()
        other = [
            f"{part}.{line}" for part in ("tissue", "tiles") for line in differing(learned.get(part, {}), given.get(part, {}))
        ]
        return [f"tiles found otherwise than those the model learned from ({'; '.join(other[:3])})"] if learned and other else []

    def look(self, features: torch.Tensor, xy_um: torch.Tensor, pitch_um: float) -> Seen:
        """What the network makes of a bag of tiles (N, D), all of them read."""
        with torch.inference_mode():
            found = self.network(features.float(), xy_um, pitch_um)
        logits, evidence, bias = (
            tensor.detach().numpy().astype(np.float64) / self.calibration.temperature
            for tensor in (found.logits, found.evidence, found.bias)
        )
        shift = np.asarray(self.calibration.shift)
        return Seen(logits + shift, evidence, found.attention.numpy().astype(np.float64), bias + shift)

    def predict(self, stored: SlideFeatures, error_rate: float = AnswerSettings().error_rate) -> SlidePrediction:
        """The slide's answer and every tile's share in it.

        Parameters
        ----------
        error_rate : share of slides for which the answer may be wrong; what cannot be said at that rate is "unsure"; a slide
            unlike the cohort is "outside"

        Raises
        ------
        SettingsError : the features come from another encoder, other weights, or other tiles than the model was trained on
        """
        self.check(stored.recipe)
        ok = stored.ok
        if not ok.any():
            raise SettingsError(f"{stored.slide_id}: not one of its tiles could be read.")
        features = stored.features[ok].astype(np.float32)
        bag = torch.from_numpy(features), torch.from_numpy(stored.centres_um()[ok]), stored.pitch_um
        seen = self.look(*bag)
        chances = self.target.kind.probabilities(seen.logits)
        novelty = self.slide_novelty(features)
        value, interval = self.target.kind.measured(self.calibration, seen.logits, error_rate)
        possible = self.possible(chances, novelty, error_rate)
        if novelty > 1:
            interval = interval and (-math.inf, math.inf)
        return SlidePrediction(
            slide_id=stored.slide_id,
            target=self.target,
            answer=OUTSIDE if novelty > 1 else A_MAP if self.is_taught else self._answer(possible, value),
            possible=possible,
            probabilities=chances.astype(np.float32),
            value=value,
            interval=interval,
            tile_scores=_spread(self.tile_scores(seen.evidence + seen.bias), ok),
            attention=_spread(seen.attention[:, None], ok)[:, 0],
            contributions=_spread(seen.attention[:, None] * seen.evidence, ok),
            logits=seen.logits.astype(np.float32),
            bias=seen.bias.astype(np.float32),
            novelty=novelty,
            tile_novelty=_spread(self._strangeness(*bag)[:, None], ok)[:, 0],
            is_taught=self.is_taught,
        )

    def _strangeness(self, features: torch.Tensor, xy_um: torch.Tensor, pitch_um: float) -> NDArray[np.float32]:
        """(N,) how strange each tile of a bag is; not a number for a model that does not know."""
        if isinstance(self.network, TaughtHead):
            with torch.inference_mode():
                return np.asarray(self.network.strangeness(self.network.seen(features, xy_um, pitch_um)).numpy())
        return self.novelty.tiles(features.numpy()) if self.novelty else np.full(len(features), np.nan, np.float32)

    def slide_novelty(self, features: NDArray[Any]) -> float:
        """How unlike the cohort a slide (N, D) is; not a number for a model that does not know."""
        return self.novelty.slide(features) if self.novelty else float("nan")

    def possible(self, chances: Floats, novelty: float, error_rate: float) -> tuple[tuple[str, ...], ...]:
        """For each question the options that cannot be ruled out, by the one rule for all commands.

        The error rate holds for slides like the cohort's: of another one nothing can be ruled out, and nothing by a taught model.
        """
        if novelty > 1 or self.is_taught:
            return tuple(self.target.kind.questions())
        return tuple(self.target.kind.possible(self.calibration, chances, error_rate))

    def tile_scores(self, evidence: Floats) -> Floats:
        """(N, C) calibrated evidence plus bias to scores in [0, 1], on one scale for all slides."""
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(np.asarray(self.calibration.hot) - self.target.kind.margins(evidence))))

    def _answer(self, possible: tuple[tuple[str, ...], ...], value: float | None) -> str:
        return UNSURE if any(len(options) != 1 for options in possible) else self.target.kind.said(possible, value)


def _spread(values: Floats | NDArray[np.float32], ok: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(n, C) of the read tiles to (N, C) of all, NaN elsewhere."""
    full = np.full((len(ok), values.shape[1]), np.nan, np.float32)
    full[ok] = values
    return full


def check_recipe(trained: Trained, recipe: EmbedRecipe, model: str) -> None:
    """Refuse features the model was not trained on, naming both."""
    found = {**recipe.encoder, "mpp": recipe.tiles["mpp"]}
    for key, wanted in asdict(trained).items():
        if wanted != found[key]:
            raise SettingsError(
                f"Model {model!r} was trained on features with {key} = {wanted}, and these have {found[key]}. "
                f"Embed the slides with --encoder {trained.encoder}, or train a model on these features."
            )


def load_model(folder: str | Path) -> SlideModel:
    """A slide model from its folder (model.safetensors, model.json); "reference" is the bundled one."""
    path, card = read_card(folder)
    weights_path = path / "model.safetensors"
    network = TaughtHead(card.config) if card.is_taught else make_aggregator(card.config)
    tensors = read_safetensors(weights_path)
    digest = file_sha256(weights_path)
    if digest != card.values["weights_sha256"]:
        raise WeightsError(
            f"{weights_path}: its SHA-256 is not the one in model.json; one of the two was changed. Train the model again."
        )
    novelty = Novelty.from_tensors(
        {k.removeprefix("novelty."): v.numpy() for k, v in tensors.items() if k.startswith("novelty.")}
    )
    try:
        network.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("novelty.")})
    except RuntimeError as error:
        raise WeightsError(f"{weights_path}: does not fit model.json ({str(error).splitlines()[0]}).") from error
    return SlideModel(network.eval(), card.target, card.calibration, novelty, card, model_digest(card), path.name)


def save_model(folder: Path, model: SlideModel, describe: Callable[[ModelCard], str] | None = None) -> SlideModel:
    """Write model.safetensors and, last of all, model.json; between them MODEL_CARD.md, if `describe` makes its text.

    The card gets configuration, target, calibration and the weights' digest.
    """
    from safetensors.torch import save

    from pathovit.files import to_json, write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    tensors = dict(model.network.state_dict())
    if model.novelty:
        tensors |= {f"novelty.{name}": torch.from_numpy(values) for name, values in model.novelty.tensors().items()}
    write_atomically(weights, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    known = {
        "config": asdict(model.network.config),
        "target": asdict(model.target),
        "calibration": model.calibration.to_json(),
        "weights_sha256": file_sha256(weights),
    }
    card = ModelCard(json.loads(json.dumps({**known, **model.card.values})))  # as it will be read back
    if describe:
        write_atomically(folder / "MODEL_CARD.md", describe(card).encode())
    write_atomically(folder / "model.json", to_json(card.values))
    return replace(model, card=card, sha256=model_digest(card), name=folder.name)
