"""Fit an aggregator on stored features. A patient, with all slides, is one unit: in the split and in the loss.

A plain loop, one bag at a time; it can be killed at any epoch and goes on to the same model.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pathovit.aggregator import Aggregator, AggregatorConfig, TileEvidence
from pathovit.baselines import make_aggregator
from pathovit.calibration import calibrated_loss
from pathovit.cohort import Bag, cohort_digest
from pathovit.device import keep_freed_memory, pick_device
from pathovit.errors import SettingsError
from pathovit.evaluation import main_metric
from pathovit.provenance import STEP_VERSIONS
from pathovit.store import write_atomically
from pathovit.targets import Target

Parts = dict[str, list[Bag]]
OnEpoch = Callable[[dict[str, float]], None]
OnStep = Callable[[str, int, int], None]  # what is being done, how much of it is done, and how much there is
SURVIVAL_BAGS = 16  # of a step: a Cox loss compares patients with each other


@dataclass(frozen=True)
class TrainSettings:
    """How a slide model is fitted."""

    kind: str = "slide_transformer"  # or a baseline: mean, abmil, clam_sb, transformer, transmil
    epochs: int = 30
    patience: int = 10  # epochs without a better validation loss
    learning_rate: float = 2e-4
    weight_decay: float = 0.05
    averaging: float = 0.97  # of the weights over steps; few patients make single steps jumpy
    bags_per_step: int = 4
    max_tiles: int = 4096  # of a bag in one training step; validation sees all
    feature_noise: float = 1.0  # of a feature's spread: few patients have few tiles, which must not be learned by heart
    tile_dropout: float = 0.3  # share of tiles left out of a bag, drawn anew each time
    tile_loss: float = 0.5  # weight of the loss on single tiles (slide_transformer, targets with classes)
    top_share: float = 0.02  # of a bag's tiles that must show its class
    label_smoothing: float = 0.1  # keeps scores from saturating, so that the map is graded
    class_weights: bool = True  # rare classes count as much as frequent ones
    width: int = 128
    depth: int = 1
    validation_share: float = 0.2
    test_share: float = 0.2
    precision: str = "auto"  # auto (bf16 on a GPU), fp32 or bf16
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingsError(f"train.epochs is {self.epochs}, expected at least 1.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise SettingsError(f"train.precision is {self.precision!r}, expected auto, fp32 or bf16.")
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise SettingsError(f"train.{name} is {getattr(self, name)}, expected 0 to 0.5.")
        if not self.validation_share:
            raise SettingsError("train.validation_share is 0; early stopping and calibration need a validation part.")


@dataclass(frozen=True)
class Fitted:
    """A fitted network and how it got there."""

    network: Aggregator
    history: list[dict[str, float]]
    best_epoch: int
    centre: float  # of a measurement, in the training part
    scale: float


def fit(
    parts: Parts, target: Target, recipe: dict[str, Any], settings: TrainSettings, on_epoch: OnEpoch, checkpoint: Path,
    on_step: OnStep = lambda what, done, total: None,
) -> Fitted:  # fmt: skip
    """Fit on the train part, stop early on the validation part; the best moving average of the network is returned.

    Parameters
    ----------
    recipe : what the features were made by
    checkpoint : holds the state between epochs; the same call goes on from it. It is left for the caller to remove.

    Raises
    ------
    SettingsError : the kind does not fit the target, or the loss is no longer a number
    """
    torch.manual_seed(settings.seed)
    config = AggregatorConfig(recipe["encoder"]["dim"], target.outputs, settings.width, settings.depth, kind=settings.kind)
    if settings.kind == "clam_sb" and target.task != "binary":
        raise SettingsError("clam_sb is made for binary targets. Use another --kind.")
    keep_freed_memory()
    device = pick_device(settings.device)
    network = make_aggregator(config)
    _learn_scale(network, parts["train"])
    network.to(device)
    centre, scale = _measure(target, parts["train"])
    judge = Loss(target, settings, _class_weights(target, parts["train"], settings.class_weights), centre, scale)
    per_step = max(settings.bags_per_step, SURVIVAL_BAGS) if target.task == "survival" else settings.bags_per_step
    steps = settings.epochs * -(-len(parts["train"]) // per_step)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    averaged = cast(Aggregator, average.module)
    state = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule}
    key = fit_key(parts, target, recipe, settings)
    history, best, best_epoch, best_state = _restore(checkpoint, state, key, device) or ([], np.inf, 0, None)
    for line in history:
        on_epoch(line)
    for epoch in range(len(history), settings.epochs):
        if best_state is not None and epoch - best_epoch > settings.patience:
            break
        chance = np.random.default_rng([settings.seed, epoch])
        torch.manual_seed(settings.seed * 100_003 + epoch)
        network.train()
        total = 0.0
        order = chance.permutation(len(parts["train"]))
        for first in range(0, len(order), per_step):
            on_step(f"epoch {epoch + 1}, patients", first, len(order))
            step = [parts["train"][i] for i in order[first : first + per_step]]
            for loss in judge.of_step(network, step, chance, device):
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                total += loss.item() * len(step)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            optimizer.zero_grad(set_to_none=True)
        found = judge.of_part(averaged, parts["validation"], device)
        history.append({"epoch": epoch + 1, "train_loss": total / len(order), **found})
        on_epoch(history[-1])
        if not np.isfinite([total, found["loss"]]).all():
            raise SettingsError(
                f"Epoch {epoch + 1}: the loss is no longer a number. Look for infinite features, or lower the learning rate."
            )
        if best_state is None or found["loss"] < best - 1e-4:
            best, best_epoch = found["loss"], epoch
            best_state = {k: v.detach().cpu().clone() for k, v in averaged.state_dict().items()}
        _keep(checkpoint, state, key, (history, best, best_epoch, best_state))
    assert best_state is not None
    network.cpu().load_state_dict(best_state)
    return Fitted(network.eval(), history, best_epoch + 1, centre, scale)


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over the first tenth, then down along a cosine."""
    warm = max(1, steps // 10)
    return (step + 1) / (warm + 1) if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _learn_scale(network: Aggregator, bags: Sequence[Bag]) -> None:
    """Mean and spread of the training features become part of the model."""
    sample = torch.cat([bag.features[:: max(1, len(bag.features) // 500)].float() for bag in bags])
    network.feature_mean.copy_(sample.mean(0))
    network.feature_scale.copy_(sample.std(0).clamp_min(1e-3))


def _measure(target: Target, bags: Sequence[Bag]) -> tuple[float, float]:
    if target.task != "regression":
        return 0.0, 1.0
    values = np.array([bag.truth[0] for bag in bags])
    return float(values.mean()), float(max(values.std(), 1e-12))


def _class_weights(target: Target, bags: Sequence[Bag], wanted: bool) -> Tensor:
    """(2, C): weight of a patient without and with each class; 1 on average."""
    truth = np.stack([bag.truth for bag in bags])[:, : target.outputs]
    if not wanted or not target.is_classification:
        return torch.ones(2, target.outputs)
    with_class = truth.sum(0).clip(1)
    counts = np.stack([(len(truth) - truth.sum(0)).clip(1), with_class])
    if target.task == "multiclass":  # one class per patient: its weight alone counts
        return torch.from_numpy(np.tile(len(truth) / (target.outputs * with_class), (2, 1))).float()
    return torch.from_numpy(len(truth) / (2 * counts)).float()


@dataclass(frozen=True)
class Loss:
    """The loss of bags, for every kind of target."""

    target: Target
    settings: TrainSettings
    weights: Tensor  # (2, C)
    centre: float
    scale: float

    def of_step(
        self, network: Aggregator, step: Sequence[Bag], chance: np.random.Generator, device: torch.device
    ) -> Iterator[Tensor]:
        """Losses to go backward from, one at a time, so that one bag is in memory; a Cox loss needs all bags at once."""
        risks: list[Tensor] = []
        for bag in step:
            kept = some_tiles(len(bag.features), self.settings, chance)
            found, features = run_bag(network, bag, kept, device, self.settings.precision, self.settings.feature_noise)
            if self.target.task == "survival":
                risks.append(found.logits[0])
                continue
            truth = torch.from_numpy(bag.truth).to(device)
            yield (self.of_bag(found, truth) + network.extra_loss(features, truth)) / len(step)
        if risks and any(bag.truth[1] for bag in step):
            yield cox_loss(torch.stack(risks), torch.from_numpy(np.stack([bag.truth for bag in step])).to(device))

    def of_bag(self, found: TileEvidence, truth: Tensor) -> Tensor:
        """Loss of the patient's answer; where there are classes, also of single tiles.

        Every tile of a patient without a class lacks it, the hottest above all; of a patient with it some show it, so the
        hottest few must. Without this, tiles that attention overlooks could show any colour.
        """
        if self.target.task == "regression":
            return functional.mse_loss(found.logits, (truth - self.centre) / self.scale)
        eps, weights = self.settings.label_smoothing, self.weights.to(truth.device)
        weight = torch.where(truth > 0, weights[1], weights[0])  # (C,)
        if self.target.task == "multiclass":
            weight = weight[truth.argmax()]  # a patient has one class, and its weight
            loss = weight * functional.cross_entropy(found.logits[None], truth.argmax()[None], label_smoothing=eps)
        else:
            loss = (
                weight * functional.binary_cross_entropy_with_logits(found.logits, _smooth(truth, eps), reduction="none")
            ).mean()
        if self.settings.tile_loss and self.settings.kind == "slide_transformer":
            loss = loss + self.settings.tile_loss * self.of_tiles(found, truth, weight)
        return loss

    def of_tiles(self, found: TileEvidence, truth: Tensor, weight: Tensor) -> Tensor:
        tiles = found.evidence + found.bias  # (N, C)
        if self.target.task == "multiclass":
            chances = torch.log_softmax(tiles, -1)
            tiles = chances - torch.log1p(-chances.exp().clamp(max=1 - 1e-6))  # log-odds against all other classes
        top = tiles.topk(max(1, round(len(tiles) * self.settings.top_share)), dim=0).values  # (k, C)
        goal = _smooth(truth, self.settings.label_smoothing)
        hottest = functional.binary_cross_entropy_with_logits(top, goal.expand_as(top), reduction="none").mean(0)
        every = functional.binary_cross_entropy_with_logits(tiles, goal.expand_as(tiles), reduction="none").mean(0)
        return (weight * torch.where(truth > 0, hottest, (hottest + every) / 2)).mean()

    def of_part(self, network: Aggregator, bags: Sequence[Bag], device: torch.device) -> dict[str, float]:
        """Loss and main metric of a part. Where there are classes, the log loss at the temperature that calibration would find."""
        network.eval()
        truth = np.stack([bag.truth for bag in bags])
        with torch.inference_mode():
            found = [run_bag(network, bag, None, device, self.settings.precision)[0].logits.cpu() for bag in bags]
        logits = torch.stack(found)
        if self.target.task == "survival":
            loss = cox_loss(logits[:, 0], torch.from_numpy(truth)).item()
        elif self.target.task == "regression":
            loss = functional.mse_loss(logits, (torch.from_numpy(truth) - self.centre) / self.scale).item()
        else:
            loss = calibrated_loss(self.target, logits.numpy().astype(np.float64), truth)
        return {"loss": loss, **main_metric(self.target, truth, logits.numpy().astype(np.float64), self.centre, self.scale)}


def _smooth(truth: Tensor, eps: float) -> Tensor:
    return truth * (1 - eps) + eps / 2


def cox_loss(risks: Tensor, truth: Tensor) -> Tensor:
    """Negative partial log-likelihood of risks (n,) given (n, 2) time and event; ties as Breslow does.

    Source: Cox, "Regression models and life-tables", 1972.
    """
    at_risk = truth[None, :, 0] >= truth[:, None, 0]  # (n, n): who is still observed when i's time comes
    total = torch.logsumexp(risks[None].expand(len(risks), -1).masked_fill(~at_risk, -torch.inf), 1)
    return ((total - risks) * truth[:, 1]).sum() / truth[:, 1].sum().clamp_min(1)


def run_bag(
    network: Aggregator, bag: Bag, kept: Tensor | None, device: torch.device, precision: str = "fp32", noise: float = 0.0
) -> tuple[TileEvidence, Tensor]:
    """Evidence of a bag, or of the tiles `kept` of it; and the features as the network saw them."""
    features, xy_um = (bag.features, bag.xy_um) if kept is None else (bag.features[kept], bag.xy_um[kept])
    features, xy_um = features.to(device).float(), (xy_um - xy_um.min(0).values).float().to(device)
    if noise:
        features = features + noise * network.feature_scale * torch.randn_like(features)
    mixed = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        found: TileEvidence = network(features, xy_um, bag.pitch_um)
    return TileEvidence(found.logits.float(), found.evidence, found.attention, found.bias), features


def some_tiles(tiles: int, settings: TrainSettings, chance: np.random.Generator) -> Tensor:
    """Indices of the tiles of a bag that take part in a step, in grid order."""
    wanted = max(1, min(settings.max_tiles, round(tiles * (1 - settings.tile_dropout * chance.random()))))
    return torch.from_numpy(np.sort(chance.permutation(tiles)[:wanted]))


def fit_key(parts: Parts, target: Target, recipe: dict[str, Any], settings: TrainSettings) -> str:
    """Digest of everything that determines a fitted model: what a checkpoint or a fold must have been made by."""
    patients = [cohort_digest(parts[name]) for name in ("train", "validation")]
    known = [asdict(settings), asdict(target), recipe, patients, STEP_VERSIONS["aggregator"]]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, state: dict[str, Any], key: str, progress: tuple[Any, ...]) -> None:
    buffer = io.BytesIO()
    torch.save({"key": key, "progress": progress, **{name: part.state_dict() for name, part in state.items()}}, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(path: Path, state: dict[str, Any], key: str, device: torch.device) -> tuple[Any, ...] | None:
    """Put the state of a checkpoint back; None if there is none of this very training."""
    if not path.is_file():
        return None
    kept = torch.load(path, map_location=device, weights_only=True)
    if kept["key"] != key:
        return None
    for name, part in state.items():
        part.load_state_dict(kept[name])
    return tuple(kept["progress"])
