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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.files import to_json, write_atomically
from pathovit.machine import threads_for
from pathovit.model.calibration import Calibration
from pathovit.model.card import ModelCard, read_card
from pathovit.model.card_text import describe_model
from pathovit.model.faithfulness import CheckSummary
from pathovit.model.judged import Abstention, Crossed, Metrics
from pathovit.model.novelty import Novelty
from pathovit.model.slide_model import SlideModel, load_model, save_model
from pathovit.model.targets import Target
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import EmbedRecipe
from pathovit.settings import TrainSettings
from pathovit.study.cohort import Cohort, cohort_digest
from pathovit.study.evaluation import Answers, answers_csv, evaluate, glance
from pathovit.study.figures import evaluation_picture, maps_picture, training_curves
from pathovit.study.fit import Fitted, OnEpoch, OnStep, Parts, fit, fit_key
from pathovit.study.judge import FEW_PATIENTS, abstention, answer, check_model, pooled_abstention, said_of_few
from pathovit.study.localisation import judge_maps, localisation, maps_csv
from pathovit.study.parts import assign_folds, check_part, possible_folds, split_patients
from pathovit.tables import PARTS, Say
from pathovit.text import counted

CHECKPOINT = "training.ckpt"
USUAL_FOLDS = 5  # where patients are few: every one is held out once


def train_model(
    cohort: Cohort, folder: Path, settings: TrainSettings, folds: int | None = None, on_epoch: OnEpoch = lambda line: None,
    say: Say = lambda text: None, on_step: OnStep = lambda what, done, total: None,
) -> ModelCard:  # fmt: skip
    """Fit a model and write its folder; returns the card.

    Parameters
    ----------
    folds : first one model per fold, for its figures; 0 for none; None for 5 where patients are few, and the table has no
        column `split`. Where they are too few for so many there are fewer, and `say` says so.

    Raises
    ------
    SettingsError : too few patients for the parts
    """
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
    with threads_for(np.median([len(bag.features) for bag in cohort.bags])):
        parts = split_patients(cohort, settings.validation_share, 0.0 if wanted else settings.test_share, settings.seed, say)
        crossed = cross_validate(cohort, folder, settings, folds, on_epoch, say, on_step) if folds else None
        say("model of all patients" if folds else "model")
        return _train_one(cohort, folder, settings, parts, on_epoch, on_step, crossed)


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
    cohort: Cohort, folder: Path, settings: TrainSettings, folds: int, on_epoch: OnEpoch, say: Say, on_step: OnStep
) -> Crossed:
    """Metrics over all patients, each answered by the model that has not seen its fold. A finished fold is not fitted again."""
    place = assign_folds(cohort.bags, cohort.target, folds, settings.seed)
    splits = []
    for fold in range(folds):  # all are checked before the first is fitted
        test = [bag for bag, at in zip(cohort.bags, place, strict=True) if at == fold]
        rest = cohort.without(test)
        splits.append(split_patients(rest, settings.validation_share, 0.0, settings.seed) | {"test": test})
    found: list[Answers] = []
    kept: list[Abstention] = []
    for fold, parts in enumerate(splits, start=1):
        say(f"fold {fold} of {folds}")
        here = folder / "folds" / str(fold)
        if not _is_done(here, fit_key(parts, cohort.target, cohort.recipe, settings)):
            _train_one(cohort, here, settings, parts, on_epoch, on_step, None)
        model = load_model(here)
        found.append(answer(model, parts["test"]))
        kept += [abstention(model, found[-1])] if cohort.target.is_classification else []
    pooled = Answers(
        cohort.target, tuple(name for a in found for name in a.patients), np.concatenate([a.truth for a in found]),
        np.concatenate([a.values for a in found]), np.concatenate([a.novelty for a in found]),
    )  # fmt: skip
    write_atomically(folder / "folds" / "predictions.csv", answers_csv(pooled))
    metrics = evaluate(pooled, settings.seed)
    evaluation_picture(folder / "folds" / "evaluation.png", pooled, metrics, f"{folds}-fold cross-validation")
    return Crossed(folds, metrics, pooled_abstention(kept))


def _is_done(folder: Path, key: str) -> bool:
    """A fold is known by what it was fitted from, not by its folder."""
    return (folder / "model.json").is_file() and read_card(folder)[1].fit_key == key


def _train_one(
    cohort: Cohort, folder: Path, settings: TrainSettings, parts: Parts, on_epoch: OnEpoch, on_step: OnStep,
    crossed: Crossed | None,
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
        "heatmap_check": check_model(model, parts[judged], on_step).to_json() | {"part": judged},
        "regions": _regions_card(model, parts, judged, settings.seed),
        "abstention": abstention(model, answers[judged]).to_json() | {"part": judged}
        if cohort.target.is_classification
        else None,
        "few": said_of_few(cohort, parts, crossed),
        "intended_use": INTENDED_USE,
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
    _write_parts(folder, parts, answers)
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


def _write_parts(folder: Path, parts: Parts, answers: dict[str, Answers]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["slide_id", "patient", "split"])
    writer.writerows([slide, bag.patient, name] for name, part in parts.items() for bag in part for slide in bag.slides)
    write_atomically(folder / "split.csv", buffer.getvalue().encode("utf-8", "replace"))
    judged = answers.get("test", answers["validation"])
    write_atomically(folder / "predictions.csv", answers_csv(judged))


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json: how a model did on the patients of a table."""

    model: str
    model_sha256: str
    target: Target
    patients: int
    patients_it_learned_from: int
    metrics: Metrics
    abstention: Abstention | None
    heatmap_check: CheckSummary
    localisation: Metrics | None
    strange: int
    trial: bool
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        return {
            "research_use": RESEARCH_USE,
            **{name: getattr(self, name) for name in ("model", "model_sha256")},
            "target": asdict(self.target),
            **{name: getattr(self, name) for name in ("patients", "patients_it_learned_from")},
            "metrics": self.metrics.to_json(),
            "abstention": self.abstention and self.abstention.to_json(),
            "heatmap_check": self.heatmap_check.to_json(),
            "localisation": self.localisation and self.localisation.to_json(),
            **{name: getattr(self, name) for name in ("strange", "trial")},
            "versions": dict(self.versions),
        }


def evaluate_model(
    folder: str | Path, cohort: Cohort, out: Path, split: str | None, seed: int = 0,
    on_step: OnStep = lambda what, done, total: None,
) -> Evaluation:  # fmt: skip
    """Judge a model on the patients of a table; writes predictions.csv, evaluation.json and evaluation.png to `out`.

    Where regions are drawn, its maps too: localisation.csv and localisation.png.
    """
    model = load_model(folder)
    model.check(EmbedRecipe(cohort.recipe))
    bags, others = (
        [bag for bag in part if split is None or cohort.fixed.get(bag.patient) == split]
        for part in (cohort.bags, cohort.unlabelled)
    )
    if not bags:
        raise SettingsError(f"No patient of the table is in split {split!r}. Correct --split or the column.")
    on_step("answering patients", 0, len(bags))
    answers = answer(model, bags)
    on_step("metrics with their intervals", 0, len(bags))
    seen = _seen_before(Path(folder))
    marked = [bag for bag in (*bags, *others) if bag.marks is not None]
    on_step("judging maps", 0, len(marked))
    maps = judge_maps(model, marked)
    found = Evaluation(
        model=model.name,
        model_sha256=model.sha256,
        target=model.target,
        patients=len(bags),
        patients_it_learned_from=sum(bool(seen & {bag.patient, *bag.slides}) for bag in bags),
        metrics=evaluate(answers, seed),
        abstention=abstention(model, answers) if model.target.is_classification else None,
        heatmap_check=check_model(model, bags, on_step),
        localisation=localisation(maps, seed),
        strange=int((answers.novelty > 1).sum()),
        trial=bool(cohort.recipe["max_tiles"]),
        versions=versions(),
    )
    extra = {"novelty": [f"{v:.4f}" for v in answers.novelty]} if model.novelty else {}
    write_atomically(out / "predictions.csv", answers_csv(answers, extra))
    evaluation_picture(out / "evaluation.png", answers, found.metrics, f"{model.name}, {len(bags)} patients")
    if maps:
        write_atomically(out / "localisation.csv", maps_csv(maps))
        maps_picture(out / "localisation.png", model, marked, f"{model.name}, {counted(len(marked), 'patient')} with regions")
    write_atomically(out / "evaluation.json", to_json(found.to_json()))
    return found


def _seen_before(folder: Path) -> set[str]:
    """Slides and patients that a model was fitted or calibrated on."""
    path = read_card(folder)[0] / "split.csv"
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "test"]
    return {row["slide_id"] for row in rows} | {row["patient"] for row in rows}
