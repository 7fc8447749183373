"""model.json: what a slide model was made for, from what, and how well it does.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathovit.errors import SettingsError, WeightsError
from pathovit.files import file_sha256, read_bytes
from pathovit.model.calibration import Calibration
from pathovit.model.contract import Fault, parsed, require
from pathovit.model.own_kinds import TAUGHT
from pathovit.model.targets import Target
from pathovit.outputs.recipe import EmbedRecipe, Values
from pathovit.settings import AggregatorConfig

REFERENCE = "reference"  # the bundled model

BUNDLED = Path(__file__).parent / "bundled"
NEEDED = ("config", "encoder", "target", "calibration", "weights_sha256")


@dataclass(frozen=True)
class Trained:
    """The features that a model was trained on."""

    encoder: str
    weights_sha256: str
    dim: int
    tile_px: int
    mpp: float


@dataclass(frozen=True)
class ModelCard:
    """model.json, as it was read or is to be written. Its digest is of what it holds, so that it is kept as it is."""

    values: Mapping[str, Any]

    @property
    def config(self) -> AggregatorConfig:
        return AggregatorConfig(**self.values["config"])

    @property
    def has_evidence(self) -> bool:
        """Whether its answer is a sum over tiles, by the check that was made after training."""
        return "remark" not in (self.values.get("heatmap_check") or {})

    @property
    def target(self) -> Target:
        return Target.from_json(self.values["target"])

    @property
    def calibration(self) -> Calibration:
        return Calibration.from_json(self.values["calibration"])

    @property
    def trained(self) -> Trained:
        found = self.values["encoder"]
        return Trained(found["encoder"], found["weights_sha256"], found["dim"], found["tile_px"], found["mpp"])

    @property
    def shaping(self) -> Values:
        """What shaped the features it learned from; empty for models that do not say it."""
        return dict(self.values.get("shaping", {}))

    @property
    def domain(self) -> str:
        """What it was made for, in words; empty where nobody said."""
        return str(self.values.get("domain", ""))

    @property
    def demonstration(self) -> bool:
        return bool(self.values.get("demonstration", False))

    @property
    def is_taught(self) -> bool:
        """Whether it learned from painted tiles, and answers with a map alone."""
        return self.config.kind == TAUGHT

    @property
    def fit_key(self) -> str:
        """What it was fitted from."""
        return str(self.values.get("fit_key", ""))


def read_card(folder: str | Path) -> tuple[Path, ModelCard]:
    """The folder of a model and its card; a bundled model is known by its name.

    Raises
    ------
    WeightsError : not a model folder, or a damaged one
    """
    path = Path(folder)
    if not path.is_dir() and (BUNDLED / str(folder)).is_dir():
        path = BUNDLED / str(folder)
    card_path = path / "model.json"
    if not card_path.is_file():
        raise WeightsError(f"{path}: not a model folder (model.json is missing). Make one with: pathovit train LABELS.csv")
    try:
        values = parsed(read_bytes(card_path))
        missing = [key for key in NEEDED if key not in values]
        if missing:
            raise Fault(f"of another version ({', '.join(missing)} missing)")
        require(values)
    except Fault as fault:
        raise WeightsError(f"{card_path}: {fault}. Train the model again.") from fault
    except OSError as error:
        raise WeightsError(f"{card_path}: cannot be read ({error.strerror}).") from error
    return path.resolve(), ModelCard(values)


def require_weights(folder: Path, card: ModelCard) -> Path:
    """The model's weights, if they are those that its card was written for; nothing is loaded.

    Raises
    ------
    WeightsError : missing, or others
    """
    weights = folder / "model.safetensors"
    try:
        digest = file_sha256(weights)
    except OSError as error:
        raise WeightsError(f"{weights}: missing, or it cannot be read ({error.strerror}). Train the model again.") from error
    if digest != card.values["weights_sha256"]:
        raise WeightsError(
            f"{weights}: its SHA-256 is not the one in model.json; one of the two was changed. Train the model again."
        )
    return weights


@dataclass(frozen=True)
class KnownModel:
    """A slide model that is not loaded: enough to tell what fits it, and what was made by it."""

    name: str
    card: ModelCard
    sha256: str

    def check(self, recipe: EmbedRecipe) -> None:
        """Refuse features of another recipe than the model was trained on; before they are made, best of all."""
        check_recipe(self.card.trained, recipe, self.name)


def know_model(folder: str | Path) -> KnownModel:
    """Raises WeightsError, as `read_card` does."""
    path, card = read_card(folder)
    return KnownModel(path.name, card, model_digest(card))


def check_recipe(trained: Trained, recipe: EmbedRecipe, model: str) -> None:
    """Refuse features the model was not trained on, naming both."""
    found = {**recipe.encoder, "mpp": recipe.tiles["mpp"]}
    for key, wanted in asdict(trained).items():
        if wanted != found[key]:
            raise SettingsError(
                f"Model {model!r} was trained on features with {key} = {wanted}, and these have {found[key]}. "
                f"Embed the slides with --encoder {trained.encoder}, or train a model on these features."
            )


def model_digest(card: ModelCard) -> str:
    """SHA-256 of everything in a model that shapes an answer: weights, configuration, target, calibration, features."""
    known = {key: card.values[key] for key in NEEDED}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def require_evidence(card: ModelCard, name: str) -> None:
    """Raises SettingsError for a model of which no heatmap can be drawn."""
    if not card.has_evidence:
        raise SettingsError(
            f"{name}: a {card.config.kind} model says nothing of single tiles, so there is no heatmap to draw. "
            "Use it with predict and evaluate, or train a slide_transformer."
        )
