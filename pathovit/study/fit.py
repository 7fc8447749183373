"""Fit an aggregator on stored features. A patient, with all slides, is one unit: in the split and in the loss.

A plain loop, one bag at a time; it can be killed at any epoch and goes on to the same model.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from pathovit.errors import SettingsError
from pathovit.files import write_atomically
from pathovit.machine import keep_freed_memory, pick_device
from pathovit.model.aggregator import Aggregator
from pathovit.model.baselines import make_aggregator
from pathovit.model.targets import Target, Truth
from pathovit.model.targets.binary import Binary
from pathovit.outputs.provenance import STEP_VERSIONS
from pathovit.outputs.recipe import Values
from pathovit.settings import AggregatorConfig, TrainSettings
from pathovit.study.cohort import Bag, cohort_digest
from pathovit.study.losses import Loss

PATIENTS_A_BAG = 25  # in the training part, for every bag of a step
LEAST_STEPS = 100  # before, a validation part of few patients is right by chance rather than by what was learned

Parts = dict[str, list[Bag]]
OnEpoch = Callable[[dict[str, float]], None]
OnStep = Callable[[str, int, int], None]  # what is being done, how much of it is done, and how much there is


@dataclass(frozen=True)
class Fitted:
    """A fitted network and how it got there."""

    network: Aggregator
    history: list[dict[str, float]]
    best_epoch: int
    centre: float  # of a measurement, in the training part
    scale: float


def fit(
    parts: Parts, target: Target, recipe: Values, settings: TrainSettings, on_epoch: OnEpoch, checkpoint: Path,
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
    with torch.random.fork_rng():  # the caller's own chance goes on as it was
        return _fit(parts, target, recipe, settings, on_epoch, checkpoint, on_step)


def _fit(
    parts: Parts, target: Target, recipe: Values, settings: TrainSettings, on_epoch: OnEpoch, checkpoint: Path,
    on_step: OnStep,
) -> Fitted:  # fmt: skip
    torch.manual_seed(settings.seed)
    config = AggregatorConfig(recipe["encoder"]["dim"], target.outputs, settings.width, settings.depth, kind=settings.kind)
    if settings.kind == "clam_sb" and not isinstance(target.kind, Binary):
        raise SettingsError("clam_sb is made for binary targets. Use another --kind.")
    keep_freed_memory()
    device = pick_device(settings.device)
    network = make_aggregator(config)
    _learn_scale(network, parts["train"])
    if any(bag.marks is not None for bag in parts["train"]) and not _has_evidence(network, parts["train"][0]):
        raise SettingsError(f"{config.kind} has no evidence of single tiles that regions could teach. Use another --kind.")
    network.to(device)
    truth = np.stack([bag.truth for bag in parts["train"] if bag.is_labelled])

    centre, scale = target.kind.measure(truth)
    judge = Loss(target, settings, _class_weights(target, truth, settings.class_weights), centre, scale)
    # Of few patients each is a step of its own: there would be too few steps to get anywhere.
    per_step = max(1, min(settings.bags_per_step, len(parts["train"]) // PATIENTS_A_BAG), target.kind.least_bags)
    earliest = LEAST_STEPS // -(-len(parts["train"]) // per_step)
    steps = settings.epochs * -(-len(parts["train"]) // per_step)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    average = AveragedModel(
        network, avg_fn=lambda kept, new, steps: torch.lerp(new, kept, averaging(int(steps), settings.averaging))
    )
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
        if best_state is None or epoch < earliest or found["loss"] < best - 1e-4:
            best, best_epoch = found["loss"], epoch
            best_state = {k: v.detach().cpu().clone() for k, v in averaged.state_dict().items()}
        _keep(checkpoint, state, key, (history, best, best_epoch, best_state))
    assert best_state is not None
    network.cpu().load_state_dict(best_state)
    return Fitted(network.eval(), history, best_epoch + 1, centre, scale)


def averaging(steps: int, most: float) -> float:
    """Weight of what was averaged so far: little in the first steps, or the average would stay where the network began."""
    return min(most, (1 + steps) / (10 + steps))


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over the first tenth, then down along a cosine."""
    warm = max(1, steps // 10)
    return (step + 1) / (warm + 1) if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _learn_scale(network: Aggregator, bags: Sequence[Bag]) -> None:
    """Mean and spread of the training features become part of the model."""
    sample = torch.cat([bag.features[:: max(1, len(bag.features) // 500)].float() for bag in bags])
    network.feature_mean.copy_(sample.mean(0))
    network.feature_scale.copy_(sample.std(0).clamp_min(1e-3))


def _has_evidence(network: Aggregator, bag: Bag) -> bool:
    """Whether it says something of single tiles, by a few of them."""
    with torch.inference_mode():
        found = network.eval()(bag.features[:8].float(), bag.xy_um[:8].float(), bag.pitch_um)
    return bool(found.evidence.isfinite().all())


def _class_weights(target: Target, truth: Truth, wanted: bool) -> Tensor:
    """(2, C): weight of a patient without and with each class; 1 on average."""
    return torch.from_numpy(target.kind.class_weights(truth)).float() if wanted else torch.ones(2, target.outputs)


def fit_key(parts: Parts, target: Target, recipe: Values, settings: TrainSettings) -> str:
    """Digest of everything that determines a fitted model: what a checkpoint or a fold must have been made by."""
    patients = [cohort_digest(parts[name]) for name in ("train", "validation")]
    known = [asdict(settings), asdict(target), recipe, patients, STEP_VERSIONS["aggregator"], STEP_VERSIONS["training"]]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, state: Mapping[str, Any], key: str, progress: tuple[Any, ...]) -> None:
    buffer = io.BytesIO()
    torch.save({"key": key, "progress": progress, **{name: part.state_dict() for name, part in state.items()}}, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(path: Path, state: Mapping[str, Any], key: str, device: torch.device) -> tuple[Any, ...] | None:
    """Put the state of a checkpoint back; None if there is none of this very training."""
    if not path.is_file():
        return None
    kept = torch.load(path, map_location=device, weights_only=True)
    if kept["key"] != key:
        return None
    for name, part in state.items():
        part.load_state_dict(kept[name])
    return tuple(kept["progress"])
