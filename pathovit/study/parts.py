"""Parts and folds of a cohort: stratified, groups kept together, and none that teaches or tells nothing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.manifest import some
from pathovit.model.targets import Target
from pathovit.model.targets.classes import NamedClasses
from pathovit.study.cohort import Bag, Cohort
from pathovit.tables import PARTS, Say


def split_patients(
    cohort: Cohort, validation_share: float, test_share: float, seed: int, say: Say = lambda text: None
) -> dict[str, list[Bag]]:
    """Train, validation and test parts, stratified, groups kept together; parts that the table names are kept as they are.

    A class of two patients leaves no test part: one is to learn from, and one to tell when to stop.

    Raises
    ------
    SettingsError : too few patients for it, a part would lack a class, or the table names some of the training part only
    """
    parts: dict[str, list[Bag]] = {name: [] for name in PARTS}
    group_part: dict[str, str] = {}
    for bag in cohort.bags:
        part = cohort.fixed.get(bag.patient)
        if part and group_part.setdefault(bag.group, part) != part:
            raise SettingsError(
                f"Group {bag.group!r} is in two parts of the split ({group_part[bag.group]}, {part}). Keep groups together."
            )
    rest: list[Bag] = []
    for bag in cohort.bags:
        (parts[group_part[bag.group]] if bag.group in group_part else rest).append(bag)
    if parts["train"] and rest:
        raise SettingsError(
            f"{len(rest)} patients have no part in the column `split`, and others do: {some([bag.patient for bag in rest])}. Give them "
            "one, or take them out of the table."
        )
    if not cohort.fixed and test_share:
        cut = cut_part(rest, cohort.target, test_share, seed, kept=2)
        if cut:
            parts["test"], rest = cut
        else:
            say(f"{_counted(rest, cohort.target)}: too few for a test part; none is held out")
    if not parts["validation"]:
        given = parts["train"] or rest
        if parts["train"]:
            say("the column `split` names no validation part: it is cut from the training part")
        cut = cut_part(given, cohort.target, validation_share / (1 - test_share), seed, kept=1)
        if cut is None:
            check_part("train", given, cohort.target)
            raise SettingsError(
                f"{_counted(given, cohort.target)}: too few. At least two patients of every class are needed, one to learn from and "
                "one to tell when to stop."
            )
        parts["validation"], parts["train"] = cut
    else:
        parts["train"] += rest
    for name in ("train", "validation"):
        check_part(name, parts[name], cohort.target)
    kept = cohort.without(parts["validation"] + parts["test"]).unlabelled
    parts["train"] += [bag for bag in kept if cohort.fixed.get(bag.patient, "train") == "train"]
    return parts


def cut_part(bags: Sequence[Bag], target: Target, share: float, seed: int, kept: int) -> tuple[list[Bag], list[Bag]] | None:
    """A stratified share of patients, with every class in it, and the others, with at least `kept` of every class.

    None where there are too few for that, whatever the share.
    """
    groups = len({bag.group for bag in bags})
    for folds in range(min(max(2, round(1 / share)), groups), 1, -1):
        place = _assign(bags, target, folds, seed)
        for fold in range(folds):
            inside, outside = (
                [bag for bag, at in zip(bags, place, strict=True) if (at == fold) == part] for part in (True, False)
            )
            if fewest(inside, target) >= 1 and fewest(outside, target) >= kept:
                return inside, outside
    return None


def fewest(bags: Sequence[Bag], target: Target) -> int:
    """Patients of the scarcest class (with and without each label; with an event); all of them for a measurement."""
    return min((count for _, count in _counts(bags, target)), default=0)


def _counts(bags: Sequence[Bag], target: Target) -> list[tuple[str, int]]:
    """Patients of every class, by its name."""
    return target.kind.counts(np.stack([bag.truth for bag in bags])) if bags else []


def _counted(bags: Sequence[Bag], target: Target) -> str:
    return f"{len(bags)} patients ({', '.join(f'{name} {count}' for name, count in _counts(bags, target))})"


def possible_folds(bags: Sequence[Bag], target: Target, wanted: int) -> int:
    """Folds of a cross-validation that these patients allow, at most those wanted: each leaves two of every class; 0 for none."""
    groups, scarce = len({bag.group for bag in bags}), fewest(bags, target)
    for folds in range(min(wanted, groups), 1, -1):
        if scarce - -(-scarce // folds) >= 2:
            return folds
    return 0


def check_part(name: str, bags: Sequence[Bag], target: Target) -> None:
    """A part without a class (an event, a spread of values) teaches and tells nothing."""
    if not bags:
        raise SettingsError(f"The {name} part is empty. Give more patients, or correct the split column.")
    if lacking := target.kind.lacking(np.stack([bag.truth for bag in bags if bag.is_labelled])):
        raise SettingsError(f"The {name} part has {lacking}. Give more patients, or correct the split column.")


def assign_folds(bags: Sequence[Bag], target: Target, folds: int, seed: int) -> NDArray[np.int64]:
    """(n,) fold of every patient: stratified, and no group in two folds.

    Raises
    ------
    SettingsError : too few patients or groups for so many folds
    """
    possible = possible_folds(bags, target, folds)
    if possible < folds:
        members = "groups" if len({bag.group for bag in bags}) < len(bags) else "patients"
        raise SettingsError(
            f"{_counted(bags, target)}, {len({bag.group for bag in bags})} {members}: too few for {folds} folds. "
            + (f"At most {possible} are possible." if possible else "Three patients of every class are needed.")
        )
    return _assign(bags, target, folds, seed)


def _assign(bags: Sequence[Bag], target: Target, folds: int, seed: int) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups = [bag.group for bag in bags]
    alone = len(set(groups)) == len(groups)
    kinds = target.kind.strata(np.stack([bag.truth for bag in bags]))
    values, place, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    found = np.empty(len(bags), np.int64)
    if alone and counts.min() < folds and isinstance(target.kind, NamedClasses):
        # Dealt out class after class: no fold gets a second patient of a class before every fold has one.
        order = np.lexsort((np.random.default_rng(seed).permutation(len(bags)), place))
        found[order] = np.arange(len(bags)) % folds
        return found
    kinds = np.where(counts[place] < folds, values[counts.argmax()], kinds)  # rare combinations join the commonest
    splitter: Any = (StratifiedKFold if alone else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a class smaller than the folds: we know
        for fold, (_, inside) in enumerate(splitter.split(np.zeros(len(bags)), kinds, None if alone else groups)):
            found[inside] = fold
    return found
