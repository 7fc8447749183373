"""MODEL_CARD.md: the card of a model, to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathovit.model.card import ModelCard
from pathovit.model.judged import SAID, Abstention, Metrics, OfSize, Pooling, say_left_out
from pathovit.text import counted

Values = Mapping[str, Any]


def describe_taught(model: ModelCard) -> str:
    """MODEL_CARD.md of a model that was taught on painted tiles."""
    card, trained = model.values, model.trained
    limits = "\n".join(f"* {limit}" for limit in card["limits"])
    figures = "\n".join(f"* {said}" for said in say_left_out(card["taught"]["left_out"]))
    return f"""# Taught model: {" / ".join(model.target.classes)}

**{card["research_use"]}**

* Intended use: {card["intended_use"]}
* Features: encoder `{trained.encoder}` (weights SHA-256 `{trained.weights_sha256[:16]}...`), tiles of {trained.tile_px} px at {trained.mpp} um/px.
* {say_taught(card["taught"])}

## How well it does

{figures}
{_robustness(card.get("robustness"))}
## Limits

{limits}
"""


def say_taught(taught: Values) -> str:
    """What it was taught on."""
    tiles = ", ".join(f"{name} {count}" for name, count in taught["tiles"].items())
    slides = counted(taught["slides"], "slide")
    patients = counted(taught["patients"], "patient") if taught["patients"] else "of patients that are not known"
    return f"Taught on {sum(taught['tiles'].values())} painted tiles ({tiles}) of {slides}, {patients}."


def describe_model(model: ModelCard) -> str:
    """MODEL_CARD.md, written from the card."""
    card, target, trained, config = model.values, model.target, model.trained, model.config
    parts = ", ".join(f"{name} {count} ({card['slides'][name]} slides)" for name, count in card["patients"].items() if count)
    limits = "\n".join(f"* {limit}" for limit in card["limits"])
    picture = "\n![Evaluation](evaluation.png)\n\n![Training](training.png)\n"
    return f"""# Slide model: {" / ".join(target.classes)}

**{card["research_use"]}**

* Intended use: {card["intended_use"]}{f"{chr(10)}* Made for: {model.domain}" if model.domain else ""}
* Target: {target.task}; column {", ".join(f"`{c}`" for c in target.columns)}; {", ".join(target.classes)}.
* Aggregator: {config.kind}, {config.feature_dim} features in. Seed {card["training"]["seed"]}, epoch {card["best_epoch"]} kept.
* Features: encoder `{trained.encoder}` (weights SHA-256 `{trained.weights_sha256[:16]}...`), tiles of {trained.tile_px} px at {trained.mpp} um/px.
* Patients: {parts}. Training set SHA-256 `{card["training_set_sha256"][:16]}...`; slides by part in `split.csv`.
* Calibration, from {model.calibration.patients} validation patients: {target.kind.say_calibration(model.calibration)}

## How well it does

{_metrics_table(card)}

{_sizes(card.get("by_size", []))}{_pooling(card.get("plain_pooling"))}{_few(card.get("few", []))}
{_heatmap(card["heatmap_check"])}
{_regions(card.get("regions"))}{_crossed(card.get("cross_validation"))}{_abstention(card.get("abstention"))}{_robustness(card.get("robustness"))}{picture}
## Limits

{limits}
"""


def _metrics_table(card: Values) -> str:
    parts = {name: Metrics.from_json(found) for name, found in card["metrics"].items()}
    if crossed := card.get("cross_validation"):
        parts = {f"cross-validation, {crossed['folds']} folds": Metrics.from_json(crossed)} | parts
    lines = ["| metric | part | patients | value (95 % interval) |", "|---|---|---|---|"]
    for part, metrics in parts.items():
        remark = {"train": " (learned from)", "validation": " (chose the epoch and the calibration)"}.get(part, "")
        lines += [f"| {SAID[name]} | {part}{remark} | {metrics.patients} | {metric} |" for name, metric in metrics.found.items()]
    return "\n".join(lines)


def _heatmap(check: Values) -> str:
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


def _regions(found: Values | None) -> str:
    if not found:
        return ""
    tiles = ", ".join(f"{name} {count}" for name, count in found["tiles"].items())
    text = f"\n\nRegions of {counted(found['patients'], 'patient')} taught single tiles ({tiles}); {found['unlabelled']} of these patients have no label.\n"
    if not found["localisation"]:
        return text
    judged = Metrics.from_json(found["localisation"])
    lines = [
        f"| the map where regions are drawn, {found['part']} part, {counted(judged.patients, 'patient')} | mean over patients (95 % interval) |",
        "|---|---|",
    ]
    return text + "\n" + "\n".join(lines + [f"| {SAID[name]} | {metric} |" for name, metric in judged.found.items()]) + "\n"


def _robustness(found: Values | None) -> str:
    if not found:
        return ""
    stain, rows = found["families"]["stain"], []
    for family, line in found["families"].items():
        rows.append(
            f"| {family} | {_share(line['flipped'])} | {_share(line['lost'])} | {line['change']} | {_share(line['map_crossed'])} |"
        )
    said = (
        f"{stain['flipped']:.1%} of {stain['answers']} answers flip"
        if stain["flipped"] is not None
        else "there was no answer that could flip"
    )
    return (
        f"\nRobustness (`pathovit robustness`, {counted(found['slides'], 'slide')}): under simulated staining {said}.\n\n| the same slides, with other | answers that flip | answers lost | number moves | tiles across 0.5 |\n"
        "|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _p(value: float | None) -> str:
    return "too few" if value is None else f"{value:.2g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _sizes(found: Sequence[Values]) -> str:
    return "".join(f"* By the amount of tissue: {OfSize(**one)}.\n" for one in found) + "\n" if found else ""


def _pooling(found: Values | None) -> str:
    return f"Beside it, {Pooling(**found)}.\n\n" if found else ""


def _few(said: Sequence[str]) -> str:
    if not said:
        return ""
    return "What so few patients can show at best:\n\n" + "\n".join(f"* {text}" for text in said) + "\n"


def _crossed(found: Values | None) -> str:
    if not found or not found.get("abstention"):
        return ""
    return f"\nAbstention (cross-validation): {Abstention.from_json(found['abstention'])}.\n"


def _abstention(found: Values | None) -> str:
    if not found:
        return ""
    remark = ", which set the limits" if found["part"] == "validation" else ""
    return f"\nAbstention ({found['part']} part{remark}): {Abstention.from_json(found)}.\n"
