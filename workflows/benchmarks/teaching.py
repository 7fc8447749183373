"""How well a model is taught by a few strokes: on outlined slides, judged far from what was painted.

python workflows/benchmarks/teaching.py OUT [OUT ...] --regions workflows/reference/regions --to FOLDER [--seeds 5] [--across 5]

OUT are folders of stored features of outlined slides. On each slide straight strokes are painted inside the outlines, and all
outlined tiles at least six tiles from any painted one are judged (AUROC per tile). Two ways: five strokes of four tiles of each
class; one stroke of ten of each, then two rounds of ten tiles that `pathovit teach --suggest` would ask for, answered from the
outlines. Beside the true AUROC stands the one that the model expected of itself. With --across, each slide's model by five strokes is
judged on so many other slides of the same classes instead, on all their outlined tiles. Writes teaching.json or across.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from stored import by_stem

from pathovit.errors import SettingsError
from pathovit.model.metrics import auroc
from pathovit.model.slide_model import SlideModel
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.store import FeatureStore
from pathovit.study.lessons import Lesson, Lessons
from pathovit.study.regions import NOTHING, Meaning, TileLabels, label_tiles, read_regions
from pathovit.study.suggest import candidates, choose
from pathovit.study.teach import learn

APART, LEAST_JUDGED = 6, 20  # tiles
TRIES = 4000
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Outlined:
    """A slide whose tiles are known as far as outlines go."""

    name: str  # of its file, without the ending
    record: SlideRecord
    stored: SlideFeatures
    classes: tuple[str, ...]
    truth: Places  # (N,) index of the class, NOTHING where it is not known
    place: Places  # (N, 2) column and row

    def strokes(self, of: int, count: int, length: int, chance: np.random.Generator) -> Places:
        """Tiles (count * length,) of straight strokes; fewer, where a class has no room for them."""
        at = {tuple(place): tile for tile, place in enumerate(self.place.tolist())}
        begins, painted = np.flatnonzero(self.truth == of), list[int]()
        for _ in range(TRIES):
            x, y = self.place[chance.choice(begins)]
            dx, dy = ((1, 0), (0, 1), (1, 1), (1, -1))[chance.integers(4)]
            line = [at.get((x + step * dx, y + step * dy), -1) for step in range(length)]
            if all(tile >= 0 and self.truth[tile] == of and tile not in painted for tile in line):
                painted += line
            if len(painted) == count * length:
                break
        return np.array(painted, np.int64)

    def judged(self, painted: Places) -> Places:
        """Tiles whose class is known, far from all that are painted."""
        grid = np.zeros(self.place.max(0) + 1, bool)
        grid[tuple(self.place[painted].T)] = True
        near = maximum_filter(grid, 2 * APART - 1)
        return np.flatnonzero((self.truth != NOTHING) & ~near[tuple(self.place.T)])

    def lessons(self, painted: Places) -> Lessons:
        allowed = np.ones((len(self.truth), len(self.classes)), bool)
        allowed[painted] = np.eye(len(self.classes), dtype=bool)[self.truth[painted]]
        labels = TileLabels(allowed, np.where(allowed.all(1), NOTHING, 0))
        return Lessons((Lesson(self.stored, labels, self.record.slide_id),), self.classes)


def outlined_slides(folders: list[Path], regions: Path) -> Iterator[Outlined]:
    for folder in folders:
        for stem, slide in by_stem(folder).items():
            file, record = regions / f"{stem}.geojson", slide.record()
            if record and file.is_file():
                stored = FeatureStore(slide, Path(stem)).read()
                drawn = read_regions(file, print)
                try:
                    meaning = Meaning.of({record.slide_id: drawn})
                except SettingsError:  # one class alone: nothing can be taught on it
                    continue
                labels = label_tiles(stored, drawn, meaning, print)
                truth = np.where(labels.known, labels.allowed.argmax(1), NOTHING)
                place = np.rint((stored.xy - np.asarray(stored.grid.origin)) / np.asarray(stored.grid.stride_l0)).astype(np.int64)
                yield Outlined(stem, record, stored, meaning.classes, truth, place - place.min(0))


def true_auroc(slide: Outlined, model: SlideModel, painted: Places) -> float | None:
    """Of all outlined tiles far from the paint; None where too few are left."""
    judged = slide.judged(painted)
    truth = (slide.truth[judged] == 1).astype(np.int64)
    if min(truth.sum(), (1 - truth).sum()) < LEAST_JUDGED:
        return None
    return auroc(truth, model.predict(slide.stored).tile_scores[judged, 0].astype(np.float64))


def five_strokes(slide: Outlined, seed: int) -> dict[str, float | None] | None:
    """Taught by five strokes of four tiles of each class."""
    chance = np.random.default_rng(seed)
    painted = np.concatenate([slide.strokes(of, 5, 4, chance) for of in (1, 0)])
    if len(painted) < 40:
        return None
    began = time.perf_counter()
    model = learn(slide.lessons(painted))
    took = time.perf_counter() - began
    found = true_auroc(slide, model, painted)
    expected = next((figures["auroc"] for figures in model.card.values["taught"]["left_out"]), None)
    return None if found is None else {"auroc": found, "expected": expected, "seconds": took}


def asked_twice(slide: Outlined, seed: int) -> list[float] | None:
    """Taught by one stroke of ten tiles of each class, then twice by ten tiles that were asked for."""
    chance = np.random.default_rng(seed)
    painted = np.concatenate([slide.strokes(of, 1, 10, chance) for of in (1, 0)])
    if len(painted) < 20:
        return None
    found = []
    for _ in range(3):
        model = learn(slide.lessons(painted))
        there = true_auroc(slide, model, painted)
        if there is None:
            return None
        found.append(there)
        closed = slide.truth == NOTHING  # a person could answer for these, too; the outlines cannot
        closed[painted] = True
        asked = choose([candidates(slide.record, slide.stored, model, closed)], 10)
        painted = np.concatenate([painted, [tile.index for tile in asked]]).astype(np.int64)
    return found


def across(slides: list[Outlined], others: int) -> list[dict[str, float]]:
    """Taught by five strokes of one slide, judged on other ones: AUROC per tile, and the share that the model marks as unlike."""
    found = []
    for number, slide in enumerate(slides):
        chance = np.random.default_rng(number)
        painted = np.concatenate([slide.strokes(of, 5, 4, chance) for of in (1, 0)])
        if len(painted) < 40:
            continue
        model = learn(slide.lessons(painted))
        same = [other for other in slides if other is not slide and other.classes == slide.classes]
        for other in (same[place] for place in chance.permutation(len(same))[:others]):
            known = other.truth != NOTHING
            said = model.predict(other.stored)
            auc = auroc((other.truth[known] == 1).astype(np.int64), said.tile_scores[known, 0].astype(np.float64))
            found.append({"auroc": auc, "unlike": float((said.tile_novelty[known] > 1).mean())})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="+", type=Path)
    parser.add_argument("--regions", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--across", type=int, default=0)
    options = parser.parse_args()
    if options.across:
        with_both = [slide for slide in outlined_slides(options.out, options.regions) if {0, 1} <= {*slide.truth.tolist()}]
        pairs = across(with_both, options.across)
        if not pairs:
            parser.error("no slide has room for five strokes of both classes and others of the same classes")
        options.to.mkdir(parents=True, exist_ok=True)
        (options.to / "across.json").write_text(json.dumps(pairs, indent=1) + "\n")
        values = np.array([pair["auroc"] for pair in pairs])
        print(
            f"{len(pairs)} pairs of {len(with_both)} slides: AUROC {values.mean():.3f}, worst tenth below {np.quantile(values, 0.1):.3f}, worst "
            f"{values.min():.3f}; marked unlike {np.mean([pair['unlike'] for pair in pairs]):.0%}"
        )
        return
    rows = []
    for slide in outlined_slides(options.out, options.regions):
        try:
            strokes = [one for seed in range(options.seeds) if (one := five_strokes(slide, seed))]
            rounds = [one for seed in range(options.seeds) if (one := asked_twice(slide, seed))]
        except SettingsError as error:
            print(f"{slide.name}: left out ({error})")
            continue
        row = {
            "file": slide.name,
            "tiles": len(slide.truth),
            "outlined": [int((slide.truth == of).sum()) for of in (1, 0)],
            "strokes": strokes,
            "rounds": rounds,
        }
        rows.append(row)
        told = [
            f"{one['auroc']:.3f}" + (f" (expected {one['expected']:.3f})" if one["expected"] is not None else "")
            for one in strokes
        ]
        asked = [" ".join(f"{value:.3f}" for value in one) for one in rounds]
        print(
            f"{row['file'][:40]:40} {row['outlined']}  five strokes: {', '.join(told) or '-'}  asked: {'; '.join(asked) or '-'}"
        )
    options.to.mkdir(parents=True, exist_ok=True)
    (options.to / "teaching.json").write_text(json.dumps(rows, indent=1) + "\n")
    _sum_up(rows)


def _sum_up(rows: list[dict[str, object]]) -> None:
    by_slide = {row["file"]: [one["auroc"] for one in row["strokes"]] for row in rows if row["strokes"]}  # type: ignore[attr-defined, union-attr]
    means = {file: statistics.mean(values) for file, values in by_slide.items()}
    worst = min(means, key=lambda file: means[file])
    print(
        f"\nfive strokes of four, {len(means)} slides: mean {statistics.mean(means.values()):.3f}, worst {means[worst]:.3f} ({worst})"
    )
    near = [
        abs(statistics.mean(known) - means[row["file"]]) <= 0.05  # type: ignore[index]
        for row in rows
        if row["file"] in means and (known := [one["expected"] for one in row["strokes"] if one["expected"] is not None])  # type: ignore[attr-defined, union-attr]
    ]
    print(f"its own expectation within 0.05: {sum(near)} of {len(near)} slides")
    rounds = {row["file"]: np.mean(row["rounds"], 0) for row in rows if row["rounds"]}  # type: ignore[arg-type]
    table = np.array(list(rounds.values()))
    print(
        f"one stroke of ten, then two rounds of ten asked for, {len(table)} slides: mean {table.mean(0).round(3)}, worst {table.min(0).round(3)}"
    )


if __name__ == "__main__":
    main()
