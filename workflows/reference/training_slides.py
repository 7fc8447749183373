"""The slides that the reference slide model learns from, in one table.

python workflows/reference/training_slides.py --data DATA --work WORK [--test-validates]

Adds to the lymph node cohort (workflows/benchmarks/cohorts.py, in WORK/pcam) made sample slides of other seeds than the
demo's, and the real atlas slides at about 1 um/px of five patients, whose labels are those of the whole slide. Writes
WORK/reference.csv with the columns that `pathovit embed --manifest` and `pathovit train` read. The model that is shipped is
calibrated on the test part too (--test-validates, WORK/shipped.csv), once its twin without it has been judged there.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from pathovit.cli.maintenance import slide_maker

SAMPLES = {"train": 20, "validation": 20, "test": 10}  # made slides, half of them benign
SAMPLE_SEED = 1000  # the demo's is 7
TRAINING_ATLAS = (
    "PDAC-tru-cut",
    "lung-squamous-cell-carcinoma",
    "metaplasia",
    "crohn-colonoscopic-biopsy",
    "gallbladder-adenomyoma",
)
COLUMNS = ("slide", "label", "split", "patient", "mpp")
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
            rows.append({"slide": path, "label": "tumour" if share else "normal", "split": part, "patient": name, "mpp": ""})
            seed += 1
    return rows


def atlas_rows(data: Path) -> list[Row]:
    """Real slides of the training patients; all of them train."""
    rows: list[Row] = []
    with (data / "atlas" / "slides.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["patient"] in TRAINING_ATLAS and row["file"].startswith("1mpp/"):
                label = "tumour" if row["malignant"] == "1" else "normal"
                mpp = "" if row["mpp_known"] == "1" else row["mpp_assumed"]
                path = data / "atlas" / row["file"]
                rows.append({"slide": path, "label": label, "split": "train", "patient": row["patient"], "mpp": mpp})
    return rows


def pcam_rows(work: Path) -> list[Row]:
    with (work / "pcam" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{**{name: row.get(name, "") for name in COLUMNS}, "slide": work / "pcam" / row["slide"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--test-validates", action="store_true")
    options = parser.parse_args()
    data, work = options.data.resolve(), options.work.resolve()
    rows = pcam_rows(work) + make_samples(work / "made") + atlas_rows(data)
    table = work / ("shipped.csv" if options.test_validates else "reference.csv")
    if options.test_validates:
        rows = [{**row, "split": "validation" if row["split"] == "test" else row["split"]} for row in rows]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} slides in {table}")


if __name__ == "__main__":
    main()
