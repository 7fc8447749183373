"""Whether everything in an output folder is as it was written: slides, tables, records; and that nothing is gone or was put there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathovit.files import file_sha256
from pathovit.outputs.folder import OutFolder, Refused, SlideFolder
from pathovit.outputs.inventory import FOLDERS, INVENTORY, Inventory, common_files
from pathovit.outputs.lease import LEASES, LOCK
from pathovit.outputs.names import LOG, PRIVATE
from pathovit.outputs.records import DONE, RecordError, SlideRecord
from pathovit.outputs.runs import RUN, all_runs, last_run
from pathovit.outputs.sealed import read_sealed

RECORDS = (".runs", ".outcomes", ".fingerprints", "tissue/.drawn")  # folders of sealed records
OURS = {
    RUN,
    "predictions.csv",
    "report.html",
    INVENTORY,
    PRIVATE,
    LOG,
    LOCK,
    LEASES,
    "slides",
    ".runs",
    ".outcomes",
    ".fingerprints",
    ".replaced",
    "review",
    *FOLDERS,
}
CHUNK = re.compile(r"features\.zarr/(features|verdict|xy|coverage)/c/(\d+)")
OF_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # that file managers leave
AGAIN = "Run the same command again."


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written."""

    where: str  # within the folder
    what: str
    slide_id: str = ""  # whose it is


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    slides: int
    files: int
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]  # what is odd, or could not be checked


def verify(out: OutFolder) -> Verified:
    """Look at every byte that pathovit wrote there; records of a review have their own audit."""
    faults: list[Fault] = []
    remarks: list[str] = []
    slides = files = 0
    for folder in out.slides():
        count, found = verify_slide(folder)
        faults += found
        files += count
        slides += count > 0
    files += _verify_records(out, faults)
    files += _verify_common(out, faults, remarks)
    _verify_names(out, faults, remarks)
    _verify_belonging(out, faults, remarks)
    return Verified(slides, files, tuple(faults), tuple(remarks))


def verify_slide(folder: SlideFolder) -> tuple[int, list[Fault]]:
    """Files looked at, and what is wrong with them. 0 for a slide that is not finished."""
    name = folder.slide_id
    record = folder.read()
    if record is None:
        return 0, [Fault(f"slides/{name}", f"not finished. {AGAIN}", name)]
    if isinstance(record, Refused):
        return 0, [Fault(f"slides/{name}/{DONE}", record.reason, name)]
    return len(record.products) + 1, [Fault(f"slides/{name}/{file}", what, name) for file, what in damage(folder, record)]


def damage(folder: SlideFolder, record: SlideRecord) -> Iterator[tuple[str, str]]:
    """Files of a slide that are not as its record has them, and how; whose chunk they are is said."""
    for file, digest in record.products.items():
        path = folder.path / file
        of = _chunk(file)
        if not path.is_file():
            yield file, f"missing{of}"
        elif what := _differs(path, digest):
            yield file, f"{what}{of}"
    for path in folder.path.rglob("*"):
        file = path.relative_to(folder.path).as_posix()
        if (path.is_dir() and not path.is_symlink()) or path.name in OF_SYSTEMS:
            continue
        if file not in record.products and file not in (DONE, "review.jsonl") and not file.startswith("journal/"):
            yield (
                file,
                "half written by a run that was killed" if file.endswith(".partial") else "not of this slide: it was put there",
            )


def _differs(path: Path, digest: str) -> str:
    """How a file differs from what was written; nothing where it does not."""
    try:
        same = not path.is_symlink() and file_sha256(path) == digest
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if same else "changed since it was written"


def _chunk(file: str) -> str:
    found = CHUNK.match(file)
    return f" ({found[1]} of chunk {found[2]})" if found else ""


def _verify_records(out: OutFolder, faults: list[Fault]) -> int:
    """Sealed records beside the slides."""
    files = [path for name in RECORDS for path in sorted((out.path / name).glob("*.json"))]
    files += [path for path in (out.path / RUN, out.path / INVENTORY, out.path / PRIVATE) if path.is_file()]
    for path in files:
        try:
            read_sealed(path)
        except (OSError, ValueError) as error:
            faults.append(Fault(path.relative_to(out.path).as_posix(), str(error)))
    return len(files)


def _verify_common(out: OutFolder, faults: list[Fault], remarks: list[str]) -> int:
    """What was made of several slides, and slides that are gone."""
    try:
        known = Inventory.read(out)
    except ValueError:
        return 0  # told with the records
    ended = _has_ended(out, faults)
    if known is None:
        if ended:
            remarks.append(f"no {INVENTORY}: tables and report were made by an older version, and are not covered. {AGAIN}")
        return 0
    there = {folder.slide_id for folder in out.slides()}
    for name in sorted(known.slides - there):
        faults.append(Fault(f"slides/{name}", "the whole folder is gone", name))
    now = set(common_files(out))
    for name, (digest, *_) in known.files.items():
        if name not in now:
            faults.append(Fault(name, "missing"))
        elif (what := _differs(out.path / name, digest)) and (
            ended or (out.path / name).stat().st_mtime_ns <= known.files[name][2]
        ):
            by_hand = ", perhaps by hand: `pathovit tissue` takes that up" if name.endswith("names.csv") else ""
            faults.append(Fault(name, f"{what}{by_hand}"))
    return len(known.files)


def _has_ended(out: OutFolder, faults: list[Fault]) -> bool:
    """Whether the newest run ended; what one was killed at is known by the next one."""
    if not (out.path / RUN).is_file():
        if any(out.slides()):
            faults.append(Fault(RUN, "missing"))
        return False
    try:
        ended = last_run(out).exit_code is not None
    except RecordError:
        return True  # told with the records
    if not ended:
        faults.append(Fault(RUN, f"the newest run has not ended: it was killed, or is at work. {AGAIN}"))
    return ended


def _verify_names(out: OutFolder, faults: list[Fault], remarks: list[str]) -> None:
    """Whether what ids stand for is known, and to its owner alone; where results were given on it is left out."""
    for name in (PRIVATE, LOG):
        private = out.path / name
        if private.is_file() and private.stat().st_mode & 0o077:
            faults.append(Fault(name, f"others may read it: chmod 600 {private}"))
    if not (out.path / PRIVATE).is_file() and any(slide.startswith("file-") for run in all_runs(out)[:1] for slide in run.slides):
        remarks.append(f"no {PRIVATE}: nobody knows here which slides and patients the ids stand for")


def _verify_belonging(out: OutFolder, faults: list[Fault], remarks: list[str]) -> None:
    for path in sorted(out.path.iterdir()):
        if path.name.endswith(".partial"):
            faults.append(Fault(path.name, "half written by a run that was killed"))
        elif path.name not in OURS | OF_SYSTEMS:
            remarks.append(f"{path.name}: not of a run, and not checked")
    for path in sorted(Path(out.path / "slides").glob("*")):
        if (path.is_symlink() or not path.is_dir()) and path.name not in OF_SYSTEMS:
            faults.append(Fault(f"slides/{path.name}", "not a slide's folder: it was put there"))
