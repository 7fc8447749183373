"""Names of kinds of tissue: names.csv, a small table that a person fills in, or the review page does."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pathovit.errors import SettingsError
from pathovit.files import csv_table, open_text, write_atomically

NAMES = "names.csv"


def read_names(folder: Path) -> dict[str, str]:
    """Names by letter, of those kinds that have one.

    Raises
    ------
    SettingsError : no such table
    """
    path = folder / NAMES
    if not path.is_file():
        return {}
    with open_text(path, "utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"kind", "name"} <= {*rows[0]}:
        raise SettingsError(f"{path}: it has no columns kind and name. Put them back, or remove the file: it is written anew.")
    return {row["kind"].strip(): (row["name"] or "").strip() for row in rows if (row["name"] or "").strip()}


def write_names(folder: Path, letters: Sequence[str], names: Mapping[str, str]) -> None:
    """A row for every letter."""
    rows: list[dict[str, object]] = [{"kind": letter, "name": names.get(letter, "")} for letter in letters]
    write_atomically(folder / NAMES, csv_table(["kind", "name"], rows))
