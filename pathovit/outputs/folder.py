"""OutFolder: what lies where in an output folder, and the one place that knows it.

out/
  run.json, predictions.csv, report.html
  names.private.json     which file and which patient an id stands for (names.py)
  log.private.txt        what was said during runs, with names
  slides/<slide_id>/     SlideFolder: slide.json, features.json, features.zarr, journal/, pictures and exports
  .runs/                 the record of every run, by its time
  .outcomes/             files that failed, or were the same slide as another; by the digest of their path
  .fingerprints/         content digests that are known already; by the digest of the path
  .replaced/             slides that an interrupted --overwrite has begun anew

Paths themselves are written down in names.private.json alone: folders can name patients.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pathovit.errors import SettingsError, SlideError
from pathovit.files import file_sha256, slide_stem, write_atomically
from pathovit.outputs.fingerprints import Note, path_key
from pathovit.outputs.names import PRIVATE, Names
from pathovit.outputs.records import DONE, FeaturesRecord, Outcome, RecordError, SlideRecord
from pathovit.outputs.sealed import SealError, read_sealed, write_sealed
from pathovit.reasons import Code
from pathovit.slides.check import check_file
from pathovit.slides.identity import FileState, content_sha256, file_state, require_unchanged, slide_id

LOOKED_AT_BYTES = 64 * 2**20  # of a finished slide that is given again
GEOJSON = ("heatmap.geojson", "heatmap.geojson.gz")  # of a slide there is one of them
MAPS = ("heatmap.ome.tiff", *GEOJSON, "overview.png")
ANEW = "journal/anew"  # all features are being made again, perhaps under an answer that stays true
PRODUCTS = (*MAPS, "top_tiles", "views")  # made of features by finishing


@dataclass(frozen=True)
class Refused:
    """A slide folder whose record is not read, and why."""

    slide_id: str
    reason: str
    code: str = Code.STORE_DAMAGED


@dataclass(frozen=True)
class Look:
    """What was seen of a finished slide's files."""

    damaged: tuple[str, ...]  # missing, or changed since they were written
    skipped: int  # files that were not read


@dataclass(frozen=True)
class SlideFolder:
    """slides/<slide_id>"""

    path: Path

    @property
    def slide_id(self) -> str:
        return self.path.name

    @property
    def features(self) -> Path:
        return self.path / "features.zarr"

    @property
    def overview(self) -> Path:
        return self.path / "overview.png"

    def read(self) -> SlideRecord | Refused | None:
        """The slide's record; None if there is none; why not, where it is damaged, of another version, or speaks of another folder."""
        try:
            found = read_sealed(self.path / DONE)
        except FileNotFoundError:
            return None
        except SealError as error:
            return Refused(self.slide_id, f"its {DONE} {error}: run it again")
        except OSError as error:
            return Refused(self.slide_id, f"its {DONE} cannot be read ({error.strerror}): look at the drive", Code.IO_ERROR)
        try:
            return SlideRecord.from_json(found, self.slide_id)
        except RecordError as error:
            return Refused(self.slide_id, str(error))

    def record(self) -> SlideRecord | None:
        """The slide's record, if there is one to believe."""
        found = self.read()
        return found if isinstance(found, SlideRecord) else None

    def write(self, record: SlideRecord, files: Sequence[str]) -> SlideRecord:
        """slide.json, with the digests of what was made: the features', and those of the files named."""
        sealed = self.features_record()
        products = {f"{self.features.name}/{name}": digest for name, digest in sealed.files.items()} if sealed else {}
        named = [*files, "features.json"] if self.is_sealed else files
        products |= {name: file_sha256(self.path / name) for name in named}
        record = replace(record, products=dict(sorted(products.items())))
        write_sealed(self.path / DONE, record.to_json())
        return record

    def features_record(self) -> FeaturesRecord | None:
        """What vouches for the features: features.json, or the slide.json of a version that had none."""
        try:
            return FeaturesRecord.from_json(read_sealed(self.path / "features.json"))
        except (OSError, ValueError):  # missing or damaged: then the other one may serve
            record = self.record()
        if record is None or (self.path / ANEW).exists():
            return None
        inside = f"{self.features.name}/"
        files = {name.removeprefix(inside): digest for name, digest in record.products.items() if name.startswith(inside)}
        return FeaturesRecord(files, record.seconds) if files else None

    @property
    def is_sealed(self) -> bool:
        return (self.path / "features.json").is_file()

    def seal(self, record: FeaturesRecord) -> None:
        write_sealed(self.path / "features.json", record.to_json())

    def look(self, record: SlideRecord, most_bytes: int | None = LOOKED_AT_BYTES) -> Look:
        """Whether the products are as the record has them: by their digests, the small ones first, and as far as the bytes go.

        Parameters
        ----------
        most_bytes : to be read; None for all of them
        """
        sizes = {name: path.stat().st_size for name in record.products if (path := self.path / name).is_file()}
        missing = sorted(record.products.keys() - sizes.keys())
        left, skipped, changed = most_bytes, 0, []
        for name in sorted(sizes, key=lambda name: (sizes[name], name)):
            if left is not None and (left := left - sizes[name]) < 0:
                skipped += 1
            elif file_sha256(self.path / name) != record.products[name]:
                changed.append(name)
        return Look((*missing, *changed), skipped)

    def forget(self, with_answer: bool = True) -> None:
        """Remove all that vouches for the features, and what was made of them, unless it stays true: the record first."""
        for name in (*((DONE, *PRODUCTS) if with_answer else ()), "features.json", "journal"):
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@dataclass(frozen=True)
class OutFolder:
    """The folder of one or more runs: `SlideRecord` has an example."""

    path: Path

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def slide(self, slide_id: str) -> SlideFolder:
        return SlideFolder(self.path / "slides" / slide_id)

    def known_as(self, sha256: str, name: str) -> str:
        """The slide_id of a content here: that under which it is stored already; else a new one.

        Parameters
        ----------
        name : of its file, if it may be told; else empty
        """
        told, untold = slide_id(name, sha256), slide_id("", sha256)
        for known in (told, untold):
            if (self.path / "slides" / known).is_dir():
                return known
        stored = [] if name else sorted((self.path / "slides").glob(f"*-{sha256[:12]}"))
        return stored[0].name if stored else told

    # Names

    def names(self) -> Names:
        """What ids stand for; empty where nobody knows."""
        return _names(self, _changed(self.path / PRIVATE), _changed(self.path / "slides"))[0]

    def called(self, record: SlideRecord) -> Path:
        """What to call a slide where only its user reads it: by the name of its file, as far as it is known."""
        return Path(record.description.file or self.name_of(record.slide_id) or record.slide_id)

    def name_of(self, known_as: str) -> str:
        """Name of the file behind the id of a slide or a file; empty where it is not known."""
        return _names(self, _changed(self.path / PRIVATE), _changed(self.path / "slides"))[1].get(known_as, "")

    def called_as(self) -> dict[str, list[str]]:
        """Whatever a stored slide may be called, by slide_id: also by the names of links to its file, and of copies."""
        found = {
            record.slide_id: [record.slide_id, self.called(record).name]
            for record in map(SlideFolder.record, self.slides())
            if record
        }
        for about in self.names().files.values():
            if about.slide_id in found:
                found[about.slide_id] += [about.name, *(Path(other).name for other in about.also)]
        for outcome in self.outcomes():
            if outcome.twin and outcome.slide_id in found:
                found[outcome.slide_id].append(self.name_of(outcome.file) or outcome.file)
        return {known: list(dict.fromkeys([*names, *map(slide_stem, names)])) for known, names in found.items()}

    def slides(self) -> list[SlideFolder]:
        """In order of slide_id; links are not followed."""
        return [SlideFolder(path) for path in sorted((self.path / "slides").glob("*")) if path.is_dir() and not path.is_symlink()]

    def embedded(self) -> list[SlideRecord]:
        """Records of all slides whose features are whole, also where drawing was interrupted."""
        return [record for folder in self.slides() if (record := folder.record()) and folder.features_record()]

    def finished(self) -> tuple[list[SlideRecord], list[Refused]]:
        """Records of all slides that are finished, and the records that are not read."""
        found = [folder.read() for folder in self.slides()]
        return (
            [record for record in found if isinstance(record, SlideRecord) and record.finish_recipe is not None],
            [refused for refused in found if isinstance(refused, Refused)],
        )

    # Files that were given, by the digest of their path

    def fingerprint(self, path: Path) -> tuple[str, FileState]:
        """Content SHA-256 of a slide, remembered by size, time and inode of its files; and these.

        Raises
        ------
        SlideOpenError : the file is being written to
        """
        check_file(path)
        state = file_state(path)
        note = Note.read(self._noted(path))
        if note is not None and note.state == state:
            return note.sha256, state
        digest = content_sha256(path)
        state = require_unchanged(path, state, digest)
        earlier = [*note.before, note.sha256] if note else []
        made = Note(digest, state, tuple(old for old in dict.fromkeys(earlier) if old != digest))
        write_atomically(self._noted(path), made.to_bytes())
        return digest, state

    def embedded_from(self, path: Path) -> str | None:
        """Digest of the slide that was embedded from this path; None if none was."""
        note = Note.read(self._noted(path))
        return note.sha256 if note else None

    def has_answer(self, path: Path) -> bool:
        """Whether the slide that was embedded from this path is finished."""
        digest = self.embedded_from(path)
        return bool(digest and (record := self.slide(self.known_as(digest, "")).record()) and record.finish_recipe)

    def unchanged(self, path: Path) -> str | None:
        """Digest of the slide that was embedded from this path, if the file is still there as it was then."""
        note = Note.read(self._noted(path))
        try:
            return note.sha256 if note is not None and file_state(path) == note.state else None
        except SlideError:  # gone
            return None

    def superseded(self) -> set[str]:
        """Digests of slides whose file has other content now: an answer for them is an older one of the same file."""
        notes = list(filter(None, map(Note.read, (self.path / ".fingerprints").glob("*.json"))))
        return {old for note in notes for old in note.before} - {note.sha256 for note in notes}

    def _noted(self, path: Path) -> Path:
        return self.path / ".fingerprints" / f"{path_key(path)}.json"

    def settle(self, path: Path, slide_id: str, outcome: Outcome | None) -> None:
        """What happened to a file stays on disk until it is done (None), from this path or, if it failed before, from another."""
        if outcome is not None:
            write_sealed(self._outcome(path), outcome.to_json())
            _failed_from.cache_clear()
            return
        self._outcome(path).unlink(missing_ok=True)
        for place in _failed_from(self, _changed(self.path / ".outcomes")).get(slide_id, ()):
            place.unlink(missing_ok=True)

    def _outcome(self, path: Path) -> Path:
        return self.path / ".outcomes" / f"{path_key(path)}.json"

    def outcomes(self) -> list[Outcome]:
        """Of all files that have no record of their own."""
        return [outcome for _, outcome in self._outcomes()]

    def _outcomes(self) -> list[tuple[Path, Outcome]]:
        found = []
        for path in sorted((self.path / ".outcomes").glob("*.json")):
            try:
                found.append((path, Outcome.from_json(read_sealed(path))))
            except (OSError, ValueError):  # torn by a crash: the next run of that file writes it anew
                continue
        return found

    def sweep(self) -> None:
        """Remove what killed runs had half written. Its lease must be held; slide folders are swept when they are written again."""
        for name in (".", "tissue", "tissue/.drawn", ".runs", ".fingerprints", ".outcomes"):
            for stale in (self.path / name).glob(".*.partial"):
                stale.unlink(missing_ok=True)

    # An --overwrite that was interrupted goes on where it stopped

    def begin_replacing(self, key: str) -> bool:
        """Begin to replace features for a call that is known by `key`; True if the same has replaced some before, and did not end."""
        here = self.path / ".replaced" / key
        if not here.is_dir():
            self.end_replacing()
            here.mkdir(parents=True)
        return any(here.iterdir())

    def is_replaced(self, slide_id: str) -> bool:
        return any((key / slide_id).exists() for key in (self.path / ".replaced").glob("*"))

    def mark_replaced(self, slide_id: str) -> None:
        for key in (self.path / ".replaced").glob("*"):
            write_atomically(key / slide_id, b"")

    def end_replacing(self) -> None:
        shutil.rmtree(self.path / ".replaced", ignore_errors=True)


@lru_cache(maxsize=2)
def _failed_from(out: OutFolder, changed: int) -> Mapping[str, list[Path]]:
    """Outcomes that lie there by slide_id: one listing serves for all slides that end well."""
    found: dict[str, list[Path]] = {}
    for place, outcome in out._outcomes():
        if outcome.slide_id and not outcome.twin:  # of others it is not known which slide they are
            found.setdefault(outcome.slide_id, []).append(place)
    return found


@lru_cache(maxsize=2)
def _names(out: OutFolder, *changed: int) -> tuple[Names, Mapping[str, str]]:
    """What ids stand for, and file names by id. A run that was killed did not note the slides that it finished: their files are known."""
    try:
        found = Names.read(out.path)
    except SettingsError:  # damaged: `verify` says so, and the next run
        found = Names()
    stored = {path.name[-12:]: path.name for path in (out.path / "slides").glob("*")}
    for known, about in found.files.items():
        if not about.slide_id and (digest := out.embedded_from(Path(about.path))) and digest[:12] in stored:
            found.files[known] = replace(about, slide_id=stored[digest[:12]])
    return found, found.by_id()


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
