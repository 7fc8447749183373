"""Names: which file and which patient stands behind an id. One private file of a folder says it, and nothing else that is stored.

FOLDER/names.private.json   for its owner alone (0600)

Tables, records and pictures speak of ids, unless --keep-names asks for names.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError, StorageError
from pathovit.files import slide_stem, write_atomically
from pathovit.outputs.sealed import read_sealed, sealed

PRIVATE = "names.private.json"
LOG = "log.private.txt"  # what was said during runs (run/diary.py)
PATIENT_ID = re.compile("patient-[0-9a-f]{12}")
HIDDEN = f"({PRIVATE})"  # stands where a path was


@dataclass(frozen=True)
class GivenFile:
    """A slide file that was given."""

    path: str
    patient: str = ""
    slide_id: str = ""  # as far as it is known
    earlier: tuple[str, ...] = ()  # slide_ids of what it held before
    also: tuple[str, ...] = ()  # other paths, through links, by which it was given

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass
class Names:
    """What ids of a folder stand for."""

    key: str = field(default_factory=lambda: secrets.token_hex(16))  # without it nobody can try out which id a name would have
    files: dict[str, GivenFile] = field(default_factory=dict)  # by file id, in the order they were given
    patients: dict[str, str] = field(default_factory=dict)  # by patient id
    runs: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # what was asked of each run, in so many words

    @classmethod
    def read(cls, folder: Path) -> Names:
        """What is known in a folder; nothing, where there is no such file, or it is somebody else's.

        Raises
        ------
        SettingsError : it is damaged
        """
        try:
            found = read_sealed(folder / PRIVATE)
            files = {name: GivenFile(**about) for name, about in found["files"].items()}
            files = {name: replace(about, earlier=tuple(about.earlier), also=tuple(about.also)) for name, about in files.items()}
            return cls(str(found["key"]), files, dict(found["patients"]), dict(found["runs"]))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(
                f"{folder / PRIVATE}: it is damaged ({error}). Put a copy of it in its place, or remove it: results then keep their ids, and "
                "nobody knows whose they are."
            ) from error

    @classmethod
    def beside(cls, folder: Path, *keys: str) -> Names:
        """Those of a folder; of a new one under the first key that is known, so that ids are those of another folder."""
        known = next(filter(None, keys), "")
        return cls(known) if known and not (folder / PRIVATE).exists() else cls.read(folder)

    @staticmethod
    def are_closed(folder: Path) -> bool:
        """Whether the file is there, and somebody else's."""
        return (folder / PRIVATE).exists() and not os.access(folder / PRIVATE, os.R_OK | os.W_OK)

    def write(self, folder: Path) -> None:
        """Add to what is known in a folder. Raises StorageError, also where the file is somebody else's."""
        if self.are_closed(folder):
            raise StorageError(f"{folder / PRIVATE} is another user's. Choose another folder, or use --keep-names.")
        before = Names.read(folder)
        files = before.files | {name: about for name, about in self.files.items() if about.slide_id or name not in before.files}
        content = {
            "research_use": RESEARCH_USE,
            "private": "Names of files and patients. Leave this file out when you give results on.",
            "key": self.key,
            "files": {name: asdict(about) for name, about in files.items()},
            "patients": before.patients | self.patients,
            "runs": before.runs | self.runs,
        }
        write_atomically(folder / PRIVATE, sealed(content), private=True)

    # To ids

    def patient_id(self, name: str) -> str:
        """What stands for a patient; it is remembered whom. What is an id already stays."""
        if PATIENT_ID.fullmatch(name):
            return name
        known = f"patient-{self._digest('patient', name)}"
        self.patients[known] = name
        return known

    def file_id(self, path: Path) -> str:
        """What stands for a file whose content is not known."""
        return f"file-{self._digest('file', str(path.resolve()))}"

    def note(self, path: Path, patient: str | None, slide_id: str = "") -> str:
        """Remember a file; its id. A patient that is not said again stays."""
        known = self.file_id(path)
        before = self.files.get(known, GivenFile(""))
        earlier = dict.fromkeys([*before.earlier, before.slide_id])
        also = dict.fromkeys([*before.also, before.path])
        self.files[known] = GivenFile(
            str(path), patient or before.patient, slide_id, tuple(old for old in earlier if old not in ("", slide_id)),
            tuple(other for other in also if other not in ("", str(path))),
        )  # fmt: skip
        return known

    def _digest(self, kind: str, name: str) -> str:
        return hmac.new(bytes.fromhex(self.key), f"{kind}\0{name}".encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:12]

    # From ids

    def patient_of(self, known_as: str) -> str:
        """The patient behind an id; what is no id, or of nobody known, as it is."""
        return self.patients.get(known_as, known_as)

    def paths(self) -> list[Path]:
        """Of all files that were given."""
        return [Path(about.path) for about in self.files.values()]

    def by_id(self) -> Mapping[str, str]:
        """File names by the ids of files and slides; of the same slide in several files, the one given first."""
        files = [*reversed(self.files.values())]
        slides = {old: about.name for about in files for old in about.earlier}
        slides |= {about.slide_id: about.name for about in files if about.slide_id}
        return slides | {known: about.name for known, about in self.files.items()}


def key_of(folder: Path) -> str:
    """The key of a folder's ids; empty where it has none."""
    return Names.read(folder).key if (folder / PRIVATE).is_file() else ""


def without_names(text: str, path: Path, *folders: Path) -> str:
    """A sentence about a slide that does not say what its file, those beside it, the folders around it, and these, are called."""
    if not text:
        return ""
    try:
        beside = os.listdir(path.parent)  # a slide can be of several files
    except OSError:
        beside = []
    names = {str(path), os.path.realpath(path), path.name, slide_stem(path.name), *beside, *map(str, path.parents)}
    for folder in folders:
        names |= {str(place) for at in (folder, folder.resolve()) for place in (at, *at.parents)}
    for name in sorted((name for name in names if len(name.strip("/.")) > 2), key=len, reverse=True):
        if name in text:  # of thousands of files beside it hardly one is
            text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", "…", text)
    return text
