"""model.json: what a slide model was made for, from what, and how well it does; and MODEL_CARD.md, the same to be read.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathovit.errors import WeightsError
from pathovit.model.calibration import Calibration
from pathovit.model.targets import Target
from pathovit.outputs.recipe import Values
from pathovit.settings import AggregatorConfig

REFERENCE = "reference"  # the bundled model

BUNDLED = Path(__file__).parent / "bundled"
NEEDED = ("config", "encoder", "target", "calibration", "weights_sha256")
NO_EVIDENCE = ("transmil",)  # kinds whose answer is no sum over tiles
SAID = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "c_index": "C-index",
    "mae": "mean absolute error",
    "r2": "R2",
}


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
    def target(self) -> Target:
        asked = self.values["target"]
        return Target(asked["task"], tuple(asked["columns"]), tuple(asked["classes"]))

    @property
    def calibration(self) -> Calibration:
        return Calibration.from_dict(self.values["calibration"])

    @property
    def trained(self) -> Trained:
        found = self.values["encoder"]
        return Trained(found["encoder"], found["weights_sha256"], found["dim"], found["tile_px"], found["mpp"])

    @property
    def shaping(self) -> Values:
        """What shaped the features it learned from; empty for models that do not say it."""
        return dict(self.values.get("shaping", {}))

    @property
    def demonstration(self) -> bool:
        return bool(self.values.get("demonstration", False))

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
        values = json.loads(card_path.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{card_path}: damaged ({error}). Train the model again.") from error
    missing = [key for key in NEEDED if key not in values]
    if missing:
        raise WeightsError(f"{card_path}: of another version ({', '.join(missing)} missing). Train the model again.")
    card = ModelCard(values)
    try:
        _ = card.config, card.target, card.calibration, card.trained
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{card_path}: of another version ({error}). Train the model again.") from error
    return path.resolve(), card


def model_digest(card: ModelCard) -> str:
    """SHA-256 of everything in a model that shapes an answer: weights, configuration, target, calibration, features."""
    known = {key: card.values[key] for key in NEEDED}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def describe_model(model: ModelCard) -> str:
    """MODEL_CARD.md, written from the card."""
    card = model.values
    encoder, target, calibration = card["encoder"], card["target"], card["calibration"]
    parts = ", ".join(f"{name} {count} ({card['slides'][name]} slides)" for name, count in card["patients"].items() if count)
    limits = "\n".join(f"* {limit}" for limit in card["limits"])
    picture = "\n![Evaluation](evaluation.png)\n\n![Training](training.png)\n"
    return f"""# Slide model: {" / ".join(target["classes"])}

**{card["research_use"]}**

* Intended use: {card["intended_use"]}
* Target: {target["task"]}; column {", ".join(f"`{c}`" for c in target["columns"])}; {", ".join(target["classes"])}.
* Aggregator: {card["config"]["kind"]}, {card["config"]["feature_dim"]} features in. Seed {card["training"]["seed"]}, epoch {card["best_epoch"]} kept.
* Features: encoder `{encoder["encoder"]}` (weights SHA-256 `{encoder["weights_sha256"][:16]}...`), tiles of {encoder["tile_px"]} px at {encoder["mpp"]} um/px.
* Patients: {parts}. Training set SHA-256 `{card["training_set_sha256"][:16]}...`; slides by part in `split.csv`.
* Calibration, from {calibration["patients"]} validation patients: {_calibration(calibration, target)}

## How well it does

{_metrics_table(card)}

{_few(card["few"])}
{_heatmap(card["heatmap_check"])}
{_crossed(card["cross_validation"])}{_abstention(card["abstention"])}{picture}
## Limits

{limits}
"""


def _metrics_table(card: Values) -> str:
    parts = dict(card["metrics"])
    if card["cross_validation"]:
        parts = {f"cross-validation, {card['cross_validation']['folds']} folds": card["cross_validation"]} | parts
    lines = ["| metric | part | patients | value (95 % interval) |", "|---|---|---|---|"]
    for part, found in parts.items():
        remark = {"train": " (learned from)", "validation": " (chose the epoch and the calibration)"}.get(part, "")
        for name, metric in found.items():
            if name in SAID:
                lines.append(f"| {SAID[name]} | {part}{remark} | {found['patients']} | {say_metric(metric)} |")
    return "\n".join(lines)


def say_metric(metric: dict[str, Any]) -> str:
    """A metric with its interval, as text."""
    if metric["value"] is None:
        return "not defined"
    if metric.get("learned_from"):
        return str(metric["value"])
    if metric["low"] is None:
        return f"{metric['value']} (too few patients for an interval)"
    return f"{metric['value']} ({metric['low']} to {metric['high']})"


def _calibration(calibration: dict[str, Any], target: dict[str, Any]) -> str:
    if target["task"] == "regression":
        return "residuals, for intervals."
    if target["task"] == "survival":
        return "none; the risk has no unit."
    counted = ", ".join(str(n) for n in calibration["hot_patients"])
    return f"temperature {calibration['temperature']:.3f}, shift {', '.join(f'{s:.3f}' for s in calibration['shift'])}. {_half(counted)}"


def _half(counted: str) -> str:
    return (
        "Tile score 0.5 is the evidence that at most 5 % of patients without the class are expected to reach anywhere; it was found on "
        f"{counted} such patients (fewer than 19 cannot promise it: it is then the highest that they reached)."
    )


def _heatmap(check: dict[str, Any]) -> str:
    if "remark" in check:
        return f"Heatmap: {check['remark']}."
    text = f"Heatmap ({check['part']} part): tiles add up to the logit within {check['largest_sum_error']:.1g} on {check['slides']} patients."
    if "deletion" not in check:
        return text
    rows = [
        "",
        "",
        "| mean probability while tiles are | evidence | attention | random | p against attention | p against random |",
        "|---|---|---|---|---|---|",
    ]
    for kind, better in (("deletion", "taken away (lower is better)"), ("insertion", "put back (higher is better)")):
        f = check[kind]
        p = [_p(f[f"p_value_against_{other}"]) for other in ("attention", "random")]
        rows.append(f"| {better} | {f['evidence']} | {f['attention']} | {f['random']} | {p[0]} | {p[1]} |")
    return text + "\n".join(rows)


def _p(value: float | None) -> str:
    return "too few" if value is None else f"{value:.2g}"


def _few(said: list[str]) -> str:
    if not said:
        return ""
    return "What so few patients can show at best:\n\n" + "\n".join(f"* {text}" for text in said) + "\n"


def _crossed(found: dict[str, Any] | None) -> str:
    if not found or not found.get("abstention"):
        return ""
    return f"\nAbstention (cross-validation): {say_abstention(found['abstention'])}.\n"


def _abstention(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    remark = ", which set the limits" if found["part"] == "validation" else ""
    return f"\nAbstention ({found['part']} part{remark}): {say_abstention(found)}.\n"


def say_abstention(found: dict[str, Any]) -> str:
    """How often the model does not answer, and whether its promise holds, as text."""
    coverage = "none to judge by" if found["coverage"] is None else f"{found['coverage']:.1%}"
    text = (
        f"at an error rate of {found['error_rate']:g}, {found['unsure']:.1%} of {found['answers']} answers are unsure "
        f"({found['unsure_by_probability']:.1%} by their probabilities alone; {found['strange']:.1%} of patients are unlike the cohort); "
        f"of the other patients the truth is among the possible answers in {coverage}"
    )
    return text + (f". {found['remark']}" if found["remark"] else "")
