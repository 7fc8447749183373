"""The slides that the reference slide model learns from, in one table.

python workflows/reference/training_slides.py --work WORK

Adds made sample slides of other seeds than the demo's to the lymph node slides (tissue_slides.py, in WORK/tissue). Writes
WORK/reference.csv with the columns that `pathovit embed --manifest` and `pathovit train` read.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from pathovit.cli.maintenance import slide_maker

SAMPLES = {"train": 20, "validation": 12, "test": 10}  # made slides, half of them benign
SAMPLE_SEED = 1000  # the demo's is 7
COLUMNS = ("slide", "label", "split", "patient")
Row = dict[str, object]


def make_samples(folder: Path) -> list[Row]:
    """Made sample slides: half benign, half with tumour of varying extent. Those there already are kept."""
    maker = slide_maker()
    rows: list[Row] = []
    folder.mkdir(parents=True, exist_ok=True)
    seed = SAMPLE_SEED
    for part, count in SAMPLES.items():
        for index in range(count):
            share = 0.0 if index % 2 else 0.05 + 0.35 * index / count
            name = f"made-{part}-{index}"
            path = folder / f"{name}.svs"
            if not path.exists():
                maker.make_slide(
                    folder, maker.SampleSpec(name=name, seed=seed, size=(4096, 3584), mpp=0.5, tumour_fraction=share)
                )
            rows.append({"slide": path, "label": "tumour" if share else "normal", "split": part, "patient": name})
            seed += 1
    return rows


def tissue_rows(folder: Path) -> list[Row]:
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{**{name: row[name] for name in COLUMNS}, "slide": folder / row["slide"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work.resolve()
    rows = tissue_rows(work / "tissue") + make_samples(work / "made")
    table = work / "reference.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} slides in {table}")


if __name__ == "__main__":
    main()
