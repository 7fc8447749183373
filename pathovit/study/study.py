"""A study: a cohort in, a model folder out. Split, fit, calibrate, evaluate, and write down what was found.

MODEL/
  model.safetensors, model.json    the model and its card
  MODEL_CARD.md                    the card, to be read
  split.csv                        which slide was in which part
  predictions.csv                  what it said of validation and test patients
  training.png, evaluation.png     curves
  names.private.json               which patients ids stand for (unless names are kept)
  folds/1..K/                      with --folds: one such model per fold, each judged on patients it has not seen
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.files import write_atomically
from pathovit.machine import threads_for
from pathovit.model.calibration import Calibration
from pathovit.model.card import ModelCard, read_card
from pathovit.model.card_text import describe_model
from pathovit.model.judged import Abstention, Crossed
from pathovit.model.novelty import Novelty
from pathovit.model.slide_model import SlideModel, load_model, save_model
from pathovit.outputs.names import Names
from pathovit.outputs.provenance import versions
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Cohort, cohort_digest, said_of_rivals
from pathovit.study.evaluation import Answers, Tell, against_pooling, answers_csv, evaluate, glance
from pathovit.study.figures import evaluation_picture, training_curves
from pathovit.study.fit import Fitted, OnEpoch, OnStep, Parts, fit, fit_key
from pathovit.study.judge import FEW_PATIENTS, abstention, answer, check_model, pooled_abstention, said_of_few
from pathovit.study.localisation import judge_maps, localisation
from pathovit.study.parts import assign_folds, check_part, possible_folds, split_patients
from pathovit.study.sizes import by_size
from pathovit.tables import PARTS, Say

CHECKPOINT = "training.ckpt"
USUAL_FOLDS = 5  # where patients are few: every one is held out once


def train_model(
    cohort: Cohort, folder: Path, settings: TrainSettings, folds: int | None = None, on_epoch: OnEpoch = lambda line: None,
    say: Say = lambda text: None, on_step: OnStep = lambda what, done, total: None, domain: str = "", keep_names: bool = False,
) -> ModelCard:  # fmt: skip
    """Fit a model and write its folder; returns the card.

    Parameters
    ----------
    folds : first one model per fold, for its figures; 0 for none; None for 5 where patients are few, and the table has no
        column `split`. Where they are too few for so many there are fewer, and `say` says so.

    domain : what the model is made for, in words
    keep_names : tables tell patients by name, not by an id

    Raises
    ------
    SettingsError : too few patients for the parts
    """
    if cohort.rival_splits and not folds:
        raise SettingsError(f"{said_of_rivals(cohort.rival_splits)} Or have --folds make others.")
    if folds is None:
        folds = USUAL_FOLDS if len(cohort.bags) < FEW_PATIENTS and not cohort.fixed else 0
        if folds:
            say(f"{len(cohort.bags)} patients: too few for a test part that tells anything, so that each is held out once")
    elif folds < 0 or folds == 1:
        raise SettingsError(f"--folds is {folds}, expected 0 (no cross-validation) or at least 2.")
    elif folds and cohort.fixed:
        raise SettingsError("The table has a column `split`, and --folds makes its own. Leave out one of the two.")
    wanted, folds = folds, _workable_folds(cohort, settings, folds)
    if folds < wanted:
        say(
            f"too few patients for {wanted} folds: {f'{folds} are made' if folds else 'none is made, and no figure is of unseen patients'}"
        )
    names = None if keep_names else Names.beside(folder, cohort.key)
    tell = names.patient_id if names else str
    with threads_for(np.median([len(bag.features) for bag in cohort.bags])):
        parts = split_patients(cohort, settings.validation_share, 0.0 if wanted else settings.test_share, settings.seed, say)
        crossed = cross_validate(cohort, folder, settings, folds, on_epoch, say, on_step, tell) if folds else None
        say("model of all patients" if folds else "model")
        card = _train_one(cohort, folder, settings, parts, on_epoch, on_step, crossed, tell, domain=domain)
    if names:
        names.write(folder)
    return card


def _workable_folds(cohort: Cohort, settings: TrainSettings, wanted: int) -> int:
    """Folds, at most those wanted, of which each leaves patients of every class to learn from and to stop by; 0 for none."""
    for folds in range(possible_folds(cohort.bags, cohort.target, wanted), 1, -1):
        try:
            place = assign_folds(cohort.bags, cohort.target, folds, settings.seed)
            for fold in range(folds):
                rest = cohort.without([bag for bag, at in zip(cohort.bags, place, strict=True) if at == fold])
                split_patients(rest, settings.validation_share, 0.0, settings.seed)
        except SettingsError:
            continue
        return folds
    return 0


def cross_validate(
    cohort: Cohort, folder: Path, settings: TrainSettings, folds: int, on_epoch: OnEpoch, say: Say, on_step: OnStep, tell: Tell
) -> Crossed:
    """Metrics over all patients, each answered by the model that has not seen its fold. A finished fold is not fitted again."""
    place = assign_folds(cohort.bags, cohort.target, folds, settings.seed)
    splits = []
    for fold in range(folds):  # all are checked before the first is fitted
        test = [bag for bag, at in zip(cohort.bags, place, strict=True) if at == fold]
        rest = cohort.without(test)
        splits.append(split_patients(rest, settings.validation_share, 0.0, settings.seed) | {"test": test})
    found: list[Answers] = []
    plain: list[Answers] = []
    kept: list[Abstention] = []
    for fold, parts in enumerate(splits, start=1):
        say(f"fold {fold} of {folds}")
        here = folder / "folds" / str(fold)
        if not _is_done(here, fit_key(parts, cohort.target, cohort.recipe, settings)):
            _train_one(cohort, here, settings, parts, on_epoch, on_step, None, tell, is_fold=True)
        model = load_model(here)
        found.append(answer(model, parts["test"]))
        kept += [abstention(model, found[-1])] if cohort.target.is_classification else []
        if settings.kind != "mean":
            plain.append(answer(_plain_pooling(cohort, parts, settings, here), parts["test"]))
    pooled = _joined(found)
    write_atomically(folder / "folds" / "predictions.csv", answers_csv(pooled, tell, {"fold": pooled.fold.tolist()}))
    metrics = evaluate(pooled, settings.seed)
    evaluation_picture(folder / "folds" / "evaluation.png", pooled, metrics, f"{folds}-fold cross-validation")
    beside = against_pooling(pooled, _joined(plain), settings.seed) if plain else None
    return Crossed(folds, metrics, pooled_abstention(kept), beside, by_size(pooled, "cross-validation", settings.seed))


def _joined(parts: Sequence[Answers]) -> Answers:
    """Answers of all folds."""
    return Answers(
        parts[0].target, tuple(name for a in parts for name in a.patients), np.concatenate([a.truth for a in parts]),
        np.concatenate([a.values for a in parts]), np.concatenate([a.novelty for a in parts]),
        np.concatenate([a.tiles for a in parts]), np.repeat(np.arange(1, len(parts) + 1), [len(a.truth) for a in parts]),
    )  # fmt: skip


def _plain_pooling(cohort: Cohort, parts: Parts, settings: TrainSettings, folder: Path) -> SlideModel:
    """The simplest model that can be, fitted on the same patients: the mean of all tiles, and a linear layer."""
    checkpoint = folder / "pooling.ckpt"
    labelled = {name: [replace(bag, marks=None) for bag in part if bag.is_labelled] for name, part in parts.items()}
    fitted = fit(labelled, cohort.target, cohort.recipe, replace(settings, kind="mean"), lambda line: None, checkpoint)
    checkpoint.unlink(missing_ok=True)
    return _calibrated(fitted, cohort, labelled)


def _is_done(folder: Path, key: str) -> bool:
    """A fold is known by what it was fitted from, not by its folder."""
    return (folder / "model.json").is_file() and read_card(folder)[1].fit_key == key


def _train_one(
    cohort: Cohort, folder: Path, settings: TrainSettings, parts: Parts, on_epoch: OnEpoch, on_step: OnStep,
    crossed: Crossed | None, tell: Tell, is_fold: bool = False, domain: str = "",
) -> ModelCard:  # fmt: skip
    for name in ("train", "validation"):
        check_part(name, parts[name], cohort.target)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = cohort.recipe["encoder"]
    fitted = fit(parts, cohort.target, cohort.recipe, settings, on_epoch, folder / CHECKPOINT, on_step)
    model = _calibrated(fitted, cohort, parts)
    answers, metrics = {}, {}
    for step, name in enumerate(filled := [name for name in PARTS if parts[name]]):
        on_step("judging the parts", step, len(filled))
        answers[name] = answer(model, [bag for bag in parts[name] if bag.is_labelled])
        metrics[name] = glance(answers[name]) if name == "train" else evaluate(answers[name], settings.seed)
    judged = "test" if parts["test"] else "validation"
    of_part = f"{judged} part" if judged == "test" else f"{judged} part, which set the calibration"
    pooling = crossed and crossed.pooling
    if not crossed and not is_fold and settings.kind != "mean":
        plain = answer(_plain_pooling(cohort, parts, settings, folder), parts[judged])
        pooling = against_pooling(answers[judged], plain, settings.seed)
    card = {
        "research_use": RESEARCH_USE,
        "encoder": {**encoder, "mpp": cohort.recipe["tiles"]["mpp"], "stride_px": cohort.recipe["tiles"]["stride_px"]},
        "shaping": {key: value for key, value in cohort.recipe.items() if key != "encoder"},
        "training": asdict(settings),
        "fit_key": fit_key(parts, cohort.target, cohort.recipe, settings),
        "patients": {name: len(part) for name, part in parts.items()},
        "slides": {name: sum(len(bag.slides) for bag in part) for name, part in parts.items()},
        "training_set_sha256": cohort_digest(parts["train"]),
        "best_epoch": fitted.best_epoch,
        "metrics": {name: found.to_json() for name, found in metrics.items()},
        "cross_validation": crossed and crossed.to_json(),
        "plain_pooling": pooling and asdict(pooling),
        "by_size": [asdict(one) for one in (crossed.sizes if crossed else by_size(answers[judged], of_part, settings.seed))],
        "heatmap_check": check_model(model, parts[judged], on_step).to_json() | {"part": judged},
        "regions": _regions_card(model, parts, judged, settings.seed),
        "abstention": abstention(model, answers[judged]).to_json() | {"part": judged}
        if cohort.target.is_classification
        else None,
        "few": said_of_few(cohort, parts, crossed),
        "intended_use": INTENDED_USE,
        "domain": domain,
        "limits": [
            *LIMITS,
            *([MANY_SLIDES] if any(len(bag.slides) > 1 for bag in cohort.bags) else []),
            *(
                [f"A trial: it learned from at most {trial} tiles of each slide."]
                if (trial := cohort.recipe["max_tiles"])
                else []
            ),
        ],
        "versions": versions(),
    }
    evaluation_picture(
        folder / "evaluation.png", answers[judged], metrics[judged], f"{judged} part, {len(parts[judged])} patients"
    )
    training_curves(
        folder / "training.png", fitted.history, fitted.best_epoch, f"{settings.kind}, epoch {fitted.best_epoch} kept"
    )
    _write_parts(folder, parts, answers, tell)
    saved = save_model(folder, replace(model, card=ModelCard(card)), describe_model)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return saved.card


def _regions_card(model: SlideModel, parts: Parts, judged: str, seed: int) -> dict[str, object] | None:
    """What regions taught, and how well the map lies on those of patients held out; None without regions."""
    taught = [bag for bag in parts["train"] if bag.marks is not None]
    maps = localisation(judge_maps(model, parts[judged]), seed)
    if not taught and not maps:
        return None
    tiles = {
        name: int(sum((bag.marks[:, place] == 1).sum() for bag in taught if bag.marks is not None))
        for place, name in enumerate(model.target.score_names)
    }
    return {
        "patients": len(taught), "tiles": tiles, "unlabelled": sum(not bag.is_labelled for bag in taught), "part": judged,
        "localisation": maps and maps.to_json(),
    }  # fmt: skip


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
    bare = SlideModel(fitted.network, target, Calibration(), None, ModelCard({}), "")
    raw = np.stack([bare.look(bag.features, bag.xy_um, bag.pitch_um).logits for bag in parts["validation"]])
    scaled = replace(bare, calibration=target.kind.scaling(raw, truth, fitted.centre, fitted.scale))
    seen = [scaled.look(bag.features, bag.xy_um, bag.pitch_um) for bag in parts["validation"]]
    hottest = np.stack([target.kind.margins(bag.evidence + bag.bias).max(0) for bag in seen])
    calibration = target.kind.calibrate(scaled.calibration, np.stack([bag.logits for bag in seen]), truth, hottest)
    slides = {name: [part.numpy() for bag in parts[name] for part in bag.by_slide()] for name in ("train", "validation")}
    return replace(bare, calibration=calibration, novelty=Novelty.fit(slides["train"], slides["validation"]))


def _write_parts(folder: Path, parts: Parts, answers: dict[str, Answers], tell: Tell) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["slide_id", "patient", "split"])
    writer.writerows([slide, tell(bag.patient), name] for name, part in parts.items() for bag in part for slide in bag.slides)
    write_atomically(folder / "split.csv", buffer.getvalue().encode("utf-8", "replace"))
    judged = answers.get("test", answers["validation"])
    write_atomically(folder / "predictions.csv", answers_csv(judged, tell))
