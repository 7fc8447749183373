"""A study: a cohort in, a model folder out. Split, fit, calibrate, evaluate, and write down what was found.

MODEL/
  model.safetensors, model.json    the model and its card
  MODEL_CARD.md                    the card, to be read
  split.csv                        which slide was in which part
  predictions.csv                  what it said of validation and test patients
  training.png, evaluation.png     curves
  folds/1..K/                      with --folds: one such model per fold, each judged on patients it has not seen
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pathovit import RESEARCH_USE
from pathovit.calibration import Calibration, calibrate, margins, possible_answers, probabilities, scaling
from pathovit.cohort import Bag, Cohort, assign_folds, check_part, cohort_digest, split_patients
from pathovit.errors import SettingsError
from pathovit.evaluation import Answers, answers_csv, evaluate
from pathovit.faithfulness import called_class, check_bag, summarise
from pathovit.figures import evaluation_picture, training_curves
from pathovit.model_card import describe_model, read_card
from pathovit.novelty import Novelty
from pathovit.provenance import versions
from pathovit.settings import AnswerSettings
from pathovit.slide_model import SlideModel, load_model, save_model
from pathovit.store import to_json, write_atomically
from pathovit.targets import Target
from pathovit.training import Fitted, OnEpoch, Parts, TrainSettings, fit, fit_key

CHECKPOINT = "training.ckpt"
CHECKED_BAGS, CHECKED_TILES = 20, 60_000  # patients, and their tiles, whose heatmaps are checked by deletion and insertion
Say = Callable[[str], None]


def answer(model: SlideModel, bags: Sequence[Bag]) -> Answers:
    """Calibrated answers for patients."""
    logits = np.stack([model.look(bag.features, bag.xy_um, bag.pitch_um).logits for bag in bags])
    if model.target.is_classification:
        values = probabilities(model.target, logits)
    else:
        values = logits * model.calibration.scale + model.calibration.centre
    return Answers(model.target, tuple(bag.patient for bag in bags), np.stack([bag.truth for bag in bags]), values)


def train_model(
    cohort: Cohort, folder: Path, settings: TrainSettings, folds: int | None = None, on_epoch: OnEpoch = lambda line: None,
    say: Say = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Fit a model and write its folder; returns the card. With `folds`, first one model per fold, for its figures.

    Raises
    ------
    SettingsError : too few patients for the parts or folds
    """
    parts = split_patients(cohort, settings.validation_share, 0.0 if folds else settings.test_share, settings.seed)
    crossed = cross_validate(cohort, folder, settings, folds, on_epoch, say) if folds else None
    say("model of all patients" if folds else "model")
    return _train_one(cohort, folder, settings, parts, on_epoch, crossed)


def cross_validate(
    cohort: Cohort, folder: Path, settings: TrainSettings, folds: int, on_epoch: OnEpoch, say: Say
) -> dict[str, Any]:
    """Metrics over all patients, each answered by the model that has not seen its fold. A finished fold is not fitted again."""
    if folds < 2:
        raise SettingsError(f"--folds is {folds}, expected at least 2.")
    if cohort.fixed:
        raise SettingsError("The table has a column `split`, and --folds makes its own. Leave out one of the two.")
    place = assign_folds(cohort.bags, cohort.target, folds, settings.seed)
    splits = []
    for fold in range(folds):  # all are checked before the first is fitted
        test = [bag for bag, at in zip(cohort.bags, place, strict=True) if at == fold]
        rest = replace(cohort, bags=tuple(bag for bag, at in zip(cohort.bags, place, strict=True) if at != fold))
        splits.append(split_patients(rest, settings.validation_share, 0.0, settings.seed) | {"test": test})
    found: list[Answers] = []
    for fold, parts in enumerate(splits, start=1):
        say(f"fold {fold} of {folds}")
        here = folder / "folds" / str(fold)
        if not _is_done(here, fit_key(parts, cohort.target, cohort.recipe, settings)):
            _train_one(cohort, here, settings, parts, on_epoch, None)
        found.append(answer(load_model(here), parts["test"]))
    pooled = Answers(
        cohort.target, tuple(name for a in found for name in a.patients), np.concatenate([a.truth for a in found]),
        np.concatenate([a.values for a in found]),
    )  # fmt: skip
    write_atomically(folder / "folds" / "predictions.csv", answers_csv(pooled))
    metrics = evaluate(pooled, settings.seed)
    evaluation_picture(folder / "folds" / "evaluation.png", pooled, metrics, f"{folds}-fold cross-validation")
    return {"folds": folds, **metrics}


def _is_done(folder: Path, key: str) -> bool:
    """A fold is known by what it was fitted from, not by its folder."""
    return (folder / "model.json").is_file() and bool(read_card(folder)[1].get("fit_key") == key)


def _train_one(
    cohort: Cohort, folder: Path, settings: TrainSettings, parts: Parts, on_epoch: OnEpoch, crossed: dict[str, Any] | None
) -> dict[str, Any]:
    for name in ("train", "validation"):
        check_part(name, parts[name], cohort.target)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = cohort.recipe["encoder"]
    fitted = fit(parts, cohort.target, cohort.recipe, settings, on_epoch, folder / CHECKPOINT)
    model = _calibrated(fitted, cohort, parts)
    answers = {name: answer(model, parts[name]) for name in ("validation", "test") if parts[name]}
    metrics = {name: evaluate(found, settings.seed) for name, found in answers.items()}
    judged = "test" if parts["test"] else "validation"
    card = {
        "research_use": RESEARCH_USE,
        "encoder": {**encoder, "mpp": cohort.recipe["tiles"]["mpp"], "stride_px": cohort.recipe["tiles"]["stride_px"]},
        "training": asdict(settings),
        "fit_key": fit_key(parts, cohort.target, cohort.recipe, settings),
        "patients": {name: len(part) for name, part in parts.items()},
        "slides": {name: sum(len(bag.slides) for bag in part) for name, part in parts.items()},
        "training_set_sha256": cohort_digest(parts["train"]),
        "best_epoch": fitted.best_epoch,
        "metrics": metrics,
        "cross_validation": crossed,
        "heatmap_check": check_model(model, parts[judged]) | {"part": judged},
        "abstention": abstention(model, answers[judged]) | {"part": judged} if cohort.target.is_classification else None,
        "intended_use": INTENDED_USE,
        "limits": [*LIMITS, *([MANY_SLIDES] if any(len(bag.slides) > 1 for bag in cohort.bags) else [])],
        "versions": versions(),
    }
    evaluation_picture(
        folder / "evaluation.png", answers[judged], metrics[judged], f"{judged} part, {len(parts[judged])} patients"
    )
    training_curves(
        folder / "training.png", fitted.history, fitted.best_epoch, f"{settings.kind}, epoch {fitted.best_epoch} kept"
    )
    _write_parts(folder, parts, answers)
    saved = save_model(folder, replace(model, card=card), describe_model)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return saved.card


INTENDED_USE = "Research on slides like those of its training set. A person checks every answer against the slide."
LIMITS = (
    "Its figures hold for slides like those of its table. Nothing is known of it on other scanners, stains and organs.",
    "Temperature, score scale, abstention and novelty limits were learned on the validation part, which also chose the epoch.",
    "The novelty score flags slides that differ from the cohort; a slide that is not flagged can still be wrong.",
)


MANY_SLIDES = "Its answers are calibrated for patients with all their slides; `pathovit run` answers slide by slide, `pathovit evaluate` by patient."


def _calibrated(fitted: Fitted, cohort: Cohort, parts: Parts) -> SlideModel:
    """The model with calibration and novelty learned on the validation part."""
    target, truth = cohort.target, np.stack([bag.truth for bag in parts["validation"]])
    bare = SlideModel(fitted.network, target, Calibration(), None, {}, "")
    raw = np.stack([bare.look(bag.features, bag.xy_um, bag.pitch_um).logits for bag in parts["validation"]])
    scaled = replace(bare, calibration=scaling(target, raw, truth, fitted.centre, fitted.scale))
    seen = [scaled.look(bag.features, bag.xy_um, bag.pitch_um) for bag in parts["validation"]]
    hottest = np.stack([margins(target, bag.evidence + bag.bias).max(0) for bag in seen])
    calibration = calibrate(target, scaled.calibration, np.stack([bag.logits for bag in seen]), truth, hottest)
    slides = {name: [part.numpy() for bag in parts[name] for part in bag.by_slide()] for name in ("train", "validation")}
    return replace(bare, calibration=calibration, novelty=Novelty.fit(slides["train"], slides["validation"]))


def check_model(model: SlideModel, bags: Sequence[Bag]) -> dict[str, Any]:
    """The heatmap check over patients: all for the sum, some of those with a class called for deletion and insertion."""
    checks: list[dict[str, Any]] = []
    for bag in bags:
        seen = model.look(bag.features, bag.xy_um, bag.pitch_um)
        if not np.isfinite(seen.evidence).all():
            return {"slides": 0, "remark": f"a {model.network.config.kind} model has no evidence of single tiles"}
        total = (seen.attention[:, None] * seen.evidence).sum(0) + seen.bias
        check: dict[str, Any] = {"sum_error": float(np.abs(total - seen.logits).max()), "class": None}
        column = called_class(model.target, probabilities(model.target, seen.logits))
        called = [c["tiles"] for c in checks if c["class"] is not None]
        if column is not None and len(called) < CHECKED_BAGS and sum(called) < CHECKED_TILES:
            scores = model.tile_scores(seen.evidence + seen.bias)[:, column]
            check |= check_bag(model, bag.features, bag.xy_um, bag.pitch_um, scores, seen.attention, column)
            check |= {"class": model.target.score_names[column], "tiles": len(bag.features)}
        checks.append(check)
    return summarise(checks)


def abstention(model: SlideModel, answers: Answers, error_rate: float = AnswerSettings().error_rate) -> dict[str, float]:
    """Coverage: how often the truth is among the possible answers; and how often there is more or less than one."""
    right = unsure = asked = 0
    for chances, truth in zip(answers.values, answers.truth, strict=True):
        for question, options in enumerate(possible_answers(model.target, model.calibration, chances, error_rate)):
            right += _true_option(model.target, question, truth) in options
            unsure += len(options) != 1
            asked += 1
    return {"error_rate": error_rate, "coverage": round(right / asked, 4), "unsure": round(unsure / asked, 4), "answers": asked}


def _true_option(target: Target, question: int, truth: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    if target.task == "multilabel":
        return target.classes[question] if truth[question] else f"no {target.classes[question]}"
    return target.classes[int(truth[0] if target.task == "binary" else truth.argmax())]


def _write_parts(folder: Path, parts: Parts, answers: dict[str, Answers]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["slide_id", "patient", "split"])
    writer.writerows([slide, bag.patient, name] for name, part in parts.items() for bag in part for slide in bag.slides)
    write_atomically(folder / "split.csv", buffer.getvalue().encode("utf-8", "replace"))
    judged = answers.get("test", answers["validation"])
    write_atomically(folder / "predictions.csv", answers_csv(judged))


def evaluate_model(folder: str | Path, cohort: Cohort, out: Path, split: str | None, seed: int = 0) -> dict[str, Any]:
    """Judge a model on the patients of a table; writes predictions.csv, evaluation.json and evaluation.png to `out`."""
    model = load_model(folder)
    model.check(cohort.recipe)
    bags = [bag for bag in cohort.bags if split is None or cohort.fixed.get(bag.patient) == split]
    if not bags:
        raise SettingsError(f"No patient of the table is in split {split!r}. Correct --split or the column.")
    answers = answer(model, bags)
    seen = _seen_before(Path(folder))
    learned = [bag.patient for bag in bags if seen & {bag.patient, *bag.slides}]
    novelty = [max(model.novelty.slide(part.numpy()) for part in bag.by_slide()) for bag in bags] if model.novelty else []
    found: dict[str, Any] = {
        "research_use": RESEARCH_USE,
        "model": model.name,
        "model_sha256": model.sha256,
        "target": asdict(model.target),
        "patients": len(bags),
        "patients_it_learned_from": len(learned),
        "metrics": evaluate(answers, seed),
        "abstention": abstention(model, answers) if model.target.is_classification else None,
        "heatmap_check": check_model(model, bags),
        "strange": sum(value > 1 for value in novelty),
        "versions": versions(),
    }
    extra: dict[str, Sequence[Any]] = {"novelty": [f"{v:.4f}" for v in novelty]} if novelty else {}
    write_atomically(out / "predictions.csv", answers_csv(answers, extra))
    evaluation_picture(out / "evaluation.png", answers, found["metrics"], f"{model.name}, {len(bags)} patients")
    write_atomically(out / "evaluation.json", to_json(found))
    return found


def _seen_before(folder: Path) -> set[str]:
    """Slides and patients that a model was fitted or calibrated on."""
    path = read_card(folder)[0] / "split.csv"
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "test"]
    return {row["slide_id"] for row in rows} | {row["patient"] for row in rows}
