"""Manifest: what the user knows about slides, a table with a column of slides and, if known, mpp, patient, label, split."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath

from pathovit.errors import SettingsError
from pathovit.files import FLAT_SUFFIXES, SLIDE_SUFFIXES, slide_stem
from pathovit.geometry import XY
from pathovit.tables import NO_VALUE, PARTS, Say, Table, are_split, number, part_named, plain_name, read_table, spelling

SHOWN = 5  # names that a message gives


@dataclass(frozen=True)
class ManifestRow:
    """One slide of a manifest; `line` is its line in the file."""

    slide: Path  # beside the table, unless it is absolute
    line: int
    mpp: XY | None = None
    patient: str | None = None
    labels: tuple[tuple[str, str], ...] = ()  # (column, value) of every other column; the part as `split`
    in_folder: bool = False  # the row names a folder, and so this file alone

    def label(self, column: str) -> str | None:
        """The cell of a column, by its name in any spelling; None if there is none."""
        exact = dict(self.labels)
        if column in exact:
            return exact[column]
        return next((value for name, value in self.labels if plain_name(name) == plain_name(column)), None)


def read_manifest(path: Path, say: Say = lambda text: None, asked: Collection[str] = ()) -> list[ManifestRow]:
    """Rows of a manifest; slide paths are relative to the manifest's folder.

    Parameters
    ----------
    say : called with a sentence for everything that was understood and not written in so many words
    asked : columns that are asked for by name, and so are nothing else

    Raises
    ------
    SettingsError : missing file or column, a value that is no number, a slide named twice; the line is named
    """
    table = read_table(path, say, asked)
    patients = _patients(table, say)
    rows = [_row(table, line, cells, patients[line]) for line, cells in table.rows]
    seen: dict[Path, int] = {}
    for row in rows:
        if row.slide in seen:
            raise SettingsError(f"{path}, line {row.line}: {row.slide.name} was named in line {seen[row.slide]} already.")
        seen[row.slide] = row.line
    return rows


def rival_splits(rows: Sequence[ManifestRow], asked: Collection[str] = ()) -> list[str]:
    """Columns that each say which part a row is in, where none of them was taken for the split; of those `asked` for by name nothing is said."""
    others = {plain_name(name) for name in asked}
    names = [name for name in dict.fromkeys(name for row in rows for name, _ in row.labels) if plain_name(name) not in others]
    found = [name for name in names if are_split([row.label(name) or "" for row in rows])]
    return found if len(found) > 1 and "split" not in names else []


def _row(table: Table, line: int, cells: dict[str, str], patient: str | None) -> ManifestRow:
    roles = table.roles
    name = cells[roles["slide"]]
    if not name:
        raise SettingsError(f"{table.path}, line {line}: the slide is missing.")
    try:
        slide, in_folder = _slide_path(table.path.parent, name)
    except OSError as error:
        raise SettingsError(f"{table.path}, line {line}: the slide {name[:60]!r}… is no file name ({error.strerror}).") from error
    sizes = [_pixel_size(table.path, line, role, cells[roles[role]]) for role in ("mpp", "mpp_y") if role in roles]
    mpp = (sizes[0], sizes[-1]) if sizes and sizes[0] is not None and sizes[-1] is not None else None
    if len(sizes) == 2 and (sizes[0] is None) != (sizes[1] is None):
        raise SettingsError(f"{table.path}, line {line}: one of mpp_x and mpp_y is empty. Give both, or none.")
    taken = {roles[role] for role in ("slide", "patient", "mpp", "mpp_y") if role in roles}
    others = [("split" if key == roles.get("split") else key, value) for key, value in cells.items() if key not in taken]
    others = [(key, _part(table.path, line, value) if key == "split" else value) for key, value in others]
    return ManifestRow(slide, line, mpp, patient, tuple(others), in_folder)


def _slide_path(folder: Path, name: str) -> tuple[Path, bool]:
    """The file that a cell names, and whether the cell names its folder; Windows paths are read as such."""
    if "\\" in name and not (folder / name).exists():
        name = PureWindowsPath(name).as_posix()
    if "/" not in name:
        return folder / name, False
    beside = folder / name
    return (beside if beside.exists() or not Path(name).exists() else Path(name).absolute()), True


def _pixel_size(path: Path, line: int, role: str, text: str) -> float | None:
    if not text or text.casefold() in NO_VALUE:
        return None
    found = number(text)
    if found is None:
        raise SettingsError(f"{path}, line {line}: {role} is {text!r}, not a number.")
    if not found > 0:
        raise SettingsError(f"{path}, line {line}: {role} is {found:g}, expected above 0.")
    return found


def _part(path: Path, line: int, text: str) -> str:
    """train, validation or test, in the spellings of the field."""
    if not text or text.casefold() in NO_VALUE:
        return ""
    if part := part_named(text):
        return part
    raise SettingsError(f"{path}, line {line}: split is {text!r}, expected {', '.join(PARTS)}.")


def _patients(table: Table, say: Say) -> dict[int, str | None]:
    """The patient of every line; None where none is given.

    Raises
    ------
    SettingsError : one patient in two spellings, who would be counted twice and be in two parts of a split
    """
    found = {line: cell for (line, _), cell in zip(table.rows, table.cells("patient"), strict=True)}
    known = {line: cell if cell and cell.casefold() not in NO_VALUE else None for line, cell in found.items()}
    spelled: dict[str, dict[str, int]] = defaultdict(dict)
    for line, cell in known.items():
        if cell is not None:
            plain = " ".join(unicodedata.normalize("NFKC", cell).casefold().split())
            key = re.sub(r"^0*(\d+)([.,]0+)?$", r"\1", plain)  # a spreadsheet takes zeros away, and puts some there
            spelled[key].setdefault(cell, line)
    for ways in spelled.values():
        if len(ways) > 1:
            (a, line_a), (b, line_b) = list(ways.items())[:2]
            raise SettingsError(
                f"{table.path}: patients {a!r} (line {line_a}) and {b!r} (line {line_b}) look like one. Spell them alike."
            )
    without = [line for line, cell in known.items() if cell is None]
    if "patient" in table.roles and without:
        say(f"{table.path.name}: {len(without)} rows name no patient (line {without[0]}); each counts as a patient of its own")
    return known


def _loosely(name: str) -> str:
    """Without suffix and case; an accent is one sign or two, as the file system of a Mac has it."""
    return unicodedata.normalize("NFC", slide_stem(name)).casefold()


class Names:
    """Slides by the names that tables use for them: exactly, or in another case or with another suffix."""

    def __init__(self, names: Mapping[Path, Iterable[str]]) -> None:
        """`names` : what each slide may be called."""
        self._exact: dict[str, list[Path]] = defaultdict(list)
        self._loose: dict[str, list[Path]] = defaultdict(list)
        for slide, known in names.items():
            for name in dict.fromkeys(known):
                self._exact[name].append(slide)
            for stem in dict.fromkeys(_loosely(name) for name in known):
                self._loose[stem].append(slide)

    def find(self, name: str) -> tuple[list[Path], bool]:
        """Slides of that name, and whether it is theirs to the letter."""
        if found := self._exact.get(name):
            return found, True
        return self._loose.get(_loosely(name), []), False

    def near(self, name: str) -> str:
        """A question that offers the nearest name; nothing if none is near. One that is the same lies elsewhere."""
        found = get_close_matches(name, self._exact, n=1, cutoff=0.75)
        if found and found[0] == name:
            return " (there is one in another folder)"
        return f" (did you mean {found[0]}?)" if found else ""


def rows_of_slides(rows: Sequence[ManifestRow], slides: Sequence[Path], manifest: Path, say: Say) -> dict[Path, ManifestRow]:
    """The row of each slide file, if it has one. A row with a folder means that file alone; a bare name the one slide of it.

    Raises
    ------
    SettingsError : a bare name that two slides have, two rows of one slide
    """
    names = Names({slide: [slide.name] for slide in slides})
    resolved = {slide.resolve(): slide for slide in slides}
    found: dict[Path, ManifestRow] = {}
    unused, loose = [], []
    looked_up = [(row, *_slides_of(row, names, resolved)) for row in rows]
    for row, fitting, exact in sorted(looked_up, key=lambda found: not found[2]):  # to the letter first
        if not exact:
            fitting = [slide for slide in fitting if slide not in found]
        if len(fitting) > 1:
            both = " and ".join(str(slide) for slide in fitting[:2])
            raise SettingsError(f"{manifest}, line {row.line}: {row.slide.name} can mean {both}. Name its folder, too.")
        if not fitting:
            unused.append(row)
            continue
        (slide,) = fitting
        if slide in found:
            raise SettingsError(f"{manifest}: lines {found[slide].line} and {row.line} both mean {slide}. Keep one of them.")
        found[slide] = row
        if not exact:
            loose.append(f"line {row.line}, {row.slide.name}: {slide.name}")
    if loose:
        say(f"{manifest.name}: {len(loose)} rows are matched in another spelling: {some(loose)}")
    if unused:
        said = [f"line {row.line}, {row.slide.name}{names.near(row.slide.name)}" for row in unused[:SHOWN]]
        say(f"{manifest.name}: {len(unused)} rows match no slide given: {some(said, len(unused))}")
    if len(found) < len(slides):
        without = [slide.name for slide in slides if slide not in found]
        say(f"{manifest.name}: {len(without)} of {len(slides)} slides have no row: {some(without)}")
    return found


def _slides_of(row: ManifestRow, names: Names, resolved: Mapping[Path, Path]) -> tuple[list[Path], bool]:
    if not row.in_folder:
        return names.find(row.slide.name)
    return ([resolved[at]] if (at := row.slide.resolve()) in resolved else []), True


def existing_slide(row: ManifestRow) -> Path:
    """The file a row names; where a suffix was left out, the one slide of that name beside the table."""
    if not row.slide.is_file():  # a folder of that name can be a slide's data, beside it
        beside = [row.slide.with_name(row.slide.name + suffix) for suffix in (*SLIDE_SUFFIXES, *FLAT_SUFFIXES)]
        there = [path for path in beside if path.is_file()]
        if len(there) == 1:
            return there[0]
    return row.slide


def some(names: Sequence[str], count: int | None = None) -> str:
    """The first of many names, for a message; `count` is how many there are, if not all are given."""
    return ", ".join(names[:SHOWN]) + (", ..." if (count or len(names)) > SHOWN else "")


def one_spelling(cells: Iterable[str]) -> dict[str, str]:
    """The spelling that stands for all of one meaning: the most frequent, then the shortest (`0`, not `0.0`)."""
    counts = Counter(cells)
    chosen: dict[str, str] = {}
    for cell in sorted(counts, key=lambda cell: (-counts[cell], len(cell), cell)):
        chosen.setdefault(spelling(cell), cell)
    return chosen
