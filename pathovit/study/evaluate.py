"""A model judged on the patients of a table: evaluation.json, predictions, pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.files import open_text, to_json, write_atomically
from pathovit.model.card import read_card
from pathovit.model.faithfulness import CheckSummary
from pathovit.model.judged import Abstention, Metrics, OfSize
from pathovit.model.slide_model import load_model
from pathovit.model.targets import Target
from pathovit.outputs.names import PATIENT_ID, Names, key_of
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import EmbedRecipe
from pathovit.study.cohort import Cohort, said_of_rivals
from pathovit.study.evaluation import answers_csv, evaluate
from pathovit.study.figures import evaluation_picture, maps_picture
from pathovit.study.fit import OnStep
from pathovit.study.judge import abstention, answer, check_model
from pathovit.study.localisation import judge_maps, localisation, maps_csv
from pathovit.study.sizes import by_size
from pathovit.tables import part_named
from pathovit.text import counted


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json: how a model did on the patients of a table."""

    model: str
    model_sha256: str
    target: Target
    patients: int
    patients_it_learned_from: int  # with a slide that it learned from
    patients_named_alike: int  # others, who are called like one that it learned from
    patients_known_by: str  # names and slides; slides, where the model came without names
    metrics: Metrics
    sizes: tuple[OfSize, ...]
    abstention: Abstention | None
    heatmap_check: CheckSummary
    localisation: Metrics | None
    strange: int
    trial: bool
    remarks: tuple[str, ...]  # what must be said of these figures
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        return {
            "research_use": RESEARCH_USE,
            **{name: getattr(self, name) for name in ("model", "model_sha256")},
            "target": asdict(self.target),
            **{
                name: getattr(self, name)
                for name in ("patients", "patients_it_learned_from", "patients_named_alike", "patients_known_by", "remarks")
            },
            "metrics": self.metrics.to_json(),
            "by_size": [asdict(one) for one in self.sizes],
            "abstention": self.abstention and self.abstention.to_json(),
            "heatmap_check": self.heatmap_check.to_json(),
            "localisation": self.localisation and self.localisation.to_json(),
            **{name: getattr(self, name) for name in ("strange", "trial")},
            "versions": dict(self.versions),
        }


def evaluate_model(
    folder: str | Path, cohort: Cohort, out: Path, split: str | None, seed: int = 0,
    on_step: OnStep = lambda what, done, total: None, keep_names: bool = False,
) -> Evaluation:  # fmt: skip
    """Judge a model on the patients of a table; writes predictions.csv, evaluation.json and evaluation.png to `out`.

    Where regions are drawn, its maps too: localisation.csv and localisation.png.

    Parameters
    ----------
    keep_names : tables and pictures tell patients by name, not by an id
    """
    model, model_folder = load_model(folder), read_card(folder)[0]
    model.check(EmbedRecipe(cohort.recipe))
    wanted = split and (part_named(split) or split)
    bags, others = (
        [bag for bag in part if split is None or cohort.fixed.get(bag.patient) == wanted]
        for part in (cohort.bags, cohort.unlabelled)
    )
    if split and cohort.rival_splits:
        raise SettingsError(said_of_rivals(cohort.rival_splits))
    if not bags:
        raise SettingsError(f"No patient of the table is in split {split!r}. Correct --split or the column.")
    on_step("answering patients", 0, len(bags))
    answers = answer(model, bags)
    on_step("metrics with their intervals", 0, len(bags))
    slides, patients, known_by = _seen_before(Path(folder))
    learned = [any(slide[-12:] in slides for slide in bag.slides) for bag in bags]
    marked = [bag for bag in (*bags, *others) if bag.marks is not None]
    on_step("judging maps", 0, len(marked))
    maps = judge_maps(model, marked)
    found = Evaluation(
        model=model.name,
        model_sha256=model.sha256,
        target=model.target,
        patients=len(bags),
        patients_it_learned_from=sum(learned),
        patients_named_alike=sum(bag.patient in patients and not known for bag, known in zip(bags, learned, strict=True)),
        patients_known_by=known_by,
        metrics=evaluate(answers, seed),
        sizes=by_size(answers, "this table", seed),
        abstention=abstention(model, answers) if model.target.is_classification else None,
        heatmap_check=check_model(model, bags, on_step),
        localisation=localisation(maps, seed),
        strange=int((answers.novelty > 1).sum()),
        trial=bool(cohort.recipe["max_tiles"]),
        remarks=tuple(model.remarks_on(cohort.recipe)),
        versions=versions(),
    )
    names = None if keep_names else Names.beside(out, cohort.key, key_of(model_folder))
    tell = names.patient_id if names else str
    extra = {"novelty": [f"{v:.4f}" for v in answers.novelty]} if model.novelty else {}
    write_atomically(out / "predictions.csv", answers_csv(answers, tell, extra))
    evaluation_picture(out / "evaluation.png", answers, found.metrics, f"{model.name}, {len(bags)} patients")
    if maps:
        write_atomically(out / "localisation.csv", maps_csv(maps, tell))
        maps_picture(
            out / "localisation.png", model, marked, f"{model.name}, {counted(len(marked), 'patient')} with regions", tell
        )
    else:  # of a model that was judged before
        for stale in ("localisation.csv", "localisation.png"):
            (out / stale).unlink(missing_ok=True)
    if names:
        names.write(out)
    write_atomically(out / "evaluation.json", to_json(found.to_json()))
    return found


def _seen_before(folder: Path) -> tuple[set[str], set[str], str]:
    """Slides (by the digits of their content) and patients that a model was fitted or calibrated on, and by what they can be known."""
    path = read_card(folder)[0] / "split.csv"
    if not path.is_file():
        return set(), set(), "nothing: the model came without split.csv"
    with open_text(path) as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "test"]
    names = Names.read(path.parent)
    patients = {names.patient_of(row["patient"]) for row in rows}
    untold = any(PATIENT_ID.fullmatch(patient) for patient in patients)
    return {row["slide_id"][-12:] for row in rows}, patients, "slides" if untold else "names and slides"
