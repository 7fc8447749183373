"""A table of tiles: where each lies, what became of it, and what the map shows there. As text, as Parquet, as AnnData."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.files import put_whole
from pathovit.show.export.slides import ExportedSlide

DIGITS = 6  # of measurements in text


def write_csv(folder: Path, slide: ExportedSlide) -> None:
    """`NAME.csv`: one row a tile; empty where a tile was not read."""
    columns = {**slide.features.columns(), **slide.measured}
    with put_whole(folder / f"{slide.name}.csv") as place, place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*map(_text, columns.values()), strict=True))


def _text(column: NDArray[np.generic]) -> list[object]:
    if column.dtype.kind != "f":
        return list(column.tolist())
    return [f"{value:.{DIGITS}g}" if np.isfinite(value) else "" for value in column.tolist()]


def write_parquet(folder: Path, slide: ExportedSlide) -> None:
    """`NAME.parquet`: the same columns, and `features`, the numbers of every tile."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise SettingsError('--to parquet: pyarrow is not installed. pip install "pathovit[parquet]"') from error

    stored = slide.features
    columns = {name: pa.array(column) for name, column in {**stored.columns(), **slide.measured}.items()}
    features = pa.FixedSizeListArray.from_arrays(pa.array(stored.features.ravel()), stored.features.shape[1])
    about = {"pathovit": RESEARCH_USE, "slide_id": slide.slide_id, "trial": stored.trial}
    about |= {f"mpp_{axis}": repr(mpp) for axis, mpp in zip("xy", stored.mpp, strict=True)}
    with put_whole(folder / f"{slide.name}.parquet") as place:
        parquet.write_table(pa.table({**columns, "features": features}).replace_schema_metadata(about), place, compression="zstd")


def write_anndata(folder: Path, slide: ExportedSlide) -> None:
    """`NAME.h5ad`: the tiles that were read, as `SlideFeatures.to_anndata` has them."""
    made = slide.features.to_anndata(slide.measured)
    with put_whole(folder / f"{slide.name}.h5ad") as place:
        made.write_h5ad(place, compression="gzip")
