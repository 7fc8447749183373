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
from pathovit.model.card import ModelCard, check_recipe, model_digest, read_card, require_weights
from pathovit.model.novelty import Novelty
from pathovit.model.own_kinds import NETWORKS
from pathovit.model.prediction import Answered, SlidePrediction
from pathovit.model.targets import Target
from pathovit.model.taught import TaughtHead
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.recipe import EmbedRecipe, Values, differing
from pathovit.outputs.records import A_MAP, OUTSIDE, UNSURE
from pathovit.settings import AnswerSettings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """Calibrated evidence of a bag of N tiles: logits = sum(attention * evidence) + bias, as far as there is evidence."""

    logits: Floats  # (C,)
    evidence: Floats  # (N, C)
    attention: Floats  # (N,)
    bias: Floats  # (C,)


@dataclass(frozen=True)
class SlideModel:
    """A trained slide model with its card: what it was made for, from what, and how well it does.

    Examples
    --------
    >>> model = pathovit.load_model("reference")
    >>> model.predict(pathovit.load_features(out, "one"), 0.1).answer
    'tumour'
    """

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
        return self.remarks_on(stored.shaping())

    def remarks_on(self, given: Values) -> list[str]:
        """The same of what shaped features."""
        learned = self.card.shaping
        other = [
            f"{part}.{line}" for part in ("tissue", "tiles") for line in differing(learned.get(part, {}), given.get(part, {}))
        ]
        return [f"tiles found otherwise than those the model learned from ({'; '.join(other[:3])})"] if learned and other else []

    def look(self, features: torch.Tensor, xy_um: torch.Tensor, pitch_um: float) -> Seen:
        """What the network makes of a bag of tiles (N, D), all of them read."""
        if self.network.config.kind not in NETWORKS:  # ours convert as they go; one's own gets what it was trained on
            features, xy_um = features.float(), (xy_um - xy_um.min(0).values).float()
        with torch.inference_mode():
            found = self.network(features, xy_um, pitch_um)
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
        features = stored.features if ok.all() else stored.features[ok]  # which copies them
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
            domain=self.card.domain,
            is_taught=self.is_taught,
        )

    def _strangeness(self, features: torch.Tensor, xy_um: torch.Tensor, pitch_um: float) -> NDArray[np.float32]:
        """(N,) how strange each tile of a bag is; not a number for a model that does not know."""
        if isinstance(self.network, TaughtHead):
            with torch.inference_mode():
                return np.asarray(self.network.strangeness(self.network.seen(features, xy_um, pitch_um)).numpy())
        return self.novelty.tiles(features.numpy()) if self.novelty else np.full(len(features), np.nan, np.float32)

    def answer(self, stored: SlideFeatures, error_rate: float = AnswerSettings().error_rate) -> Answered:
        """The same, with all that is said of it. Raises as `predict`."""
        return Answered(self.predict(stored, error_rate), self.name, self.sha256, tuple(self.remarks(stored)))

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


def load_model(folder: str | Path) -> SlideModel:
    """A slide model from its folder (model.safetensors, model.json); "reference" is the bundled one.

    Raises
    ------
    SettingsError : there is no model in the folder, or its card is damaged
    WeightsError : its weights are missing, or do not fit

    Examples
    --------
    >>> pathovit.load_model("reference").target.classes
    ('normal', 'tumour')
    """
    path, card = read_card(folder)
    weights_path = require_weights(path, card)
    make = TaughtHead if card.is_taught else make_aggregator
    tensors = read_safetensors(weights_path)
    with torch.device("meta"):  # room is made for a network only if its weights are there
        expected = {name: tensor.shape for name, tensor in make(card.config).state_dict().items()}
    given = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("novelty.")}
    if other := sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)):
        said = f"{other[0]} is {tuple(given.get(other[0], ()))} and not {tuple(expected.get(other[0], ()))}"
        raise WeightsError(f"{weights_path}: does not fit model.json ({len(other)} of its tensors; {said}).")
    known = {k.removeprefix("novelty."): v.numpy() for k, v in tensors.items() if k.startswith("novelty.")}
    try:
        novelty = Novelty.from_tensors(known)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{weights_path}: what it holds of novelty is damaged ({error}). Train the model again.") from error
    if novelty and len(novelty.centre) != card.config.feature_dim:
        raise WeightsError(
            f"{weights_path}: its novelty is of {len(novelty.centre)} features, and model.json has {card.config.feature_dim}."
        )
    network = make(card.config)
    network.load_state_dict({name: tensors[name] for name in given})
    return SlideModel(network.eval(), card.target, card.calibration, novelty, card, model_digest(card), path.name)


def save_model(folder: Path, model: SlideModel, describe: Callable[[ModelCard], str] | None = None) -> SlideModel:
    """Write model.safetensors and, last of all, model.json; between them MODEL_CARD.md, if `describe` makes its text.

    The card gets configuration, target, calibration and the weights' digest.

    Examples
    --------
    >>> saved = pathovit.save_model(Path("copy"), pathovit.load_model("reference"))
    >>> pathovit.load_model("copy").sha256 == saved.sha256
    True
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
