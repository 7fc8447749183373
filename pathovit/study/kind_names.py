"""Names of kinds of tissue: names.csv, a small table that a person fills in, or the review page does."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pathovit.errors import SettingsError
from pathovit.files import csv_table, write_atomically
from pathovit.tables import SEPARATORS, table_text

NAMES = "names.csv"


def read_names(folder: Path) -> dict[str, str]:
    """Names by letter, of those kinds that have one.

    Raises
    ------
    SettingsError : no such table, or none that can be read
    """
    path = folder / NAMES
    if not path.is_file():
        return {}
    lines = table_text(path).splitlines(keepends=True)
    separator = max(SEPARATORS, key=lines[0].count) if lines else ","
    try:
        rows = list(csv.DictReader(lines, delimiter=separator))
    except csv.Error as error:
        raise SettingsError(f"{path}: not a table of text ({error}). Mend it, or remove it: it is written anew.") from error
    if rows and not {"kind", "name"} <= {*rows[0]}:
        raise SettingsError(f"{path}: it has no columns kind and name. Put them back, or remove the file: it is written anew.")
    return {(row["kind"] or "").strip(): (row["name"] or "").strip() for row in rows if (row["name"] or "").strip()}


def write_names(folder: Path, letters: Sequence[str], names: Mapping[str, str]) -> None:
    """A row for every letter."""
    rows: list[dict[str, object]] = [{"kind": letter, "name": names.get(letter, "")} for letter in letters]
    write_atomically(folder / NAMES, csv_table(["kind", "name"], rows))
