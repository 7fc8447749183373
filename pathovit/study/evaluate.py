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
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import EmbedRecipe
from pathovit.study.cohort import Cohort
from pathovit.study.evaluation import answers_csv, evaluate
from pathovit.study.figures import evaluation_picture, maps_picture
from pathovit.study.fit import OnStep
from pathovit.study.judge import abstention, answer, check_model
from pathovit.study.localisation import judge_maps, localisation, maps_csv
from pathovit.study.sizes import by_size
from pathovit.text import counted


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json: how a model did on the patients of a table."""

    model: str
    model_sha256: str
    target: Target
    patients: int
    patients_it_learned_from: int
    metrics: Metrics
    sizes: tuple[OfSize, ...]
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
            "by_size": [asdict(one) for one in self.sizes],
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
        sizes=by_size(answers, "this table", seed),
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
    with open_text(path) as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "test"]
    return {row["slide_id"] for row in rows} | {row["patient"] for row in rows}
