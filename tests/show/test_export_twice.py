"""What lies in a folder of an export is what its table says, after a second one, too."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pathovit.errors import SettingsError
from pathovit.outputs.folder import OutFolder
from pathovit.show.export.formats import export


def test_a_second_export_into_a_folder_keeps_what_the_table_says_of_the_first(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    first = export(OutFolder(finished), "csv", folder)
    assert not first.remarks
    again = export(OutFolder(finished), "csv", folder)
    assert not again.remarks, "the same files, written again"
    other = export(OutFolder(finished), "csv", folder, naming="stem")
    assert "3 slides of an earlier export" in " ".join(other.remarks)
    with (folder / "slides.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {f"{row['name'].removeprefix(chr(39))}.csv" for row in rows} == {path.name for path in folder.glob("*.csv")} - {
        "slides.csv"
    }
    saved = (folder / "slides.csv").read_bytes()
    (folder / "slides.csv").write_bytes(b"\xef\xbb\xbf" + saved)  # by Excel
    export(OutFolder(finished), "csv", folder)
    assert sorted((folder / "slides.csv").read_bytes().splitlines()) == sorted(saved.splitlines())
    (folder / "slides.csv").write_bytes(saved + "M\u00fcller".encode("cp1252"))
    with pytest.raises(SettingsError, match="not a CSV file in UTF-8"):
        export(OutFolder(finished), "csv", folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "slides.csv").write_text("slide,label\na,b\n")
    with pytest.raises(SettingsError, match="it is not of an export"):
        export(OutFolder(finished), "csv", tmp_path / "mine")
    assert len(list((tmp_path / "mine").iterdir())) == 1
