"""RunRecord: what was asked of a run, what it was made by, how it ended. run.json is the newest; .runs/ keeps all.

Paths that were given are in names.private.json, unless names are kept.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathovit import RESEARCH_USE
from pathovit.errors import PathovitError
from pathovit.files import read_bytes, write_atomically
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.names import HIDDEN, Names
from pathovit.outputs.provenance import STEP_VERSIONS, versions
from pathovit.outputs.records import FORMAT, RecordError, reading
from pathovit.outputs.sealed import read_sealed, sealed, write_sealed

RUN = "run.json"
PATHS = (
    ("embed", "encoder"),
    ("embed", "weights"),
    ("heatmap", "model"),
    ("run", "scheduler"),
    ("run", "scheduler_file"),
    ("run", "certificates"),
)
OPTION = re.compile(r"--[a-z-]+")
OF_NOBODY = (None, "random", "reference")  # in their places


@dataclass(frozen=True)
class SlideOutcome:
    """How a slide of a run ended."""

    file: str
    stage: str
    slide_id: str
    reason: str
    code: str = ""  # see reasons.py; records of before 2026-11-28 have none


@dataclass(frozen=True)
class RunRecord:
    """One run into an output folder. `exit_code` is None until it has ended.

    Examples
    --------
    >>> pathovit.run_folder(path, out, progress=False).record.exit_code
    0
    """

    command: tuple[str, ...]
    started: str
    settings: Mapping[str, Mapping[str, Any]]
    weights_sha256: str
    model: str | None
    model_sha256: str | None
    demonstration: bool
    slides: tuple[str, ...]
    exit_code: int | None = None
    seconds: float | None = None
    outcomes: tuple[SlideOutcome, ...] = ()
    error: str = ""
    retries: int = 0  # reads and writes that had to be done again, for the drive failed now and then
    run: str = ""  # by which it is known; records of before 2026-11-28 have none
    versions: Mapping[str, str] = field(default_factory=versions)
    step_versions: Mapping[str, int] = field(default_factory=lambda: dict(STEP_VERSIONS))

    @property
    def slides_done(self) -> int:
        return sum(outcome.stage == "done" for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        ended = {"seconds": self.seconds, "exit_code": self.exit_code}
        return {
            "research_use": RESEARCH_USE,
            "format": FORMAT,
            "versions": dict(self.versions),
            "step_versions": dict(self.step_versions),
            "run": self.run,
            "command": list(self.command),
            "started": self.started,
            "settings": {name: dict(table) for name, table in self.settings.items()},
            "weights_sha256": self.weights_sha256,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "demonstration": self.demonstration,
            "slides": list(self.slides),
            **({"finished": ended} if self.seconds is not None else {}),
            **({"outcomes": [dataclasses.asdict(outcome) for outcome in self.outcomes]} if self.outcomes else {}),
            **({"error": self.error} if self.error else {}),
            **({"retries": self.retries} if self.retries else {}),
            "exit_code": self.exit_code,
        }

    @classmethod
    def from_json(cls, found: Any) -> RunRecord:
        """Raises RecordError for a record of another form."""
        with reading(found, RUN):
            return cls(
                command=tuple(found["command"]),
                started=found["started"],
                settings={str(name): dict(table) for name, table in found["settings"].items()},
                weights_sha256=found["weights_sha256"],
                model=found["model"],
                model_sha256=found["model_sha256"],
                demonstration=found["demonstration"],
                slides=tuple(found["slides"]),
                exit_code=found["exit_code"],
                seconds=found.get("finished", {}).get("seconds"),
                outcomes=tuple(SlideOutcome(**outcome) for outcome in found.get("outcomes", ())),
                error=found.get("error", ""),
                retries=int(found.get("retries", 0)),
                run=str(found.get("run", "")),
                versions=dict(found["versions"]),
                step_versions=dict(found["step_versions"]),
            )

    @property
    def did_something(self) -> bool:
        """Not a run of which every slide was refused, nor a call that was; one that was killed may have."""
        return not self.error and (not self.outcomes or any(outcome.stage == "done" for outcome in self.outcomes))

    def without_names(self, names: Names) -> RunRecord:
        """The record as it is stored: what was given is noted among the names."""
        paths = {f"{table}.{name}": value for table, name in PATHS if (value := self.settings[table][name]) not in OF_NOBODY}
        if os.sep not in paths.get("embed.encoder", os.sep):  # a name of our table or of timm
            del paths["embed.encoder"]
        files = {about.path: known for known, about in names.files.items()}
        command = [files.get(os.path.abspath(word), word) for word in self.command]
        names.runs[self.run] = {"command": command, "model": self.model, "settings": paths}
        settings = {table: dict(values) for table, values in self.settings.items()}
        for place in paths:
            table, name = place.split(".")
            settings[table][name] = HIDDEN
        return dataclasses.replace(
            self,
            command=tuple(word if n == 0 or OPTION.fullmatch(word) else "…" for n, word in enumerate(self.command)),
            settings=settings,
            model=settings["heatmap"]["model"] if self.model else None,
        )

    def with_names(self, names: Names) -> RunRecord:
        """The record with settings and model as they were given, as far as that is known."""
        asked = names.runs.get(self.run)
        if asked is None:
            return self
        settings = {table: dict(values) for table, values in self.settings.items()}
        for place, value in asked["settings"].items():
            table, name = place.split(".")
            settings[table][name] = value
        return dataclasses.replace(self, settings=settings, model=asked["model"])


def last_run(out: OutFolder) -> RunRecord:
    """The newest run, as it is stored; raises RecordError if there is none, or it cannot be read."""
    try:
        found = read_sealed(out.path / RUN)
    except OSError as error:
        raise RecordError(f"{RUN} is missing, or cannot be read") from error
    except ValueError as error:
        raise RecordError(f"{out.path}: its {RUN} {error}. Mend it with: pathovit verify {out.path} --repair") from error
    return RunRecord.from_json(found)


def all_runs(out: OutFolder) -> list[RunRecord]:
    """The runs that are kept, newest first; those that cannot be read are left out."""
    found = []
    for path in sorted((out.path / ".runs").glob("*.json"), reverse=True):
        try:
            found.append(RunRecord.from_json(read_sealed(path)))
        except (OSError, ValueError):  # of another version, or torn: it is still there to be read by a person
            continue
    return found


def files_at_hand(out: OutFolder) -> dict[str, Path]:
    """Slide files that are where a run found them, as they were; by digest."""
    return {digest: path for path in given_files(out) if (digest := out.unchanged(path))}


def given_files(out: OutFolder) -> list[Path]:
    """All slide files that runs were given, as far as that is known."""
    kept = (Path(path) for run in all_runs(out) for path in run.slides if not path.startswith("file-"))
    return list(dict.fromkeys([*out.names().paths(), *kept]))


@dataclass
class RunLog:
    """The record of a run that goes on: written as it begins and as it ends. A call that is refused leaves run.json as it was."""

    out: OutFolder
    record: RunRecord
    names: Names | None = None  # where what was given is noted; None: in the record itself

    def __post_init__(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{stamp}-{time.time_ns() % 10**9:09d}-{os.getpid()}"
        self._kept: Path = self.out.path / ".runs" / f"{name}.json"
        self.record = dataclasses.replace(self.record, run=name)
        if self.names is not None:
            self.record = self.record.without_names(self.names)
            if not self.names.are_closed(self.out.path):
                self.names.write(self.out.path)
        current = self.out.path / RUN
        self._before: bytes | None = read_bytes(current) if current.is_file() else None
        if self._before and not any((self.out.path / ".runs").glob("*.json")):  # of a version that kept the newest alone
            write_atomically(self.out.path / ".runs" / "00000000T000000Z.json", self._before)
        self._write()

    def end(self, exit_code: int, seconds: float, outcomes: tuple[SlideOutcome, ...], retries: int = 0) -> RunRecord:
        self.record = dataclasses.replace(
            self.record, exit_code=exit_code, seconds=round(seconds, 1), outcomes=outcomes, retries=retries
        )
        self._write()
        return self.record

    def refuse(self, error: PathovitError) -> None:
        """The call ended with an error that no slide could get past; where names are not kept its code has to do."""
        said = str(error) if self.names is None else error.code.value
        self.record = dataclasses.replace(self.record, exit_code=error.exit_code, error=said)
        write_sealed(self._kept, self.record.to_json())
        current = self.out.path / RUN
        if self._before and current.is_file() and read_bytes(current) != self._written:
            return  # another run began since, and its record stands
        write_atomically(current, self._before or sealed(self.record.to_json()))

    def _write(self) -> None:
        content = sealed(self.record.to_json())
        write_atomically(self._kept, content)
        write_atomically(self.out.path / RUN, content)
        self._written = content
