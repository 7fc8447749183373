"""Slides with known truth from labelled real tissue: mosaics of PatchCamelyon patches, train, validation and test apart.

python workflows/reference/make_mosaics.py --data DATA --work WORK

Each mosaic is a tiled JPEG pyramid of tissue-shaped outline; tumour patches lie together in one to three regions that
cover 2 % to 60 % of the tissue, or there are none. Writes WORK/mosaics/*.tif, the outline of each tumour region beside
it, and WORK/labels.csv with the columns that `pathovit embed --manifest` and `pathovit train` read. Made sample slides
(other seeds than the demo's) and the real atlas slides of the training patients are added to the table.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

PATCH_PX, MPP = 96, 1.0
TILE_PX = 256
SLIDES = {"train": 60, "validation": 24, "test": 40}
SAMPLES = {"train": 10, "validation": 4, "test": 6}  # made slides, half of them benign
SAMPLE_SEED = 1000  # the demo's is 7
GLASS = (243, 242, 244)
TRAINING_ATLAS = (
    "PDAC-tru-cut",
    "lung-squamous-cell-carcinoma",
    "metaplasia",
    "crohn-colonoscopic-biopsy",
    "gallbladder-adenomyoma",
)
Patches = dict[int, list[NDArray[np.uint8]]]  # label -> images


@dataclass(frozen=True)
class Layout:
    """Which cell of a mosaic holds what: 0 glass, 1 normal, 2 tumour (rows, columns)."""

    cells: NDArray[np.int64]


def load_patches(data: Path) -> dict[str, Patches]:
    """PCam patches by part and label; what is equal to a patch of a later part is left out of the earlier one."""
    tables = {
        "test": [data / "pcam" / "test_labels.csv"],
        "validation": [data / "pcam" / "validation_labels.csv"],
        "train": [data / "pcam" / "train_labels.csv", data / "pcam_more" / "labels.csv"],
    }
    seen: set[bytes] = set()
    parts: dict[str, Patches] = {}
    for part, files in tables.items():
        parts[part] = {0: [], 1: []}
        for table in files:
            for image, label in read_labels(table):
                if image.tobytes() not in seen:
                    seen.add(image.tobytes())
                    parts[part][label].append(image)
    return parts


def read_labels(table: Path) -> list[tuple[NDArray[np.uint8], int]]:
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


def smooth_noise(shape: tuple[int, int], sigma: float, chance: np.random.Generator) -> NDArray[np.float64]:
    noise = ndimage.gaussian_filter(chance.normal(size=shape), sigma)
    return np.asarray(noise / noise.std())


def draw_layout(tumour_share: float, chance: np.random.Generator) -> Layout:
    """A tissue-shaped outline with tumour in one to three places."""
    rows, columns = (int(n) for n in chance.integers(18, 30, 2))
    y, x = np.mgrid[0:rows, 0:columns]
    radius = np.hypot((y - rows / 2) / (rows * 0.42), (x - columns / 2) / (columns * 0.42))
    tissue = radius + 0.12 * smooth_noise((rows, columns), 2.5, chance) < 1
    cells = tissue.astype(np.int64)
    wanted = round(tumour_share * tissue.sum())
    if tumour_share > 0:
        inside = np.argwhere(tissue)
        centres = inside[chance.integers(0, len(inside), chance.integers(1, 4))]
        distance = np.min([np.hypot(y - cy, x - cx) for cy, cx in centres], axis=0)
        field = np.where(tissue, distance + 0.7 * smooth_noise((rows, columns), 1.2, chance), np.inf)
        order = np.argsort(field, axis=None)[: max(1, wanted)]
        cells.flat[order] = 2
    return Layout(cells)


def paint(layout: Layout, patches: Patches, chance: np.random.Generator) -> NDArray[np.uint8]:
    """The mosaic at level 0, uint8 (H, W, 3); each slide has its own slight shift of colour."""
    rows, columns = layout.cells.shape
    picture = np.empty((rows * PATCH_PX, columns * PATCH_PX, 3), np.uint8)
    picture[:] = GLASS
    gain = chance.normal(1, 0.06, 3)
    for row, column in np.argwhere(layout.cells > 0):
        choices = patches[int(layout.cells[row, column] == 2)]
        patch = choices[chance.integers(len(choices))]
        patch = np.rot90(patch, chance.integers(4))[:: chance.choice([-1, 1])]
        stained = 255 * (np.maximum(patch, 1) / 255.0) ** gain  # a factor on the optical density
        picture[row * PATCH_PX : (row + 1) * PATCH_PX, column * PATCH_PX : (column + 1) * PATCH_PX] = stained.clip(0, 255)
    return picture


def save_pyramid(path: Path, picture: NDArray[np.uint8], quality: int) -> None:
    """A tiled JPEG pyramid with its pixel size, as OpenSlide's generic TIFF."""
    with tifffile.TiffWriter(path) as tiff:
        for index, factor in enumerate((1, 4)):
            level = picture if factor == 1 else np.asarray(Image.fromarray(picture).reduce(factor))
            per_cm = 1e4 / (MPP * factor)
            tiff.write(
                jpeg_tiles(level, quality), shape=level.shape, dtype=np.uint8, tile=(TILE_PX, TILE_PX), photometric="ycbcr",
                compression="jpeg", subsampling=(2, 2), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                subfiletype=int(index > 0), metadata=None,
            )  # fmt: skip


def jpeg_tiles(picture: NDArray[np.uint8], quality: int) -> Iterator[bytes]:
    """The picture as JPEG tiles, row by row; the last ones are filled up with glass."""
    height, width = picture.shape[:2]
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = np.full((TILE_PX, TILE_PX, 3), GLASS, np.uint8)
            part = picture[y : y + TILE_PX, x : x + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(tile).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
            yield buffer.getvalue()


def save_truth(path: Path, layout: Layout) -> None:
    """Tumour cells as GeoJSON squares in level-0 pixels."""
    squares = []
    for row, column in np.argwhere(layout.cells == 2):
        x, y = int(column) * PATCH_PX, int(row) * PATCH_PX
        ring = [[x, y], [x + PATCH_PX, y], [x + PATCH_PX, y + PATCH_PX], [x, y + PATCH_PX], [x, y]]
        squares.append({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": squares}))


def load_slide_maker() -> ModuleType:
    path = Path(__file__).parents[2] / "sample_data" / "make_slides.py"
    spec = importlib.util.spec_from_file_location("make_slides", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_samples(folder: Path) -> list[dict[str, object]]:
    """Made sample slides: half benign, half with tumour of varying extent."""
    maker = load_slide_maker()
    rows: list[dict[str, object]] = []
    folder.mkdir(parents=True, exist_ok=True)
    seed = SAMPLE_SEED
    for part, count in SAMPLES.items():
        for index in range(count):
            share = 0.0 if index % 2 else 0.05 + 0.35 * index / count
            name = f"made-{part}-{index}"
            spec = maker.SampleSpec(name=name, seed=seed, size=(4096, 3584), mpp=0.5, tumour_fraction=share)
            path = maker.make_slide(folder, spec)
            rows.append({"slide": path, "label": "tumour" if share else "normal", "split": part, "patient": name, "mpp": ""})
            seed += 1
    return rows


def atlas_rows(data: Path) -> list[dict[str, object]]:
    """Real slides at about 1 um/px of the training patients; all of them train."""
    rows: list[dict[str, object]] = []
    with (data / "atlas" / "slides.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["patient"] in TRAINING_ATLAS and row["file"].startswith("1mpp/"):
                label = "tumour" if row["malignant"] == "1" else "normal"
                mpp = "" if row["mpp_known"] == "1" else row["mpp_assumed"]
                rows.append(
                    {
                        "slide": data / "atlas" / row["file"],
                        "label": label,
                        "split": "train",
                        "patient": row["patient"],
                        "mpp": mpp,
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = np.random.default_rng(options.seed)
    folder = options.work / "mosaics"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for part, patches in load_patches(options.data).items():
        for index in range(SLIDES[part]):
            share = 0.0 if index % 2 else float(np.exp(chance.uniform(np.log(0.02), np.log(0.6))))
            layout = draw_layout(share, chance)
            path = folder / f"mosaic-{part}-{index:02d}.tif"
            save_pyramid(path, paint(layout, patches, chance), int(chance.integers(75, 95)))
            save_truth(path.with_suffix(".geojson"), layout)
            rows.append({"slide": path, "label": "tumour" if share else "normal", "split": part, "patient": path.stem, "mpp": ""})
    rows += make_samples(options.work / "made") + atlas_rows(options.data)
    with (options.work / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["slide", "label", "split", "patient", "mpp"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} slides in {options.work / 'labels.csv'}")


if __name__ == "__main__":
    main()
