"""A cohort: stored features and a table of labels, as one bag per patient, and the parts it is split into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathovit.aggregator import WINDOW
from pathovit.errors import SettingsError
from pathovit.features import SlideFeatures
from pathovit.manifest import ManifestRow
from pathovit.pipeline import read_done
from pathovit.store import FeatureStore
from pathovit.targets import Target, Truth, read_truth, strata

PARTS = ("train", "validation", "test")
GAP_WINDOWS = 100  # empty windows between the slides of one patient: none spans two slides, and all keep their own anchor


@dataclass(frozen=True)
class Bag:
    """All tiles of one patient, and the truth."""

    patient: str
    slides: tuple[str, ...]
    tiles: tuple[int, ...]  # of each slide
    features: Tensor  # (N, D) float16
    xy_um: Tensor  # (N, 2); slides lie far apart
    pitch_um: float
    truth: Truth
    group: str  # site, or whatever must not be in two parts; the patient, if nothing was named

    def by_slide(self) -> tuple[Tensor, ...]:
        """Features of each slide."""
        return torch.split(self.features, list(self.tiles))


@dataclass(frozen=True)
class Cohort:
    """Bags in order of patient, what is asked of them, and the recipe all features share."""

    bags: tuple[Bag, ...]
    target: Target
    recipe: dict[str, Any]
    fixed: dict[str, str]  # patient -> part, where the table says it

    def truth(self) -> NDArray[np.float32]:
        return np.stack([bag.truth for bag in self.bags])


def load_cohort(rows: Sequence[ManifestRow], target: Target, features: Path, group: str | None = None) -> Cohort:
    """Read the features of every slide of a table that has a label.

    Raises
    ------
    SettingsError : missing slides, a slide named twice, a patient with two labels, two groups or two parts, features of two recipes
    """
    truth = read_truth(rows, target)
    rows = [row for row in rows if row.line in truth]
    stored = _stored_slides(features)
    missing = [row for row in rows if _find(row, stored) is None]
    if missing:
        lines = ", ".join(f"line {row.line}: {row.slide.name}" for row in missing[:5])
        raise SettingsError(
            f"{len(missing)} slides have no finished features in {features}, e.g. {lines}. Embed them first with: pathovit embed"
        )
    by_patient: dict[str, list[ManifestRow]] = {}
    for row in rows:
        by_patient.setdefault(row.patient or row.slide.stem, []).append(row)
    taken: dict[Path, int] = {}
    recipe: dict[str, Any] = {}
    bags = []
    for patient, members in sorted(by_patient.items()):
        label = _shared(patient, members, "label", [tuple(truth[row.line].tolist()) for row in members])
        site = _shared(patient, members, group, [row.label(group) for row in members]) if group else patient
        if not site:
            raise SettingsError(
                f"Line {members[0].line}: the table has no {group!r} for it. Give one to every row, or leave out --group."
            )
        slides = []
        for row in members:
            folder = _find(row, stored)
            assert folder is not None
            if taken.setdefault(folder, row.line) != row.line:
                first, second = sorted((taken[folder], row.line))
                raise SettingsError(
                    f"Lines {first} and {second} both mean {folder.name}. Name each slide once, e.g. by its slide_id."
                )
            slide = FeatureStore(folder, row.slide).read(folder.name)
            recipe = _same_recipe(recipe, slide, row)
            slides.append(slide)
        bags.append(make_bag(patient, slides, np.array(label, np.float32), site))
    return Cohort(tuple(bags), target, recipe, _fixed_parts(by_patient))


def _shared(patient: str, members: Sequence[ManifestRow], what: str, values: Sequence[Any]) -> Any:
    """The one value that all slides of a patient have."""
    if len(set(values)) > 1:
        lines = ", ".join(str(row.line) for row in members)
        said = ", ".join(sorted({str(v) for row in members for name, v in row.labels if name not in ("slide", "split")}))
        raise SettingsError(f"Patient {patient!r} has two values of {what} (lines {lines}; {said}). Correct the table.")
    return values[0]


def _fixed_parts(by_patient: dict[str, list[ManifestRow]]) -> dict[str, str]:
    """Part by patient, from a column `split` if the table has one."""
    fixed: dict[str, str] = {}
    for patient, members in by_patient.items():
        for row in members:
            part = row.label("split")
            if part and part not in PARTS:
                raise SettingsError(f"Line {row.line}: split is {part!r}, expected {', '.join(PARTS)}.")
        if part := _shared(patient, members, "split", [row.label("split") for row in members]):
            fixed[patient] = part
    return fixed


def _stored_slides(features: Path) -> dict[str, list[Path]]:
    """Slide folders by slide_id, by file name and by stem."""
    found: dict[str, list[Path]] = {}
    for folder in sorted((features / "slides").glob("*")):
        done = read_done(folder)
        if done is not None:
            file = done["slide"]["file"]
            for name in {folder.name, file, Path(file).stem}:
                found.setdefault(name, []).append(folder)
    return found


def _find(row: ManifestRow, stored: dict[str, list[Path]]) -> Path | None:
    """The folder of a row's slide; None if it has none.

    Raises
    ------
    SettingsError : two slides have this name
    """
    folders = stored.get(row.slide.name) or stored.get(row.slide.stem) or []
    if len(folders) > 1:
        raise SettingsError(
            f"Line {row.line}: {row.slide.name} can mean {', '.join(f.name for f in folders[:4])}. Name it by its slide_id."
        )
    return folders[0] if folders else None


def _same_recipe(recipe: dict[str, Any], slide: SlideFeatures, row: ManifestRow) -> dict[str, Any]:
    made_by = slide.attributes["recipe"]
    shared = {"encoder": made_by["encoder"], "tiles": made_by["tiles"]}
    if recipe and shared != recipe:
        raise SettingsError(
            f"Line {row.line}: the features of {row.slide.name} were made by another encoder or other tiles than those before. "
            "Embed all slides with the same settings."
        )
    return shared


def make_bag(patient: str, slides: Sequence[SlideFeatures], truth: Truth, group: str = "") -> Bag:
    """One bag of all slides of a patient; slides lie so far apart that no window spans two."""
    features, places, first = [], [], 0.0
    for slide in slides:
        if not slide.ok.any():
            raise SettingsError(f"{slide.slide_id}: not one of its tiles could be read. Take it out of the table.")
        place = slide.centres_um()[slide.ok]
        place = place - place.min(0) + np.array([first, 0.0])
        side_um = WINDOW * slides[0].pitch_um
        first = (np.ceil(place[:, 0].max() / side_um) + GAP_WINDOWS) * side_um
        features.append(torch.from_numpy(slide.features[slide.ok]))
        places.append(torch.from_numpy(place))
    tiles = tuple(len(part) for part in features)
    whole = features[0] if len(features) == 1 else torch.cat(features)
    return Bag(
        patient, tuple(s.slide_id for s in slides), tiles, whole, torch.cat(places), slides[0].pitch_um, truth, group or patient
    )


def split_patients(cohort: Cohort, validation_share: float, test_share: float, seed: int) -> dict[str, list[Bag]]:
    """Train, validation and test parts, stratified, groups kept together; parts named in the table are kept.

    Raises
    ------
    SettingsError : too few patients for it, or a part would lack a class
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
    if rest and test_share:
        inside, rest = _cut(rest, cohort.target, test_share, seed, "test")
        parts["test"] += inside
    if rest:
        inside, rest = _cut(rest, cohort.target, validation_share / (1 - test_share), seed, "validation")
        parts["validation"] += inside
        parts["train"] += rest
    for name in ("train", "validation"):
        check_part(name, parts[name], cohort.target)
    return parts


def _cut(bags: Sequence[Bag], target: Target, share: float, seed: int, part: str) -> tuple[list[Bag], list[Bag]]:
    """A stratified share of patients, and the others."""
    groups = len({bag.group for bag in bags})
    folds = max(2, min(round(1 / share), groups))
    place = assign_folds(bags, target, folds, seed, f"a {part} part of one in {folds}")
    return [b for b, fold in zip(bags, place, strict=True) if fold == 0], [b for b, fold in zip(bags, place, strict=True) if fold]


def check_part(name: str, bags: Sequence[Bag], target: Target) -> None:
    """A part without a class (an event, a spread of values) teaches and tells nothing."""
    if not bags:
        raise SettingsError(f"The {name} part is empty. Give more patients, or correct the split column.")
    truth = np.stack([bag.truth for bag in bags])
    if target.task in ("binary", "multilabel") and (truth.min(0) == truth.max(0)).any():
        raise SettingsError(f"The {name} part has patients of one class only. Give more patients, or correct the split column.")
    if target.task == "multiclass" and not truth.any(0).all():
        absent = target.classes[int(np.flatnonzero(~truth.any(0))[0])]
        raise SettingsError(
            f"The {name} part has no patient of class {absent!r}. Give more patients, or correct the split column."
        )
    if target.task == "survival" and not truth[:, 1].any():
        raise SettingsError(f"The {name} part has no event. Give more patients, or correct the split column.")


def assign_folds(bags: Sequence[Bag], target: Target, folds: int, seed: int, wanted: str = "") -> NDArray[np.int64]:
    """(n,) fold of every patient: stratified, and no group in two folds. `wanted` names the purpose in errors.

    Raises
    ------
    SettingsError : a class has fewer patients than there are folds, or there are fewer groups
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    wanted = wanted or f"{folds} folds"
    groups = [bag.group for bag in bags]
    alone = len(set(groups)) == len(groups)
    if len(set(groups)) < folds:
        members = "patients are" if alone else "groups are"
        raise SettingsError(f"{len(set(groups))} {members} too few for {wanted}. Give more, or ask for fewer folds.")
    kinds = strata(target, np.stack([bag.truth for bag in bags]))
    values, place, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    scarce = int(counts.argmin())
    if counts[scarce] < folds and target.task in ("binary", "multiclass"):
        raise SettingsError(
            f"Class {target.classes[int(values[scarce])]!r} has {counts[scarce]} patients, too few for {wanted}. "
            "Give more patients, or ask for fewer folds."
        )
    kinds = np.where(counts[place] < folds, values[counts.argmax()], kinds)  # rare combinations join the commonest
    if alone:
        splitter: Any = StratifiedKFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = np.empty(len(bags), np.int64)
    for fold, (_, inside) in enumerate(splitter.split(np.zeros(len(bags)), kinds, None if alone else groups)):
        found[inside] = fold
    return found


def cohort_digest(bags: Sequence[Bag]) -> str:
    """SHA-256 of patients, slides and truth: what a model was trained on."""
    lines = sorted(json.dumps([bag.patient, bag.truth.tolist(), sorted(bag.slides)]) for bag in bags)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
