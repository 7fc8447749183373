"""A cohort: stored features and a table of labels, as one bag per patient, and the parts it is split into."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathovit.errors import SettingsError
from pathovit.files import slide_stem
from pathovit.manifest import SHOWN, ManifestRow, Names, one_spelling, rival_splits, some
from pathovit.model.aggregator import WINDOW
from pathovit.model.targets import Target, Truth, read_truth
from pathovit.model.targets.multilabel import Multilabel
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder, SlideFolder
from pathovit.outputs.names import key_of
from pathovit.outputs.recipe import Values, differing
from pathovit.outputs.store import FeatureStore
from pathovit.slides.identity import content_sha256
from pathovit.study.marks import Drawn, Marks
from pathovit.tables import NO_VALUE, Say, spelling
from pathovit.text import counted

GAP_WINDOWS = 100  # empty windows between the slides of one patient: none spans two slides, and all keep their own anchor

OnStep = Callable[[int, int], None]  # things that are done, and how many there are


@dataclass(frozen=True)
class Bag:
    """All tiles of one patient, and the truth."""

    patient: str
    slides: tuple[str, ...]
    tiles: tuple[int, ...]  # of each slide
    features: Tensor  # (N, D) float16
    xy_um: Tensor  # (N, 2); slides lie far apart
    pitch_um: float
    truth: Truth  # not a number where the table has no label
    group: str  # site, or whatever must not be in two parts; the patient, if nothing was named
    marks: Tensor | None = None  # (N, C) of tiles in regions: 1 of the class, 0 not, not a number where nobody says
    stored: tuple[str, ...] = ()  # digest of the features of each slide, as they lie on disk

    @property
    def is_labelled(self) -> bool:
        return not bool(np.isnan(self.truth).any())

    def by_slide(self) -> tuple[Tensor, ...]:
        """Features of each slide."""
        return torch.split(self.features, list(self.tiles))


@dataclass(frozen=True)
class Cohort:
    """Bags in order of patient, what is asked of them, and the recipe all features share."""

    bags: tuple[Bag, ...]
    target: Target
    recipe: Values
    fixed: dict[str, str]  # patient -> part, where the table says it
    unlabelled: tuple[Bag, ...] = ()  # known by their regions alone: they can teach, and cannot judge
    rival_splits: tuple[str, ...] = ()  # columns of the table that each name parts, and none of them was taken
    key: str = ""  # under which ids stand for patients where its features lie; empty where there are none

    def without(self, held_out: Sequence[Bag]) -> Cohort:
        """The others, and none of their groups."""
        groups = {bag.group for bag in held_out}
        bags, unlabelled = (tuple(bag for bag in part if bag.group not in groups) for part in (self.bags, self.unlabelled))
        return replace(self, bags=bags, unlabelled=unlabelled)

    def truth(self) -> NDArray[np.float32]:
        return np.stack([bag.truth for bag in self.bags])


def load_cohort(
    rows: Sequence[ManifestRow], target: Target, features: Path, group: str | None = None, say: Say = lambda text: None,
    on_slide: OnStep = lambda done, total: None, regions: Sequence[Path] = (),
) -> Cohort:  # fmt: skip
    """Read the features of every slide of a table that has a label, or regions.

    Parameters
    ----------
    regions : GeoJSON files, or folders of them, named after the slides
    say : called with a sentence for everything that was understood and not written in so many words
    on_slide : called with the slides that are read, and how many there are

    Raises
    ------
    SettingsError : missing slides, a slide named twice, a patient with two labels, two groups or two parts, features that were
        made in two ways
    """
    out = OutFolder(features)
    truth = read_truth(rows, target)
    drawn = Drawn.read(regions, out, target, say) if regions else None
    folders = find_features(rows if drawn else [row for row in rows if row.line in truth], out, say, truth)
    used = [
        row for row in rows if row.line in truth or (drawn and row.line in folders and folders[row.line].name in drawn.regions)
    ]
    _say_left_out(rows, used, say)
    rows = used
    if drawn:
        drawn.require_listed([folders[row.line].name for row in rows], say)
    if not any(row.patient for row in rows):
        columns = ", ".join(["slide", *(name for name, _ in rows[0].labels)])
        say(f"no column of patients (found: {columns}): every slide counts as a patient of its own")
    by_patient: dict[str, list[ManifestRow]] = {}
    for row, patient in zip(rows, _patient_names(rows, folders), strict=True):
        by_patient.setdefault(patient, []).append(row)
    sites = _sites(rows, group, say) if group else {}
    taken: dict[Path, int] = {}
    shape: Values = {}  # what the first slide shares with all others
    caps: list[tuple[ManifestRow, int | None, int]] = []
    like, bags, read = "", [], 0
    unknown = np.full_like(next(iter(truth.values())), np.nan)
    for patient, members in sorted(by_patient.items()):
        known = [row for row in members if row.line in truth]
        label = _shared(patient, known, "label", [tuple(truth[row.line].tolist()) for row in known]) if known else None
        site = _shared(patient, members, group, [sites.get(row.label(group) or "", "") for row in members]) if group else patient
        if not site:
            raise SettingsError(
                f"Line {members[0].line}: the table has no {group!r} for it. Give one to every row, or leave out --group."
            )
        slides, marks, stored = [], [], []
        for row in members:
            folder = folders[row.line]
            if taken.setdefault(folder, row.line) != row.line:
                first, second = sorted((taken[folder], row.line))
                raise SettingsError(
                    f"Lines {first} and {second} both mean {folder.name}. Name each slide once, e.g. by its slide_id."
                )
            slide = FeatureStore(out.slide(folder.name), row.slide).read()
            if not shape:
                like, shape = row.slide.name, slide.shaping()
            _refuse_other_shaping(like, shape, slide, row)
            caps.append((row, slide.cap, len(slide.verdict)))
            slides.append(slide)
            stored.append(_digest_of(out.slide(folder.name)))
            marks.append(drawn.marks(slide, say) if drawn else None)
            read += 1
            on_slide(read, len(rows))
        bag = make_bag(patient, slides, unknown if label is None else np.array(label, np.float32), site)
        bag = replace(bag, stored=tuple(stored))
        bags.append(_marked(bag, marks, drawn) if drawn else bag)
    trial = _shared_cap(caps)
    if trial:
        say(f"these features are a trial: at most {trial} tiles of each slide (--max-tiles); so is a model of them")
    labelled, unlabelled = (tuple(bag for bag in bags if bag.is_labelled == wanted) for wanted in (True, False))
    fixed, rivals = _fixed_parts(by_patient), tuple(rival_splits(rows, [*target.columns, *([group] if group else [])]))
    return Cohort(labelled, target, {**shape, "max_tiles": trial}, fixed, unlabelled, rivals, key_of(features))


def _marked(bag: Bag, of_slides: Sequence[Marks | None], drawn: Drawn) -> Bag:
    """The bag with what is drawn on its slides, and what follows from it."""
    if all(marks is None for marks in of_slides):
        return bag
    nothing = np.full((1, drawn.target.outputs), np.nan, np.float32)
    marks = np.concatenate(
        [np.repeat(nothing, tiles, 0) if found is None else found for found, tiles in zip(of_slides, bag.tiles, strict=True)]
    )
    if isinstance(drawn.target.kind, Multilabel):  # who has not the label has it nowhere
        drawn_on = np.isfinite(marks).any(1)[:, None]
        marks = np.where(drawn_on & np.isnan(marks) & (bag.truth == 0), np.float32(0), marks)
    return replace(bag, marks=torch.from_numpy(marks), truth=drawn.implied(bag.patient, bag.truth, marks))


def _patient_names(rows: Sequence[ManifestRow], folders: dict[int, Path]) -> list[str]:
    """The patient of every row; a slide without one is a patient of its own, by its name or, where that is taken, by its slide_id."""
    taken = Counter(slide_stem(row.slide.name) for row in rows if not row.patient)
    taken.update({row.patient for row in rows if row.patient})
    stems = [slide_stem(row.slide.name) for row in rows]
    return [row.patient or (stem if taken[stem] == 1 else folders[row.line].name) for row, stem in zip(rows, stems, strict=True)]


def said_of_rivals(columns: Sequence[str]) -> str:
    return f"The columns {' and '.join(columns)} each say which part a slide is in. Name the one that counts `split`."


def _say_left_out(rows: Sequence[ManifestRow], used: Sequence[ManifestRow], say: Say) -> None:
    """Of rows without a label, and of those among them whose patients have one: these slides are missing in their bags."""
    lines, patients = {row.line for row in used}, {row.patient for row in used if row.patient}
    left = [row for row in rows if row.line not in lines]
    theirs = sum(row.patient in patients for row in left)
    of_these = f"; {theirs} of them are of patients who have one on another row: give it to all rows that it holds for"
    if left:
        say(f"{counted(len(left), 'row')} without a label are left out{of_these if theirs else ''}")


def _digest_of(slide: SlideFolder) -> str:
    sealed = slide.features_record()
    return hashlib.sha256(json.dumps(sorted(sealed.files.items()) if sealed else None).encode()).hexdigest()


def _sites(rows: Sequence[ManifestRow], column: str, say: Say) -> dict[str, str]:
    """One spelling for every cell of a column of groups, so that a site in two spellings is not in two parts; of cells that name one."""
    cells = [cell for row in rows if (cell := row.label(column) or "") and cell.casefold() not in NO_VALUE]
    chosen = one_spelling(cells)
    found = {cell: chosen[spelling(cell)] for cell in cells}
    if others := sorted(cell for cell, one in found.items() if cell != one):
        say(f"column {column}: {', '.join(f'{cell!r} is taken for {found[cell]!r}' for cell in others[:SHOWN])}")
    return found


def _shared(patient: str, members: Sequence[ManifestRow], what: str, values: Sequence[Any]) -> Any:
    """The one value that all slides of a patient have."""
    if len(set(values)) > 1:
        lines = ", ".join(str(row.line) for row in members)
        said = ", ".join(sorted({str(v) for row in members for name, v in row.labels if name not in ("slide", "split")}))
        raise SettingsError(f"Patient {patient!r} has two values of {what} (lines {lines}; {said}). Correct the table.")
    return values[0]


def _fixed_parts(by_patient: dict[str, list[ManifestRow]]) -> dict[str, str]:
    """Part by patient, from a column `split` if the table has one."""
    found = {p: _shared(p, members, "split", [row.label("split") for row in members]) for p, members in by_patient.items()}
    return {patient: part for patient, part in found.items() if part}


def find_features(
    rows: Sequence[ManifestRow], out: OutFolder, say: Say, needed: Collection[int] | None = None
) -> dict[int, Path]:
    """The folder of each row's slide, by line; of lines that are not `needed`, where there is one.

    A row that names a folder means the slide that was embedded from that very file, as far as this is known here.

    Raises
    ------
    SettingsError : a slide without features, or a name that two slides have
    """
    names = Names(_stored_names(out))
    found: dict[int, Path] = {}
    missing: list[ManifestRow] = []
    loose: list[str] = []
    elsewhere = 0
    for row in rows:
        fitting, exact = names.find(row.slide.name)
        if row.in_folder and fitting:
            own = [folder for folder in fitting if not _is_imported(folder)]  # others have no slide that could be compared
            known = out.embedded_from(row.slide) if own else None
            if not own:
                elsewhere += 1
            elif known is None and not row.slide.exists():
                elsewhere += 1  # neither the file nor a note of it is here: its name has to do
            else:
                digest = known or content_sha256(row.slide)
                fitting = [folder for folder in fitting if folder.name.endswith(digest[:12])]
        if len(fitting) > 1:
            both = ", ".join(folder.name for folder in fitting[:4])
            raise SettingsError(f"Line {row.line}: {row.slide.name} can mean {both}. Name it by its slide_id.")
        if not fitting:
            if needed is None or row.line in needed:
                missing.append(row)
            continue
        found[row.line] = fitting[0]
        if not exact:
            loose.append(f"line {row.line}, {row.slide.name}: {fitting[0].name}")
    if missing:
        for refused in out.finished()[1][:SHOWN]:
            say(f"{refused.slide_id}: {refused.reason}")
        said = [f"line {row.line}: {row.slide.name}{names.near(row.slide.name)}" for row in missing[:SHOWN]]
        count = "1 slide has" if len(missing) == 1 else f"{len(missing)} slides have"
        raise SettingsError(
            f"{count} no finished features in {out.path}: {some(said, len(missing))}. Embed them first with: pathovit embed"
        )
    if loose:
        say(f"{len(loose)} rows are matched in another spelling: {some(loose)}")
    if elsewhere:
        say(f"{elsewhere} rows name folders that are not known here: their slides are matched by file name alone")
    return found


def _is_imported(folder: Path) -> bool:
    record = SlideFolder(folder).record()
    return record is not None and record.recipe.is_imported


def _stored_names(out: OutFolder) -> dict[Path, list[str]]:
    """What each slide with features may be called: by its slide_id, names of its file, their stems."""
    return {out.slide(slide_id).path: names for slide_id, names in out.called_as().items()}


def _shared_cap(caps: Sequence[tuple[ManifestRow, int | None, int]]) -> int | None:
    """The cap on tiles that all slides share: of those that it cut, and of those that have no more tiles than it allows."""
    cut = [(row, cap) for row, cap, _ in caps if cap is not None]
    if not cut:
        return None
    first, shared = cut[0]
    for row, cap, tiles in caps:
        if cap != shared and (cap is not None or tiles > shared):
            raise SettingsError(
                f"Line {row.line}: the features of {row.slide.name} were made otherwise than those of {first.slide.name} (max_tiles: {shared} in "
                f"{first.slide.name}, {cap} in {row.slide.name}). Embed all slides of a table with the same settings, or take it out."
            )
    return shared


def _refuse_other_shaping(name: str, shape: Values, slide: SlideFeatures, row: ManifestRow) -> None:
    """Features of one table must share everything that shaped the tiles."""
    other = slide.shaping()
    if other != shape:
        said = "; ".join(differing(shape, other, there=f"in {name}", here=f"in {row.slide.name}")[:SHOWN])
        raise SettingsError(
            f"Line {row.line}: the features of {row.slide.name} were made otherwise than those of {name} ({said}). "
            "Embed all slides of a table with the same settings, or take it out."
        )


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


def cohort_digest(bags: Sequence[Bag]) -> str:
    """SHA-256 of patients, slides with their features, truth and marks: what a model was trained on."""
    lines = []
    for bag in bags:
        marks = [] if bag.marks is None else [hashlib.sha256(bag.marks.numpy().tobytes()).hexdigest()]
        lines.append(
            json.dumps([bag.patient, bag.truth.tolist(), sorted(zip(bag.slides, bag.stored or bag.slides, strict=True)), *marks])
        )
    lines.sort()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
