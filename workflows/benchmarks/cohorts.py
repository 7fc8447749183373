"""Cohorts of slides with known truth from labelled real tissue: lymph node (PatchCamelyon) and breast (IDC).

python workflows/benchmarks/cohorts.py --data DATA --work WORK [--cohort lymph breast] [--seed 0]

    lymph     all PatchCamelyon patches, shared out anew: half to train, a fifth to validate, the rest to test. For
              encoders that have not seen their labels.
    breast    IDC patches, by patient

Each slide is a tissue-shaped mosaic of real tiles at their real pixel size, saved as a tiled JPEG pyramid. Tumour tiles
lie together in one to three regions that cover 0.5 % to 60 % of the tissue; every second slide has none. Lymph node slides
have up to two folds, whatever their label. No patch (lymph) and no patient (breast) of one part occurs in another.
Writes, under WORK/<cohort>/:

    slides/*.tif, *.geojson    the slides, and the outline of their tumour
    labels.csv                 train, validation and test slides: slide, label, split, patient, tumour_share
    strange.csv                slides unlike the cohort (another stain, blur, foreign tissue), for validation and test;
                               for breast, the one patient whose patches are a complete slide too
    all.csv                    both, for `pathovit embed --manifest`
    tiles.toml                 settings for `pathovit embed --settings`: encoder, and tiles that are the patches
    retile.csv, half.toml      some test slides, and settings that lay tiles at half the stride
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mosaics import (
    GLASS,
    MAX_FOLDS,
    Patch,
    Pool,
    blur,
    draw_layout,
    fold,
    other_gain,
    paint,
    save_pyramid,
    save_truth,
    usual_gain,
)
from PIL import Image

from pathovit.settings import TileSpec, TissueSettings
from pathovit.slides.slide import open_slide
from pathovit.slides.tiling import lay_grid, read_tile
from pathovit.slides.tissue import find_tissue

SLIDES = {"train": 100, "validation": 60, "test": 100}
RETILED = 20  # test slides that are embedded again at half the stride
STRANGE = {"validation": 8, "test": 24}  # slides of each kind of strangeness
SHARES = (0.005, 0.6)  # of the tissue that is tumour
PATCHES_A_SLIDE = {0: 80, 1: 40}  # drawn from the pool for each lymph node slide, so that slides differ
PATCH_SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}  # of all lymph node patches
PATCH_SEED = 0
PATIENTS_A_SLIDE = 4  # of each breast slide
COMPLETE_SLIDE = "14082"  # this breast patient is a slide of its own
FOREIGN = {  # atlas patients whose tissue is foreign to both cohorts
    "validation": ("metaplasia", "crohn-colonoscopic-biopsy", "gallbladder-adenomyoma"),
    "test": ("helicobacterpylori", "colon-submucosal-lipoma", "tubularadenoma-flat"),
}


@dataclass(frozen=True)
class Source:
    """Labelled patches of one cohort: for each part, a function that draws the patches of one slide."""

    name: str
    patch_px: int
    mpp: float
    draw: dict[str, Callable[[np.random.Generator], Pool]]
    folds: int = 0  # at most, on a slide
    encoder: str = "reference"
    tile_px: int | None = None  # what the encoder needs, if that is not `patch_px`


def lymph(data: Path) -> Source:
    """All PCam patches, shared out to the parts at random."""
    parts = list(pcam_parts(data).values())
    shared: dict[str, Pool] = {part: {} for part in PATCH_SHARES}
    for label in (0, 1):
        patches = [patch for pool in parts for patch in pool[label]]
        order = np.random.default_rng(PATCH_SEED).permutation(len(patches))
        ends = np.rint(np.cumsum(list(PATCH_SHARES.values())) * len(patches)).astype(int)
        for part, chosen in zip(PATCH_SHARES, np.split(order, ends[:-1]), strict=True):
            shared[part][label] = [patches[i] for i in chosen]
    return Source("lymph", 96, 1.0, {part: _some_patches(pool) for part, pool in shared.items()}, MAX_FOLDS, "dinov2_small", 98)


def pcam_parts(data: Path) -> dict[str, Pool]:
    """The parts as published, without what two of them share."""
    tables = {
        "test": [data / "pcam" / "test_labels.csv"],
        "validation": [data / "pcam" / "validation_labels.csv"],
        "train": [data / "pcam" / "train_labels.csv", data / "pcam_more" / "labels.csv"],
    }
    seen: set[bytes] = set()
    parts: dict[str, Pool] = {}
    for part, files in tables.items():
        parts[part] = {0: [], 1: []}
        for table in files:
            for image, label in read_labels(table):
                if image.tobytes() not in seen:
                    seen.add(image.tobytes())
                    parts[part][label].append(image)
    return parts


def _some_patches(pool: Pool) -> Callable[[np.random.Generator], Pool]:
    def draw(chance: np.random.Generator) -> Pool:
        return {
            label: [patches[i] for i in chance.permutation(len(patches))[: PATCHES_A_SLIDE[label]]]
            for label, patches in pool.items()
        }

    return draw


def read_labels(table: Path) -> list[tuple[Patch, int]]:
    """(96, 96, 3) images and labels of one PCam table."""
    files = {path.name: path for path in table.parent.rglob("*.png")}
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {key.lower(): key for key in rows[0]}
    name_key = next(names[key] for key in ("filename", "file", "image", "name", "id") if key in names)
    label_key = next(names[key] for key in ("label", "class", "target") if key in names)
    found = []
    for row in rows:
        name = Path(row[name_key]).name
        path = files[name if name.endswith(".png") else f"{name}.png"]
        found.append((np.asarray(Image.open(path).convert("RGB")), int(row[label_key])))
    return found


def breast(data: Path) -> Source:
    """IDC patches by patient: half the patients train, a sixth validates, a third tests."""
    patients: dict[str, Pool] = defaultdict(lambda: {0: [], 1: []})
    with (data / "idc" / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            image = np.asarray(Image.open(data / "idc" / row["filename"]).convert("RGB"))
            if row["patient"] != COMPLETE_SLIDE and image.shape == (50, 50, 3):
                patients[row["patient"]][int(row["label"])].append(image)
    order = sorted(patients, key=lambda name: (len(patients[name][1]), name))  # each part gets patients rich and poor in tumour
    places = {"train": (0, 2, 4), "validation": (1,), "test": (3, 5)}
    parts = {part: [name for i, name in enumerate(order) if i % 6 in sixths] for part, sixths in places.items()}
    return Source("breast", 50, 4.0, {part: _some_patients([patients[n] for n in names]) for part, names in parts.items()})


def _some_patients(pools: list[Pool]) -> Callable[[np.random.Generator], Pool]:
    size = np.array([len(pool[0]) + len(pool[1]) for pool in pools], float)

    def draw(chance: np.random.Generator) -> Pool:
        while True:
            chosen = chance.choice(len(pools), PATIENTS_A_SLIDE, replace=False, p=size / size.sum())
            drawn = {label: [patch for i in chosen for patch in pools[i][label]] for label in (0, 1)}
            if len(drawn[0]) >= 40 and len(drawn[1]) >= 10:
                return drawn

    return draw


SOURCES = {"lymph": lymph, "breast": breast}


def complete_slide(data: Path, folder: Path) -> dict[str, object]:
    """The one patient whose patches are a complete slide, laid out as they were cut; its row of the table."""
    with (data / "idc" / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] == COMPLETE_SLIDE]
    left, top = (min(int(row[axis]) for row in rows) for axis in "xy")
    columns, lines = ((max(int(row[axis]) for row in rows) - first) // 50 + 1 for axis, first in (("x", left), ("y", top)))
    picture = np.empty(((lines + 2) * 50, (columns + 2) * 50, 3), np.uint8)  # with a margin of glass
    picture[:] = GLASS
    cells = np.zeros((lines + 2, columns + 2), np.int64)
    for row in rows:
        image = np.asarray(Image.open(data / "idc" / row["filename"]).convert("RGB"))
        column, line = (int(row["x"]) - left) // 50 + 1, (int(row["y"]) - top) // 50 + 1
        cells[line, column] = 1 + int(row["label"])
        picture[line * 50 : line * 50 + image.shape[0], column * 50 : column * 50 + image.shape[1]] = image
    path = folder / "slides" / f"breast-complete-{COMPLETE_SLIDE}.tif"
    save_pyramid(path, picture, 4.0, 95)
    save_truth(path.with_suffix(".geojson"), cells, 50)
    share = f"{(cells == 2).sum() / (cells > 0).sum():.4f}"
    name = {"slide": f"slides/{path.name}", "label": "tumour", "split": "test", "patient": path.stem}
    return {**name, "tumour_share": share, "strange": "complete"}


def foreign(data: Path, source: Source, patients: tuple[str, ...]) -> Callable[[np.random.Generator], Pool]:
    """Tiles of atlas slides of other organs, at the cohort's pixel size, standing in for normal tissue and for tumour."""
    tiles: list[Patch] = []
    spec = TileSpec(tile_px=source.patch_px, mpp=source.mpp, stride_px=source.patch_px, min_coverage=0.9)
    with (data / "atlas" / "slides.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] in patients and row["file"].startswith("1mpp/")]
    for row in rows:
        mpp = None if row["mpp_known"] == "1" else float(row["mpp_assumed"])
        with open_slide(data / "atlas" / row["file"], mpp) as slide:
            grid = lay_grid(slide, find_tissue(slide, TissueSettings()), spec, 200)
            tiles += [tile for index in range(len(grid)) if (tile := read_tile(slide, grid, index)) is not None]
    return lambda chance: {label: [tiles[i] for i in chance.permutation(len(tiles))[:80]] for label in (0, 1)}


def tumour_shares(slides: int, chance: np.random.Generator, between: tuple[float, float] = SHARES) -> list[float]:
    """Every second slide has tumour; its shares are spread evenly on a logarithmic scale."""
    steps = chance.permutation(slides // 2) + chance.random(slides // 2)
    low, high = np.log(between)
    shares = np.exp(low + (high - low) * steps / max(1, slides // 2))
    return [float(shares[i // 2]) if i % 2 == 0 else 0.0 for i in range(slides)]


def make_cohort(data: Path, folder: Path, source: Source, seed: int) -> None:
    """Slides and tables of one cohort."""
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    usual, strange = [], []
    for number, (part, count) in enumerate(SLIDES.items()):
        chance = np.random.default_rng([seed, number])
        for index, share in enumerate(tumour_shares(count, chance)):
            name = f"{source.name}-{part}-{index:03d}"
            usual.append(make_slide(folder, name, part, share, source, source.draw[part], chance))
    for number, (part, count) in enumerate(STRANGE.items()):
        chance = np.random.default_rng([seed, 10 + number])
        tissue = foreign(data, source, FOREIGN[part])
        for kind in ("stain", "blur", "foreign"):
            draw = tissue if kind == "foreign" else source.draw[part]
            for index, share in enumerate(tumour_shares(count, chance)):
                name = f"{source.name}-{part}-{kind}-{index:03d}"
                row = make_slide(folder, name, part, share, source, draw, chance, kind)
                strange.append({**row, "label": ""} if kind == "foreign" else row)
    if source.name == "breast":
        strange.append(complete_slide(data, folder))
    write_table(folder / "labels.csv", usual)
    write_table(folder / "strange.csv", strange)
    write_table(folder / "all.csv", usual + strange)
    write_table(folder / "retile.csv", [row for row in usual if row["split"] == "test"][:RETILED])
    tile_px = source.tile_px or source.patch_px
    settings = (
        f'[embed]\nencoder = "{source.encoder}"\n[tiles]\ntile_px = {tile_px}\nmpp = {source.mpp * source.patch_px / tile_px}\n'
    )
    (folder / "tiles.toml").write_text(settings)
    (folder / "half.toml").write_text(f"{settings}stride_px = {tile_px // 2}\n")
    print(f"{len(usual)} slides and {len(strange)} strange ones in {folder}")


def make_slide(
    folder: Path, name: str, part: str, share: float, source: Source, draw: Callable[[np.random.Generator], Pool],
    chance: np.random.Generator, strange: str = "",
) -> dict[str, object]:  # fmt: skip
    """One slide file with its truth; returns its row of the table."""
    cells = draw_layout(share, (22, 30) if strange else (24, 46), chance)
    gain = other_gain(chance) if strange == "stain" else usual_gain(chance)
    picture = paint(cells, draw(chance), source.patch_px, gain, chance)
    if source.folds:
        tissue = np.kron(cells > 0, np.ones((source.patch_px,) * 2, bool))
        for _ in range(chance.integers(0, source.folds + 1)):
            picture = fold(picture, tissue, source.mpp, chance)
    if strange == "blur":
        picture = blur(picture, chance)
    path = folder / "slides" / f"{name}.tif"
    save_pyramid(path, picture, source.mpp, int(chance.integers(75, 95)))
    save_truth(path.with_suffix(".geojson"), cells, source.patch_px)
    label = "tumour" if share else "normal"
    exact = f"{(cells == 2).sum() / (cells > 0).sum():.4f}"
    return {
        "slide": f"slides/{path.name}",
        "label": label,
        "split": part,
        "patient": name,
        "tumour_share": exact,
        "strange": strange,
    }


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cohort", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.cohort:
        make_cohort(options.data, options.work / name, SOURCES[name](options.data), options.seed)


if __name__ == "__main__":
    main()
