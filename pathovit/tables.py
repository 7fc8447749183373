"""Tables as people and other programs write them: any separator, any spelling of the columns that are known.

What was taken for what is said, through `say`; what looks like a known column without being one is refused, for a table
that is half understood gives wrong answers without a word.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pathovit.errors import SettingsError
from pathovit.files import read_bytes

Say = Callable[[str], None]
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Without case: of programs and of people, then errors of spreadsheets, then what registries write.
NO_VALUE = ("nan", "na", "n/a", "none", "null", "?", "<na>", "unknown", "#n/a", "#na", "#nv", "#value!", "#wert!", "#ref!",
            "#bezug!", "#div/0!", "#num!", "#zahl!", "#name?", "--", "'--", "not available", "not reported", "not applicable",
            "[not available]", "[not applicable]", "[not evaluated]", "[unknown]")  # fmt: skip
# Our own name of a column first, then those of TCGA, CLAM, STAMP, TRIDENT, QuPath and spreadsheets; all without case,
# blanks, hyphens and underscores.
KNOWN = {
    "slide": ("slide", "slideid", "slidename", "slidefile", "slidepath", "filename", "file", "filepath", "path", "image",
              "imageid", "imagename", "imagefile", "wsi", "wsiid", "wsiname"),
    "patient": ("patient", "patientid", "patientcode", "patientno", "patientnr", "patientnumber", "case", "caseid",
                "subject", "subjectid", "participant", "participantid", "patientbarcode", "bcrpatientbarcode",
                "participantbarcode", "tcgaparticipantbarcode", "casesubmitterid", "casessubmitterid", "patid", "mrn",
                "person", "personid", "donor", "donorid", "icgcdonorid"),
    "mpp": ("mpp", "mppx", "micronsperpixel", "micrometresperpixel", "micrometersperpixel", "umperpixel", "umperpx", "umpx", "umpixel"),
    "mpp_y": ("mppy",),
    "split": ("split", "part", "partition", "subset"),
}  # fmt: skip
LIKE_MPP = re.compile(r"^mpp|mpp$|microns?per|micromet(er|re)s?per|^pixelsize|^pixelspacing|^um(per|px)")
NUMBERS_LIKE_MPP = re.compile(
    r"^(image|slide|wsi|base|level\d*|x)?spacing|^resolution|^physicalsize|^pixel(width|height)"
)  # where cells are numbers
LIKE_PATIENT = re.compile(  # in words, as `word_by_word` has them
    r"\b(patients?|participant|donor|subject|person)\b.*\b(id|uuid|barcode|code|key|no|nr|number)$"
)
OF_PATIENT = re.compile(r"(patients?|participant|donor|subject|person) ")
ONE_WORD = re.compile(r"(patients?|participant|donor|subject|person)(id|uuid|barcode|code|key|no|nr|number)$")
PARTS = {  # of a cohort, in the spellings of the field
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "tune"),
    "test": ("test", "testing", "holdout"),
}
LIKENESS, MOST_SLIPS = 0.84, 2  # of two names, as difflib counts it, and letters too many: slips of the finger, not another word


def part_named(text: str) -> str | None:
    """train, validation or test, in whatever spelling of the field; None for another word."""
    return next((part for part, known in PARTS.items() if plain_name(text) in known), None)


def plain_name(text: str) -> str:
    """A column's name without case, blanks and punctuation: `Patient ID` and `patient_id` are one, and so are `um/px` and `µm/px`."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold()).replace("μ", "u")


def word_by_word(text: str) -> str:
    """A column's name in words: `PatientUUID`, `patient_uuid` and `patient.UUID` are `patient uuid`; `patient_covid` stays two others."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", unicodedata.normalize("NFKC", text))
    return re.sub(r"[\W_]+", " ", words).casefold().strip()


def number(text: str) -> float | None:
    """The number that a cell holds, with a point or a comma before its decimals; None for anything else."""
    if not re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", text):
        return None
    found = float(text.replace(",", "."))
    return found if math.isfinite(found) else None


def spelling(text: str) -> str:
    """Equal for cells that a person takes for the same: `Benign` and `benign`, `0` and `0.0`, `1,5` and `1.5`."""
    if number(text) is not None:
        return format(Decimal(text.replace(",", ".")).normalize(), "f")
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def refuse_thousands(texts: Iterable[str], column: str) -> None:
    """1,234 is a thousand to some and little more than one to others: a column that has nothing else to go by is refused."""
    commas = [text for text in texts if "," in text]
    if commas and all(re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", text) for text in commas):
        raise SettingsError(
            f"Column {column!r}: {', '.join(sorted(commas)[:3])} can mean thousands or decimals. Write numbers without thousands "
            "separators, and decimals with a point."
        )


@dataclass(frozen=True)
class Table:
    """Rows of cells by column, as written but for blanks around them."""

    path: Path
    columns: tuple[str, ...]
    roles: dict[str, str]  # what a column is to us -> its name
    rows: tuple[tuple[int, dict[str, str]], ...]  # line in the file, cells

    def cells(self, role: str) -> list[str]:
        """The cells of the column with a role; empty ones where there is none."""
        return [cells.get(self.roles.get(role, ""), "") for _, cells in self.rows]


def read_table(path: Path, say: Say = lambda text: None, asked: Collection[str] = ()) -> Table:
    """A table with one slide a row.

    Parameters
    ----------
    say : called with a sentence for everything that was understood and not written in so many words
    asked : columns that are asked for by name, and so are nothing else

    Raises
    ------
    SettingsError : missing file, no column of slides, two columns of one kind, one that looks like a known one, a row with
        another number of cells; the line is named
    """
    text = table_text(path)
    lines = text.splitlines(keepends=True)
    first = 1
    if lines and re.fullmatch(r"sep=.", said := lines[0].strip(" \r\n"), re.IGNORECASE):  # a line that Excel writes
        separator, lines, first = said[4], lines[1:], 2
    else:
        separator = _separator(next((line for line in lines if line.strip()), ""))
    reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=separator, skipinitialspace=True)
    try:
        found = [(reader.line_num + first - 1, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise SettingsError(f"{path}: not a table of text ({error}). Save it as CSV.") from error
    found = [(line, row) for line, row in found if any(row)]
    if not found:
        raise SettingsError(f"{path}: the file is empty.")
    columns = tuple(found[0][1])
    roles = _roles(path, columns, separator, found[1:], say, {plain_name(name) for name in asked})
    rows = []
    for line, row in found[1:]:
        if len(row) != len(columns):
            raise SettingsError(
                f"{path}, line {line}: it has another number of columns ({len(row)}) than the first line ({len(columns)}, "
                f"separated by {_said(separator)})."
            )
        rows.append((line, dict(zip(columns, row, strict=True))))
    if not rows:
        raise SettingsError(f"{path}: it names no slide.")
    if separator != ",":
        say(f"{path.name}: cells are separated by {_said(separator)}")
    return Table(path, columns, roles, tuple(rows))


def table_text(path: Path) -> str:
    """What a file of text holds. Raises SettingsError for a spreadsheet, or an encoding that is not known."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}. Give an existing CSV file.") from error
    if content[:2] == b"PK":
        raise SettingsError(f"{path}: this is a spreadsheet, not text. Save it as CSV (UTF-8).")
    coding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(coding)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a CSV file in UTF-8 ({error}). Save it as `CSV UTF-8`.") from error


def _separator(header: str) -> str:
    """The one that finds a column of slides in the first line; else the most frequent one."""

    def score(separator: str) -> tuple[bool, int]:
        names = [plain_name(name) for name in header.split(separator)]
        return any(name in KNOWN["slide"] for name in names), len(names)

    return max(SEPARATORS, key=score)


def _said(separator: str) -> str:
    return SEPARATORS.get(separator, repr(separator))


def _roles(
    path: Path, columns: Sequence[str], separator: str, rows: Sequence[tuple[int, list[str]]], say: Say, asked: Collection[str]
) -> dict[str, str]:
    """Which column is the slide, the patient, the pixel size, the part."""
    twice = [name for name in columns if columns.count(name) > 1 and name]
    if twice:
        raise SettingsError(f"{path}: two columns are named {twice[0]!r}. Name each once.")
    for wanted in asked:
        if len(alike := [name for name in columns if plain_name(name) == wanted]) > 1:
            raise SettingsError(f"{path}: the columns {alike[0]!r} and {alike[1]!r} can both be meant. Rename one of them.")
    roles: dict[str, str] = {}
    for role, known in KNOWN.items():
        fitting = [name for name in columns if plain_name(name) in known and plain_name(name) not in asked]
        if role == "split":  # `part` may also be a part of the specimen
            fitting = [name for name in fitting if name == role or _are_parts(_cells(rows, columns.index(name)))]
        if role in fitting:  # our own name
            roles[role] = role
        elif fitting:
            _refuse_two(path, role, fitting, columns, rows)
            roles[role] = fitting[0]
    if "split" not in roles and "split" not in asked:
        free = [name for name in columns if plain_name(name) not in asked and name not in roles.values()]
        holding = [name for name in free if are_split(_cells(rows, columns.index(name)))]
        if len(holding) == 1:  # of several it is not known which one counts: what needs one refuses that
            roles["split"] = holding[0]
    said = ", ".join(name or "(no name)" for name in columns)
    if "slide" not in roles:
        raise SettingsError(
            f"{path}: no column names the slides. Found, separated by {_said(separator)}: "
            f"{said}. Name one of them `slide` in the first line, as in: slide,patient,label"
        )
    for name in columns:
        if plain_name(name) not in asked:
            _refuse_lookalike(path, name, roles, list(filter(None, _cells(rows, columns.index(name)))))
    for role, name in roles.items():
        if name != role:
            say(f"{path.name}: {SAID[role]} from column {name}")
    return roles


SAID = {"slide": "slides", "patient": "patients", "mpp": "um per pixel", "mpp_y": "um per pixel in y", "split": "parts"}


def _cells(rows: Sequence[tuple[int, list[str]]], place: int) -> list[str]:
    return [row[place] for _, row in rows if place < len(row)]


def _are_parts(cells: Collection[str]) -> bool:
    nothing = {"", *map(plain_name, NO_VALUE)}  # `-` and `n.a.` are none either: what reads the column names the line
    return all(part_named(cell) or plain_name(cell) in nothing for cell in cells)


def are_split(cells: Collection[str]) -> bool:
    """Whether a column says of rows which part they are in, whatever it is called: else its test patients would be learned from."""
    return _are_parts(cells) and len(set(map(part_named, cells)) - {None}) > 1


def _refuse_two(
    path: Path, role: str, names: Sequence[str], columns: Sequence[str], rows: Sequence[tuple[int, list[str]]]
) -> None:
    """Two columns of one kind, unless they group the rows alike, as an id and a name do."""
    places = [columns.index(name) for name in names]
    pairs = [tuple(row[place] for place in places) for _, row in rows if len(row) == len(columns)]
    alike = role == "patient" and all(len(set(pairs)) == len({pair[i] for pair in pairs}) for i in range(len(names)))
    if len(names) > 1 and not alike:
        raise SettingsError(
            f"{path}: {' and '.join(names)} may both be the {role}. Name the right one `{role}`, or take the other out."
        )


def _refuse_lookalike(path: Path, name: str, roles: dict[str, str], cells: Sequence[str]) -> None:
    found = plain_name(name)
    numbers = bool(cells) and all(number(cell) is not None for cell in cells)
    for role in ("patient", "mpp", "split"):
        if role in roles or found in KNOWN["mpp_y"]:
            continue
        near = difflib.get_close_matches(found, [known for known in KNOWN[role] if len(known) >= 5], n=1, cutoff=LIKENESS)
        # An inpatient is no patient, and covid of a patient is no id.
        near = [known for known in near if known[0] == found[:1] and abs(len(known) - len(found)) <= MOST_SLIPS]
        if OF_PATIENT.match(word_by_word(name)):
            near = []  # its words are told by LIKE_PATIENT
        like = {
            "mpp": LIKE_MPP.search(found) or (numbers and NUMBERS_LIKE_MPP.search(found)),
            "patient": LIKE_PATIENT.search(word_by_word(name)) or ONE_WORD.search(found),
        }
        if near or like.get(role):
            raise SettingsError(f"{path}: column {name!r} looks like `{role}`, and is not. Name it `{role}`, or otherwise.")
    if found in KNOWN["mpp_y"] and "mpp" not in roles:
        raise SettingsError(f"{path}: column {name!r} needs a column `mpp_x` beside it.")
