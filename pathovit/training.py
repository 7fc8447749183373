"""Fit and validate a SlideTransformer on stored features. A patient, with all slides, is one unit."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pathovit import RESEARCH_USE
from pathovit.aggregator import WINDOW, AggregatorConfig, SlideTransformer, TileEvidence, save_model
from pathovit.errors import SettingsError
from pathovit.features import SlideFeatures
from pathovit.manifest import ManifestRow
from pathovit.pipeline import read_done
from pathovit.provenance import versions
from pathovit.store import FeatureStore, write_atomically

SPLITS = ("train", "validation", "test")
GAP_WINDOWS = 1000  # windows between the slides of one patient: none spans two slides, and all keep their own anchor
BOOTSTRAPS = 1000
FEWEST_FOR_INTERVAL = 20  # patients; an interval over fewer says more than it knows


@dataclass(frozen=True)
class TrainSettings:
    """How a slide model is fitted."""

    kind: str = "slide_transformer"  # or mean, abmil
    epochs: int = 60
    patience: int = 12  # epochs without a better validation loss
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    averaging: float = 0.97  # of the weights over steps; few patients make single steps jumpy
    bags_per_step: int = 4
    max_tiles: int = 4096  # of a bag in one training step; validation sees all
    tile_dropout: float = 0.3  # share of tiles left out of a bag, drawn anew each time
    tile_loss: float = 0.5  # weight of the loss on single tiles (binary targets)
    top_share: float = 0.02  # of a positive bag's tiles that must be positive
    label_smoothing: float = 0.1  # keeps scores from saturating, so that the map is graded
    width: int = 128
    depth: int = 2
    validation_share: float = 0.2
    test_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingsError(f"train.epochs is {self.epochs}, expected at least 1.")


@dataclass(frozen=True)
class Bag:
    """All tiles of one patient, and the truth."""

    patient: str
    features: Tensor  # (N, D) float16
    xy_um: Tensor  # (N, 2)
    pitch_um: float
    label: int
    slides: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """A fitted network and how it got there."""

    network: SlideTransformer
    history: list[dict[str, float]]
    best_epoch: int


def load_bags(
    rows: Sequence[ManifestRow], target: str, features: Path, positive: str | None
) -> tuple[list[Bag], tuple[str, ...], dict[str, Any]]:
    """One bag per patient from the features of a folder, the class names, and the recipe all features share.

    Raises
    ------
    SettingsError : no such column, missing slides, one class only, a patient with two labels, features of two recipes
    """
    labels = _labels(rows, target)
    classes = _class_names(set(labels.values()), positive)
    stored = _stored_slides(features)
    missing = [row for row in rows if row.line in labels and _find(row, stored) is None]
    if missing:
        raise SettingsError(
            f"{len(missing)} slides have no finished features in {features}, e.g. line {missing[0].line}: {missing[0].slide.name}. "
            "Embed them first with: pathovit embed"
        )
    patients: dict[str, list[tuple[ManifestRow, SlideFeatures]]] = defaultdict(list)
    taken: dict[Path, int] = {}
    recipe: dict[str, Any] = {}
    for row in rows:
        if row.line not in labels:
            continue
        folder = _find(row, stored)
        assert folder is not None
        if taken.setdefault(folder, row.line) != row.line:
            raise SettingsError(
                f"Lines {taken[folder]} and {row.line} both mean {folder.name}. Name each slide once, e.g. by its slide_id."
            )
        slide = FeatureStore(folder, row.slide).read(folder.name)
        recipe = _same_recipe(recipe, slide, row)
        patients[row.patient or row.slide.stem].append((row, slide))
    bags = []
    for patient, slides in patients.items():
        names = {labels[row.line] for row, _ in slides}
        if len(names) > 1:
            lines = ", ".join(str(row.line) for row, _ in slides)
            raise SettingsError(
                f"Patient {patient!r} has two labels ({', '.join(sorted(names))}; lines {lines}). Correct the table."
            )
        bags.append(_make_bag(patient, [slide for _, slide in slides], classes.index(names.pop())))
    return bags, classes, recipe


def _labels(rows: Sequence[ManifestRow], target: str) -> dict[int, str]:
    """Label by line; rows without one are left out."""
    if not any(row.label(target) is not None for row in rows):
        columns = sorted({name for row in rows for name, _ in row.labels})
        raise SettingsError(
            f"The table has no column {target!r}. Choose one with --target: {', '.join(columns) or 'there is none'}."
        )
    return {row.line: label for row in rows if (label := row.label(target))}


def _class_names(found: set[str], positive: str | None) -> tuple[str, ...]:
    if len(found) < 2:
        raise SettingsError(f"All slides have one label ({', '.join(found) or 'none'}); at least two classes are needed.")
    names = sorted(found)
    if positive is not None:
        if positive not in names:
            raise SettingsError(f"--positive {positive!r} is not a label of the table: {', '.join(names)}.")
        names = [*(name for name in names if name != positive), positive]
    return tuple(names)


def _stored_slides(features: Path) -> dict[str, Path]:
    """Slide folders by slide_id, by file name and by stem; a name that two slides share is left out."""
    found: dict[str, Path] = {}
    twice: set[str] = set()
    for folder in sorted((features / "slides").glob("*")):
        done = read_done(folder)
        if done is None:
            continue
        file = done["slide"]["file"]
        for name in {folder.name, file, Path(file).stem}:
            if name in found:
                twice.add(name)
            found[name] = folder
    return {name: folder for name, folder in found.items() if name not in twice}


def _find(row: ManifestRow, stored: dict[str, Path]) -> Path | None:
    return stored.get(row.slide.name) or stored.get(row.slide.stem)


def _same_recipe(recipe: dict[str, Any], slide: SlideFeatures, row: ManifestRow) -> dict[str, Any]:
    made_by = slide.attributes["recipe"]
    shared = {"encoder": made_by["encoder"], "tiles": made_by["tiles"]}
    if recipe and shared != recipe:
        raise SettingsError(
            f"Line {row.line}: the features of {row.slide.name} were made by another encoder or other tiles than those before. "
            "Embed all slides with the same settings."
        )
    return shared


def _make_bag(patient: str, slides: Sequence[SlideFeatures], label: int) -> Bag:
    features, places = [], []
    for index, slide in enumerate(slides):
        place = slide.centres_um()[slide.ok]
        place = place - place.min(0) + np.array([index * GAP_WINDOWS * WINDOW * slides[0].pitch_um, 0.0])
        features.append(torch.from_numpy(slide.features[slide.ok]))
        places.append(torch.from_numpy(place))
    return Bag(patient, torch.cat(features), torch.cat(places), slides[0].pitch_um, label, tuple(s.slide_id for s in slides))


def split_patients(bags: Sequence[Bag], fixed: dict[str, str], settings: TrainSettings) -> dict[str, list[Bag]]:
    """Train, validation and test parts, stratified by label; `fixed` (patient -> part) wins where it is given.

    Raises
    ------
    SettingsError : a part would lack a class
    """
    parts: dict[str, list[Bag]] = {name: [] for name in SPLITS}
    chance = np.random.default_rng(settings.seed)
    by_label: dict[int, list[Bag]] = defaultdict(list)
    for bag in sorted(bags, key=lambda bag: bag.patient):
        if bag.patient in fixed:
            parts[fixed[bag.patient]].append(bag)
        else:
            by_label[bag.label].append(bag)
    for label, members in by_label.items():
        if len(members) < 3:
            raise SettingsError(
                f"Class number {label} has {len(members)} patients; at least 3 are needed for train, validation and test."
            )
        order = chance.permutation(len(members))
        test = max(1, round(len(members) * settings.test_share)) if settings.test_share else 0
        validation = max(1, round(len(members) * settings.validation_share))
        for rank, index in enumerate(order):
            part = "test" if rank < test else "validation" if rank < test + validation else "train"
            parts[part].append(members[index])
    for name in ("train", "validation"):
        if len({bag.label for bag in parts[name]}) < 2:
            raise SettingsError(f"The {name} part has slides of one class only. Give more patients, or correct the split column.")
    return parts


def fit(
    parts: dict[str, list[Bag]], config: AggregatorConfig, settings: TrainSettings, on_epoch: Callable[[dict[str, float]], None]
) -> Fitted:
    """Fit on the train part, stop early on the validation part; the best moving average of the network is returned."""
    torch.manual_seed(settings.seed)
    chance = np.random.default_rng(settings.seed)
    network = SlideTransformer(config)
    _standardise(network, parts["train"])
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * max(1, -(-len(parts["train"]) // settings.bags_per_step))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps, pct_start=0.1)
    weights = _class_weights(parts["train"], len(config.classes))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    averaged = cast(SlideTransformer, average.module)
    history: list[dict[str, float]] = []
    best, best_epoch, best_state = np.inf, 0, {k: v.clone() for k, v in network.state_dict().items()}
    for epoch in range(settings.epochs):
        network.train()
        losses = []
        order = chance.permutation(len(parts["train"]))
        for first in range(0, len(order), settings.bags_per_step):
            step = [parts["train"][i] for i in order[first : first + settings.bags_per_step]]
            for bag in step:
                kept = _some_tiles(bag, settings, chance)
                found = network(bag.features[kept].float(), bag.xy_um[kept], bag.pitch_um)
                loss = bag_loss(found, bag.label, config, weights, settings)
                (loss / len(step)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            optimizer.zero_grad(set_to_none=True)
        judged = judge(averaged, parts["validation"], config, weights, settings)
        history.append({"epoch": epoch + 1, "train_loss": float(np.mean(losses)), **judged})
        on_epoch(history[-1])
        if judged["loss"] < best - 1e-4:
            best, best_epoch = judged["loss"], epoch
            best_state = {k: v.clone() for k, v in averaged.state_dict().items()}
        elif epoch - best_epoch >= settings.patience:
            break
    network.load_state_dict(best_state)
    return Fitted(network.eval(), history, best_epoch + 1)


def _standardise(network: SlideTransformer, bags: Sequence[Bag]) -> None:
    """Mean and spread of the training features become part of the model."""
    sample = torch.cat([bag.features[:: max(1, len(bag.features) // 500)].float() for bag in bags])
    network.feature_mean.copy_(sample.mean(0))
    network.feature_scale.copy_(sample.std(0).clamp_min(1e-3))


def _class_weights(bags: Sequence[Bag], classes: int) -> Tensor:
    counts = torch.bincount(torch.tensor([bag.label for bag in bags]), minlength=classes).clamp_min(1).float()
    return counts.sum() / (classes * counts)


def _some_tiles(bag: Bag, settings: TrainSettings, chance: np.random.Generator) -> Tensor:
    tiles = len(bag.features)
    wanted = max(1, min(settings.max_tiles, round(tiles * (1 - settings.tile_dropout * chance.random()))))
    return torch.from_numpy(chance.permutation(tiles)[:wanted])


def bag_loss(found: TileEvidence, label: int, config: AggregatorConfig, weights: Tensor, settings: TrainSettings) -> Tensor:
    """Loss of the slide's answer; for a binary target also of its tiles.

    Every tile of a negative slide is negative; of a positive slide some are positive, so the highest few must be.
    Without this, tiles that attention overlooks could show any colour.
    """
    if config.task != "binary":
        return functional.cross_entropy(
            found.logits[None], torch.tensor([label]), weight=weights, label_smoothing=settings.label_smoothing
        )
    truth = torch.tensor([label * (1 - settings.label_smoothing) + settings.label_smoothing / 2])
    loss = functional.binary_cross_entropy_with_logits(found.logits, truth)
    if settings.tile_loss:
        tiles = found.evidence[:, 0] + found.bias
        if label:
            tiles = tiles.topk(max(1, round(len(tiles) * settings.top_share))).values
        loss = loss + settings.tile_loss * functional.binary_cross_entropy_with_logits(tiles, truth.expand(len(tiles)))
    return loss * weights[label]


def judge(
    network: SlideTransformer, bags: Sequence[Bag], config: AggregatorConfig, weights: Tensor, settings: TrainSettings
) -> dict[str, float]:
    """Mean loss and AUROC of a part."""
    network.eval()
    losses, answers = [], []
    with torch.inference_mode():
        for bag in bags:
            found = network(bag.features.float(), bag.xy_um, bag.pitch_um)
            losses.append(bag_loss(found, bag.label, config, weights, settings).item())
            answers.append(network.probabilities(found.logits).numpy())
    truth = np.array([bag.label for bag in bags])
    return {"loss": float(np.mean(losses)), "auroc": auroc(truth, np.array(answers))}


def auroc(truth: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Area under the ROC curve (n,), (n, C); the mean over classes for more than two; NaN if a class is absent."""
    from sklearn.metrics import roc_auc_score

    present = len(np.unique(truth))
    if present < probabilities.shape[1]:
        return float("nan")
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(truth, probabilities[:, 1]))
    return float(roc_auc_score(truth, probabilities, multi_class="ovr", labels=range(probabilities.shape[1])))


def with_interval(
    metric: Callable[[NDArray[Any], NDArray[Any]], float], truth: NDArray[np.int64], values: NDArray[np.float64], seed: int
) -> dict[str, float | None]:
    """A metric with its 95 % bootstrap interval over patients; without one (None) for fewer than 20."""
    if len(truth) < FEWEST_FOR_INTERVAL:
        value = metric(truth, values)
        return {"value": round(value, 4) if np.isfinite(value) else None, "low": None, "high": None}
    chance = np.random.default_rng(seed)
    draws = [metric(truth[rows], values[rows]) for rows in chance.integers(0, len(truth), (BOOTSTRAPS, len(truth)))]
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (np.nan, np.nan)
    whole = {"value": metric(truth, values), "low": float(low), "high": float(high)}
    return {key: (round(value, 4) if np.isfinite(value) else None) for key, value in whole.items()}


def train(
    rows: Sequence[ManifestRow],
    features: Path,
    model: Path,
    target: str = "label",
    positive: str | None = None,
    settings: TrainSettings | None = None,
    on_epoch: Callable[[dict[str, float]], None] = lambda line: None,
) -> dict[str, Any]:
    """Fit a slide model and write its folder; returns the card."""
    settings = settings or TrainSettings()
    bags, classes, recipe = load_bags(rows, target, features, positive)
    parts = split_patients(bags, _fixed_parts(rows), settings)
    task = "binary" if len(classes) == 2 else "multiclass"
    config = AggregatorConfig(recipe["encoder"]["dim"], classes, task, settings.width, settings.depth, kind=settings.kind)
    fitted = fit(parts, config, settings, on_epoch)
    metrics = {name: evaluate(fitted.network, part, settings.seed) for name, part in parts.items() if part and name != "train"}
    card = {
        "research_use": RESEARCH_USE,
        "target": target,
        "encoder": {**recipe["encoder"], "mpp": recipe["tiles"]["mpp"], "stride_px": recipe["tiles"]["stride_px"]},
        "training": asdict(settings),
        "patients": {name: len(part) for name, part in parts.items()},
        "training_set_sha256": _digest(parts["train"]),
        "best_epoch": fitted.best_epoch,
        "metrics": metrics,
        "versions": versions(),
    }
    save_model(model, fitted.network, card)
    _write_split(model, parts)
    _draw_curves(model / "training.png", fitted)
    write_atomically(model / "MODEL_CARD.md", describe_model(card, classes).encode())
    return card


def _fixed_parts(rows: Sequence[ManifestRow]) -> dict[str, str]:
    """Part by patient, from a column `split` if the table has one."""
    fixed: dict[str, str] = {}
    for row in rows:
        part = row.label("split")
        if not part:
            continue
        if part not in SPLITS:
            raise SettingsError(f"Line {row.line}: split is {part!r}, expected {', '.join(SPLITS)}.")
        patient = row.patient or row.slide.stem
        if fixed.setdefault(patient, part) != part:
            raise SettingsError(f"Line {row.line}: patient {patient!r} is in two parts of the split. Keep patients together.")
    return fixed


def evaluate(network: SlideTransformer, bags: Sequence[Bag], seed: int) -> dict[str, Any]:
    """AUROC and accuracy of a part with intervals, and its size."""
    network.eval()
    with torch.inference_mode():
        found = [network.probabilities(network(bag.features.float(), bag.xy_um, bag.pitch_um).logits).numpy() for bag in bags]
    truth, answers = np.array([bag.label for bag in bags]), np.array(found, np.float64)
    return {
        "patients": len(bags),
        "auroc": with_interval(auroc, truth, answers, seed),
        "accuracy": with_interval(lambda t, p: float((p.argmax(1) == t).mean()), truth, answers, seed),
    }


def _digest(bags: Sequence[Bag]) -> str:
    lines = sorted(json.dumps([bag.patient, bag.label, sorted(bag.slides)]) for bag in bags)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_split(model: Path, parts: dict[str, list[Bag]]) -> None:
    lines = ["slide_id,split"] + [f"{slide},{name}" for name, part in parts.items() for bag in part for slide in bag.slides]
    write_atomically(model / "split.csv", ("\n".join(lines) + "\n").encode())


def _draw_curves(path: Path, fitted: Fitted) -> None:
    """Loss and AUROC by epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in fitted.history]
    left.plot(epochs, [line["train_loss"] for line in fitted.history], label="train")
    left.plot(epochs, [line["loss"] for line in fitted.history], label="validation")
    right.plot(epochs, [line["auroc"] for line in fitted.history], color="C1", label="validation")
    for axes, name in ((left, "loss"), (right, "AUROC")):
        axes.axvline(fitted.best_epoch, color="grey", linestyle=":", label="kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.legend()
    figure.suptitle(RESEARCH_USE, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def describe_model(card: dict[str, Any], classes: Sequence[str]) -> str:
    """MODEL_CARD.md, written from the card."""
    encoder, lines = card["encoder"], []
    for part, found in card["metrics"].items():
        for name in ("auroc", "accuracy"):
            m = found[name]
            interval = (
                f"(95 % interval {m['low']} to {m['high']})" if m["low"] is not None else "(too few patients for an interval)"
            )
            figure = f"{m['value']} {interval}" if m["value"] is not None else "not defined"
            lines.append(f"| {name} | {part} | {found['patients']} | {figure} |")
    table = "\n".join(lines)
    return f"""# Slide model: {" / ".join(classes)}

**{card["research_use"]}**

* Target: column `{card["target"]}`; classes {", ".join(classes)}.
* Features: encoder `{encoder["encoder"]}` (weights SHA-256 `{encoder["weights_sha256"][:16]}...`), tiles of {encoder["tile_px"]} px at {encoder["mpp"]} um/px.
* Patients: {", ".join(f"{name} {count}" for name, count in card["patients"].items())}. Training set SHA-256 `{card["training_set_sha256"][:16]}...`.
* Kept: epoch {card["best_epoch"]}.

| metric | part | patients | value |
|---|---|---|---|
{table}

Limits: it has seen only slides like those of its training table. Check it on your own slides before you rely on any of its output.
"""
