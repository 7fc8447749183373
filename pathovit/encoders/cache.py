"""Weights that were fetched: one safetensors file for each encoder, and beside it where it came from and its digest.

~/.cache/pathovit/encoders/NAME.safetensors, NAME.json      ($PATHOVIT_CACHE in place of ~/.cache/pathovit)

A folder of the same layout carries them to machines without a network.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pathovit.encoders.record import EncoderRecord
from pathovit.errors import WeightsError
from pathovit.files import file_sha256, read_bytes, storage_errors, to_json, write_atomically

Copied = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """Where weights came from."""

    name: str  # of the encoder
    hub: str
    file: str  # in the repository
    revision: str  # the commit that was fetched
    source_sha256: str  # of that file
    sha256: str  # of ours, which holds the same tensors
    licence: str


def cache_folder() -> Path:
    """Where fetched weights lie on this machine."""
    given = os.environ.get("PATHOVIT_CACHE")
    home = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pathovit"
    return home / "encoders"


def weights_in(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def origin_in(folder: Path, name: str) -> Origin | None:
    """Where the weights of an encoder in a folder came from; None where there are none.

    Raises
    ------
    WeightsError : what says so is damaged
    """
    about = folder / f"{name}.json"
    try:
        found = Origin(**json.loads(read_bytes(about))) if weights_in(folder, name).is_file() else None
        if found is not None and not all(isinstance(value, str) for value in asdict(found).values()):
            raise ValueError("not all of it is text")
        if found is not None and found.name != name:
            raise ValueError(f"it is of {str(found.name)[:40]!r}")
        return found
    except FileNotFoundError:
        return None  # a fetch that was interrupted: it is fetched again
    except (ValueError, TypeError, OSError) as error:
        raise WeightsError(f"{about}: it is damaged ({error}). Fetch {name!r} again: pathovit encoders fetch {name}") from error


def require_unchanged(record: EncoderRecord, path: Path, sha256: str) -> None:
    """WeightsError for a file of our cache, or of an encoder's own folder, that is not what was put there; of others nothing is known."""
    pinned = record.sha256 if record.folder and path.parent == Path(record.folder) else None
    if path.parent == cache_folder() and (origin := origin_in(path.parent, path.stem)) is not None:
        pinned = origin.sha256
    if pinned is not None and sha256 != pinned:
        raise WeightsError(f"{path}: it was changed since it was put there. Put back a copy, or make or fetch it again.")


def keep(folder: Path, made: Path, origin: Origin) -> Path:
    """Move a finished file into a folder, then say where it came from."""
    target = weights_in(folder, origin.name)
    with storage_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        made.replace(target)
        write_atomically(folder / f"{origin.name}.json", to_json(asdict(origin)))
    return target


def carry(names: list[str], source: Path, target: Path, copied: Copied) -> None:
    """Copy weights from one folder to another; every file is read again where it lies now, and its digest compared.

    Raises
    ------
    WeightsError : one is missing, or is not what was fetched
    StorageError : the target cannot be written
    """
    for name in names:
        origin = origin_in(source, name)
        if origin is None:
            there = ", ".join(sorted(path.stem for path in source.glob("*.safetensors"))) or "none"
            raise WeightsError(f"{source}: there are no weights of {name!r} in it. There are: {there}.")
        part = target / f".{name}.{uuid.uuid4().hex[:8]}.partial"
        with storage_errors(part):
            target.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(weights_in(source, name), part)
                if file_sha256(part) != origin.sha256:
                    raise WeightsError(
                        f"{weights_in(source, name)}: it is not what was fetched (its SHA-256 is another). Copy it again, or fetch it again."
                    )
                keep(target, part, origin)
            finally:
                part.unlink(missing_ok=True)
        copied(name)


def names_in(folder: Path) -> list[str]:
    """Encoders whose weights lie in a folder."""
    return sorted(path.stem for path in folder.glob("*.safetensors") if (folder / f"{path.stem}.json").is_file())


def in_hub_cache(record: EncoderRecord, any_commit: bool = False) -> Path | None:
    """A file of a record's that another program has fetched, of the commit that is pinned (or any other, if that is not there); no network is used."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for revision in dict.fromkeys((record.revision or None, *([None] if any_commit else []))):
        for file in record.files:
            try:
                return Path(hf_hub_download(record.hub, file, revision=revision, local_files_only=True))
            except LocalEntryNotFoundError:
                continue
    return None
