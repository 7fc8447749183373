"""Encoders of one's own: a folder, and what another package brings.

    FOLDER/encoder.json            the record: timm architecture, tile, colours, licence, digest of the weights
    FOLDER/weights.safetensors

`--encoder FOLDER` takes it. A package brings encoders by an entry point of the group "pathovit.encoders": a function without
arguments that returns an `EncoderRecord` and a torch network, under the name that --encoder takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathovit.encoders.record import EncoderRecord
from pathovit.errors import SettingsError, StorageError, WeightsError
from pathovit.files import file_sha256, put_whole, read_bytes, to_json, write_atomically
from pathovit.text import first_line

if TYPE_CHECKING:
    from torch import Tensor, nn


ABOUT, WEIGHTS = "encoder.json", "weights.safetensors"
GROUP = "pathovit.encoders"
OF_PACKAGE = "of-a-package"  # in place of an architecture of timm
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
MOST_BYTES = 2**20  # of a record
OF_TIMM = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable", "no_jit", "features_only", "num_classes"}  # fmt: skip
FIELDS = {field.name: field for field in dataclasses.fields(EncoderRecord) if field.name != "folder"}
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "str | None": (str, type(None)), "dict": (dict,), "tuple": (tuple,),
    "Colour": (tuple,),
}  # fmt: skip


# A folder


def write_encoder(folder: Path, record: EncoderRecord, tensors: dict[str, Tensor]) -> EncoderRecord:
    """Put an encoder into a folder, for `--encoder FOLDER`.

    Raises
    ------
    WeightsError : a name that is none
    StorageError : the folder cannot be written

    Examples
    --------
    >>> encoder = pathovit.load_encoder("reference", "random")
    >>> record = dataclasses.replace(encoder.record, name="mine")
    >>> pathovit.write_encoder(Path("mine"), record, encoder.model.state_dict()).name
    'mine'
    """
    if not NAME.fullmatch(record.name):
        raise WeightsError(f"{record.name!r} is no name for an encoder: small letters, digits, and _ . - between them.")
    weights = folder / WEIGHTS
    write_safetensors(weights, tensors)
    found = dataclasses.replace(record, sha256=file_sha256(weights), folder=str(folder.resolve()))
    said = {name: value for name, value in dataclasses.asdict(found).items() if name in FIELDS}
    write_atomically(folder / ABOUT, to_json(said))
    return found


def write_safetensors(target: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file of tensors, whole or not at all. Raises StorageError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with put_whole(target) as place:
        try:
            save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, place)
        except SafetensorError as error:  # its own, which has no number of the system
            raise StorageError(
                f"{target}: it cannot be written ({first_line(error)}). Free some space, or choose another place."
            ) from error


def is_folder(name: str) -> bool:
    """Whether an encoder's name is a path: it has a separator, or there is such a folder."""
    return "/" in name or "\\" in name or (Path(name) / ABOUT).is_file()


def folder_record(folder: Path) -> EncoderRecord:
    """The record of an encoder in a folder. It may be somebody else's: nothing in it is run.

    Raises
    ------
    WeightsError : there is none, or it is damaged
    """
    about = folder / ABOUT
    try:
        if about.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        values = _values(json.loads(read_bytes(about)))
        record = EncoderRecord(**values, folder=str(folder.resolve()))
        if not NAME.fullmatch(record.name):
            raise ValueError(f"{record.name!r} is no name")
        return record
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{folder}: there is no {ABOUT} in it. Make such a folder with pathovit.write_encoder.") from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, WeightsError) as error:
        raise WeightsError(f"{about}: it is no record of an encoder ({first_line(error)}).") from error


def _values(said: Any) -> Mapping[str, Any]:
    """Values of a record's fields, each of its type. Raises ValueError."""
    if not isinstance(said, dict):
        raise ValueError("it is no object")
    if unknown := sorted(set(said) - set(FIELDS)):
        raise ValueError(f"it says {unknown[0]!r}, which no encoder has")
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    for name, value in found.items():
        kinds: tuple[type, ...] = KINDS[str(FIELDS[name].type).partition("[")[0]]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{name} is {str(value)[:40]!r}, which is no {' or '.join(kind.__name__ for kind in kinds)}")
    for name in {"mean", "std", "mpps"} & set(found):
        if not all(isinstance(one, int | float) for one in found[name]):
            raise ValueError(f"{name} does not hold numbers")
        if name != "mpps" and len(found[name]) != 3:
            raise ValueError(f"{name} has not three colours")
    if unfit := sorted(OF_TIMM & set(found.get("args", {}))):
        raise ValueError(f"args say {unfit[0]!r}, which is no part of an architecture")
    return found


# Another package


@lru_cache
def brought(name: str) -> tuple[EncoderRecord, nn.Module, str] | None:
    """The encoder of a name that another package brings: its record, its network, and the digest of its tensors.

    Raises
    ------
    SettingsError : the package's function fails, or does not return what it should
    """
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        return None
    import torch

    try:
        record, network = found[0].load()()
        assert isinstance(record, EncoderRecord) and isinstance(network, torch.nn.Module), "it returns no record and network"
    except Exception as error:  # it is other people's code, and may raise anything
        raise SettingsError(f"Encoder {name!r}, which {found[0].value} brings, cannot be made: {error!r}.") from error
    return dataclasses.replace(record, name=name, arch=OF_PACKAGE, pool="direct"), network, digest_of(network)


def names_brought() -> list[str]:
    """Of encoders that other packages bring."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def digest_of(network: nn.Module) -> str:
    """SHA-256 of a network's tensors, by name."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()
