"""What a model says of patients, how often it abstains, whether its heatmaps show what it rests on, and what so few can show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pathovit.model.faithfulness import CheckSummary, check_bag, summarise
from pathovit.model.judged import Abstention, Counts, Crossed
from pathovit.model.slide_model import SlideModel
from pathovit.model.targets.binary import Binary
from pathovit.outputs.records import HeatmapCheck
from pathovit.settings import AnswerSettings
from pathovit.study.cohort import Bag, Cohort
from pathovit.study.evaluation import Answers
from pathovit.study.fit import OnStep, Parts

FEW_PATIENTS = 50  # below so many, a part held out says little
BY_CHANCE = 0.05  # what happens more rarely than this is not put down to chance
CHECKED_BAGS, CHECKED_TILES = 20, 60_000  # patients, and their tiles, whose heatmaps are checked by deletion and insertion


def answer(model: SlideModel, bags: Sequence[Bag]) -> Answers:
    """Calibrated answers for patients; strange are those with a slide unlike the cohort."""
    logits = np.stack([model.look(bag.features, bag.xy_um, bag.pitch_um).logits for bag in bags])
    values = model.target.kind.values(logits, model.calibration.centre, model.calibration.scale)
    novelty = np.array([max(model.slide_novelty(part.numpy()) for part in bag.by_slide()) for bag in bags])
    names, truth = tuple(bag.patient for bag in bags), np.stack([bag.truth for bag in bags])
    return Answers(model.target, names, truth, values, novelty, np.array([sum(bag.tiles) for bag in bags]))


def check_model(model: SlideModel, bags: Sequence[Bag], on_step: OnStep = lambda what, done, total: None) -> CheckSummary:
    """The heatmap check over patients: all for the sum, some of those with a class called for deletion and insertion."""
    checks: list[HeatmapCheck] = []
    tiles = called = 0
    for bag in bags:
        on_step("checking the heatmap", len(checks), len(bags))
        seen = model.look(bag.features, bag.xy_um, bag.pitch_um)
        if not np.isfinite(seen.evidence).all():
            return CheckSummary(0, remark=f"a {model.network.config.kind} model has no evidence of single tiles")
        total = (seen.attention[:, None] * seen.evidence).sum(0) + seen.bias
        error = float(np.abs(total - seen.logits).max())
        column = model.target.kind.called(model.target.kind.probabilities(seen.logits))
        if column is None or called >= CHECKED_BAGS or tiles >= CHECKED_TILES:
            checks.append(HeatmapCheck(error))
            continue
        scores = model.tile_scores(seen.evidence + seen.bias)[:, column]
        figures = check_bag(model, bag.features, bag.xy_um, bag.pitch_um, scores, seen.attention, column)
        checks.append(HeatmapCheck(error, model.target.score_names[column], *figures))
        called, tiles = called + 1, tiles + len(bag.features)
    return summarise(checks)


def abstention(model: SlideModel, answers: Answers, error_rate: float = AnswerSettings().error_rate) -> Abstention:
    """How often the answer is unsure, by the rule that `run` and `predict` follow, and whether the promise is kept."""
    asked = unsure = by_probability = usual = covered = 0
    for chances, truth, novelty in zip(answers.values, answers.truth, answers.novelty, strict=True):
        alone, said = model.possible(chances, 0.0, error_rate), model.possible(chances, float(novelty), error_rate)
        for question, (options, told) in enumerate(zip(alone, said, strict=True)):
            asked += 1
            unsure += len(told) != 1
            by_probability += len(options) != 1
            if not novelty > 1:
                usual += 1
                covered += model.target.kind.option(question, truth) in options
    counts = Counts(asked, unsure, by_probability, usual, covered)
    return _judged_abstention(error_rate, counts, int((answers.novelty > 1).sum()), len(answers.novelty))


def pooled_abstention(found: Sequence[Abstention]) -> Abstention | None:
    """The same over the folds of a cross-validation."""
    if not found:
        return None
    counts = sum((one.counts for one in found), Counts())
    strange, patients = sum(one.strange_patients for one in found), sum(one.patients for one in found)
    return _judged_abstention(found[0].error_rate, counts, strange, patients)


def _judged_abstention(error_rate: float, counts: Counts, strange: int, patients: int) -> Abstention:
    from scipy.stats import binom

    coverage = counts.covered / counts.usual if counts.usual else None
    broken = coverage is not None and binom.cdf(counts.covered, counts.usual, 1 - error_rate) < BY_CHANCE
    kept = f"{1 - error_rate:.0%} were promised, and {coverage or 0:.0%} came out"
    return Abstention(
        error_rate=error_rate,
        answers=counts.asked,
        unsure=round(counts.unsure / counts.asked, 4),
        unsure_by_probability=round(counts.by_probability / counts.asked, 4),
        strange=round(strange / patients, 4),
        coverage=None if coverage is None else round(coverage, 4),
        remark=f"{kept}: the promise does not hold on these patients" if broken else "",
        counts=counts,
        strange_patients=strange,
        patients=patients,
    )


def said_of_few(cohort: Cohort, parts: Parts, crossed: Crossed | None) -> list[str]:
    """What figures over so few patients can show at best; nothing where there are enough."""
    said = []
    target, seen = cohort.target, {"cross-validation": cohort.bags} if crossed else {}
    for name, bags in {**{name: part for name, part in parts.items() if name != "train"}, **seen}.items():
        if not bags or len(bags) >= FEW_PATIENTS:
            continue
        text = f"{name}, {len(bags)} patients: "
        if isinstance(target.kind, Binary):
            positive = sum(int(bag.truth[0]) for bag in bags)
            if positive and positive < len(bags):
                chance = 1 / math.comb(len(bags), positive)
                text += f"a model that knows nothing reaches an AUROC of 1.0 on them once in {1 / chance:,.0f} times; "
        error = 1 - BY_CHANCE ** (1 / len(bags))
        said.append(
            text + f"without a single error among them, {error:.0%} of all patients may still be answered wrongly (95 % limit)."
            if target.is_classification
            else text + "so few say little of others; the intervals show how little."
        )
    return said
