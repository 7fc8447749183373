"""Slides of lymph node with known truth, for the reference slide model, and slides that it must not answer.

python workflows/reference/tissue_slides.py --data DATA --work WORK [--seed 0]

Mosaics of PatchCamelyon patches, of 150 to 1,500 tiles, half of them without tumour; tumour lies in one to three places and
covers 2 % to 60 % of the tissue. The encoder has seen none of the patches: those that it learned from look easier to it than
any others will. Each has a stain of its own, up to two folds, its own JPEG quality, few or many different
patches, and on half of them the patches lie askew of the tiles, at another resolution. Every one is shown a second time
("other"), as another laboratory and scanner would: haematoxylin and eosin stronger or weaker, a little out of focus or sharpened,
more compressed. No patch of one part occurs in another.
Slides to be found strange are the same mosaics in another stain, out of focus, and so on (KINDS), and tissue of other organs.

Writes, under WORK/tissue/: slides/*.tif and *.geojson (the outline of their tumour), labels.csv, strange.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from cohorts import FOREIGN, Source, foreign, pcam_parts, read_labels, tumour_shares, write_table
from mosaics import GLASS, Patch, Pool, blur, denser, draw_layout, fold, other_gain, paint, save_pyramid, save_truth
from PIL import Image

from pathovit.slides.alter import USUAL, restained

SLIDES = {"lymph": {"train": 80, "validation": 100, "test": 50}, "other": {"train": 80, "validation": 100, "test": 50}}
STRANGE = 4  # slides of each kind
PATCHES = {"train": 0.55, "validation": 0.25, "test": 0.2}  # of those that the encoder has not seen
SHARES = (0.02, 0.6)  # of the tissue that is tumour
SIDES = (16.0, 48.0)  # cells on a side; the tissue covers a little more than half of them
FEWEST = {0: 40, 1: 20}  # different patches of each label on a slide, at least
PATCH = 96
GAIN = 0.07  # spread of the usual gain of each channel's optical density
QUALITY = (75, 95)  # of JPEG
OTHER_QUALITY = (50, 96)
OTHER_STAIN = 0.15  # spread of the logarithm of how much haematoxylin and eosin a slide took
SOFT_PX, SHARP = (0.3, 0.8), (0.3, 1.0)  # of the blur of a slide out of focus; how far another is sharpened
Row = dict[str, object]
Change = Callable[[Patch, np.random.Generator], Patch]


@dataclass(frozen=True)
class Task:
    """One slide to be made."""

    folder: Path
    name: str
    part: str
    share: float
    pool: Pool
    seed: tuple[int, ...]
    other: bool  # shown as another laboratory would
    strange: str = ""


def make(task: Task) -> Row:
    """One slide file with its truth; returns its row of the table."""
    chance = np.random.default_rng(task.seed)
    side = np.exp(chance.uniform(*np.log(SIDES)))
    cells = draw_layout(task.share, (max(14, int(0.85 * side)), int(1.15 * side) + 2), chance)
    gain = other_gain(chance) if task.strange == "stain" else np.asarray(chance.normal(1, GAIN, 3))
    picture = paint(cells, _some(task.pool, chance), PATCH, gain, chance)
    if task.other:
        picture = restained(picture, USUAL, *np.exp(chance.normal(0, OTHER_STAIN, 2)))
    mpp, away = (1.0, 0) if chance.random() < 0.5 else (float(chance.uniform(0.94, 1.06)), int(chance.integers(PATCH)))
    tissue = np.kron(cells > 0, np.ones((PATCH, PATCH), bool))
    for _ in range(chance.integers(0, 3)):
        picture = fold(picture, tissue, mpp, chance)
    if task.other:
        picture = focus(picture, chance)
    if task.strange in CHANGES:
        picture = CHANGES[task.strange](picture, chance)
    moved = np.full((picture.shape[0] + away, picture.shape[1] + away, 3), GLASS, np.uint8)
    moved[away:, away:] = picture
    path = task.folder / "slides" / f"{task.name}.tif"
    save_pyramid(path, moved, mpp, int(chance.integers(*(OTHER_QUALITY if task.other else QUALITY))))
    save_truth(path.with_suffix(".geojson"), cells, PATCH, away)
    return {
        "slide": f"slides/{path.name}",
        "label": "tumour" if task.share else "normal",
        "split": task.part,
        "patient": task.name,
        "tumour_share": f"{(cells == 2).sum() / (cells > 0).sum():.4f}",
        "strange": task.strange,
    }


def _some(pool: Pool, chance: np.random.Generator) -> Pool:
    """Few or many of the patches, so that slides differ."""
    found = {}
    for label, patches in pool.items():
        wanted = int(np.exp(chance.uniform(np.log(FEWEST[label]), np.log(max(FEWEST[label] + 1, len(patches))))))
        found[label] = [patches[i] for i in chance.permutation(len(patches))[:wanted]]
    return found


def focus(picture: Patch, chance: np.random.Generator) -> Patch:
    """As scanners do: a third of slides as they are, a third a little out of focus, a third sharpened."""
    kind = chance.integers(3)
    if kind == 0:
        return picture
    soft = cv2.GaussianBlur(picture, (0, 0), chance.uniform(*SOFT_PX) if kind == 1 else 1.0)
    amount = chance.uniform(*SHARP)
    return np.asarray(soft if kind == 1 else cv2.addWeighted(picture, 1 + amount, soft, -amount, 0))


def brown(picture: Patch, chance: np.random.Generator) -> Patch:
    """As if eosin were DAB: red and green swapped for those of a brown."""
    density = -np.log(np.maximum(picture, 1) / 255.0)
    turned = np.stack([0.6 * density[..., 0], 0.75 * density[..., 1] + 0.2 * density[..., 0], 1.3 * density[..., 1]], -1)
    return np.asarray((255 * np.exp(-turned)).clip(0, 255), np.uint8)


def inked(picture: Patch, chance: np.random.Generator) -> Patch:
    """Green or blue ink over all of it."""
    return denser(picture, np.array((2.2, 1.2, 1.4) if chance.random() < 0.5 else (2.2, 1.6, 0.9)))


def grey(picture: Patch, chance: np.random.Generator) -> Patch:
    level = picture.mean(-1, keepdims=True)
    return np.asarray(level + chance.uniform(0, 0.25) * (picture - level), np.uint8)


def dark(picture: Patch, chance: np.random.Generator) -> Patch:
    """A lamp at half its light, white balance done on the glass."""
    return denser(picture, np.array(1.8))


def pale(picture: Patch, chance: np.random.Generator) -> Patch:
    return denser(picture, np.array(0.45))


def noisy(picture: Patch, chance: np.random.Generator) -> Patch:
    return np.asarray((picture + chance.normal(0, 22, picture.shape)).clip(0, 255), np.uint8)


def blocky(picture: Patch, chance: np.random.Generator) -> Patch:
    """JPEG of a very low quality."""
    _, packed = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(chance.integers(4, 9))])
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))


def zoomed(picture: Patch, chance: np.random.Generator) -> Patch:
    """Said to be of another resolution than it is: all is twice as large."""
    half = picture[: picture.shape[0] // 2, : picture.shape[1] // 2]
    return np.asarray(cv2.resize(half, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))


def shrunk(picture: Patch, chance: np.random.Generator) -> Patch:
    """The same, half as large."""
    small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.concatenate([np.concatenate([small, small], 0)] * 2, 1)


CHANGES: dict[str, Change] = {
    "blur": blur,
    "brown": brown,
    "inked": inked,
    "grey": grey,
    "dark": dark,
    "pale": pale,
    "noisy": noisy,
    "blocky": blocky,
    "zoomed": zoomed,
    "shrunk": shrunk,
}


def pools(data: Path) -> dict[str, Pool]:
    """Patches of each part: PCam's validation and test parts and 764 more, shared out by label."""
    published = pcam_parts(data)
    seen = {patch.tobytes() for patches in published["train"].values() for patch in patches}
    rest = {label: published["validation"][label] + published["test"][label] for label in (0, 1)}
    seen |= {patch.tobytes() for patches in rest.values() for patch in patches}
    for image, label in read_labels(data / "pcam_rest" / "labels.csv"):
        if image.tobytes() not in seen:
            rest[label].append(image)
    parts: dict[str, Pool] = {part: {} for part in PATCHES}
    for label, patches in rest.items():
        order = np.random.default_rng(label).permutation(len(patches))
        ends = np.rint(np.cumsum(list(PATCHES.values())) * len(patches)).astype(int)
        for part, chosen in zip(PATCHES, np.split(order, ends[:-1]), strict=True):
            parts[part][label] = [patches[place] for place in chosen]
    return parts


def breast_pool(data: Path) -> Pool:
    """Breast at 4 um/px, said to be at 1."""
    patches: Pool = {0: [], 1: []}
    for path in sorted((data / "idc" / "images").rglob("*.png"))[:400]:
        image = np.asarray(Image.open(path).convert("RGB"))
        if image.shape == (50, 50, 3):
            patches[len(patches[0]) % 2].append(cv2.resize(image, (PATCH, PATCH), interpolation=cv2.INTER_CUBIC))
    return patches


def tasks(data: Path, folder: Path, seed: int) -> list[Task]:
    """All slides to be made, strange ones last."""
    found: list[Task] = []
    parts = pools(data)
    for kind, slides in SLIDES.items():
        for number, (part, count) in enumerate(slides.items()):
            for i, share in enumerate(tumour_shares(count, np.random.default_rng([seed, number]), SHARES)):
                name, other = f"{kind}-{part}-{i:03d}", kind == "other"
                found.append(Task(folder, name, part, share, parts[part], (seed, number, i), other))
    source = Source("lymph", PATCH, 1.0, {})
    organs = foreign(data, source, tuple(name for names in FOREIGN.values() for name in names))
    chance = np.random.default_rng([seed, 20])
    for number, kind in enumerate(("stain", *CHANGES, "organs", "breast")):
        pool = organs(chance) if kind == "organs" else breast_pool(data) if kind == "breast" else parts["test"]
        for i, share in enumerate(tumour_shares(STRANGE, chance, SHARES)):
            found.append(Task(folder, f"{kind}-{i:03d}", "test", share, pool, (seed, 20 + number, i), True, kind))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.work / "tissue"
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(make, tasks(options.data, folder, options.seed), chunksize=4))
    write_table(folder / "labels.csv", [row for row in rows if not row["strange"]])
    write_table(folder / "strange.csv", [row for row in rows if row["strange"]])
    print(f"{len(rows)} slides in {folder}")


if __name__ == "__main__":
    main()
