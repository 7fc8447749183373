"""Manifest CSV: what the user knows about slides. Columns slide, mpp, patient, label; all but the first optional."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathovit.errors import SettingsError


@dataclass(frozen=True)
class ManifestRow:
    """One slide of a manifest; `line` is its line in the file."""

    slide: Path
    line: int
    mpp: float | None = None
    patient: str | None = None
    labels: tuple[tuple[str, str], ...] = ()  # (column, value) of every other column

    def label(self, column: str) -> str | None:
        return dict(self.labels).get(column)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Rows of a manifest; slide paths are relative to the manifest's folder.

    Raises
    ------
    SettingsError : missing file or column, a value that is no number, a slide named twice; the line is named
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None or "slide" not in reader.fieldnames:
                raise SettingsError(f"{path}: the first line must name a column `slide` (and may name mpp, patient, label).")
            rows = [_row(path, reader.line_num, values) for values in reader]
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}. Give an existing CSV file.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path}: not a CSV file in UTF-8 ({error}).") from error
    if not rows:
        raise SettingsError(f"{path}: it names no slide.")
    seen: dict[Path, int] = {}
    for row in rows:
        if row.slide in seen:
            raise SettingsError(f"{path}, line {row.line}: {row.slide.name} was named in line {seen[row.slide]} already.")
        seen[row.slide] = row.line
    return rows


def _row(path: Path, line: int, values: dict[str | None, str | None]) -> ManifestRow:
    if None in values or any(value is None for value in values.values()):
        raise SettingsError(f"{path}, line {line}: it has another number of columns than the first line.")
    cells = {str(key).strip(): str(value).strip() for key, value in values.items()}
    if not cells["slide"]:
        raise SettingsError(f"{path}, line {line}: the slide is missing.")
    mpp = None
    if cells.get("mpp"):
        try:
            mpp = float(cells["mpp"])
        except ValueError:
            raise SettingsError(f"{path}, line {line}: mpp is {cells['mpp']!r}, not a number.") from None
        if not mpp > 0:
            raise SettingsError(f"{path}, line {line}: mpp is {mpp:g}, expected above 0.")
    slide = Path(cells["slide"])
    others = tuple((key, value) for key, value in cells.items() if key not in ("slide", "mpp", "patient"))
    return ManifestRow(slide if slide.is_absolute() else path.parent / slide, line, mpp, cells.get("patient") or None, others)


def by_slide(rows: Sequence[ManifestRow]) -> dict[Path, ManifestRow]:
    """Rows by resolved path."""
    return {row.slide.resolve(): row for row in rows}
