"""The record of any name: of our table, of timm, of a folder, or of a package; torch and timm are loaded only where they must be."""

from __future__ import annotations

from pathlib import Path

from pathovit.encoders.own import ABOUT, brought, folder_record, is_folder, names_brought
from pathovit.encoders.record import EncoderRecord, parted
from pathovit.encoders.records import RECORDS, timm_architectures, unknown_encoder


def record_at_sight(name: str) -> EncoderRecord | None:
    """The record of a name of the table or of a folder, or of a variant of it; None for other names. Needs no torch.

    Raises
    ------
    WeightsError : a variant that there is not, or a folder that holds no encoder
    """
    base, words = parted(name)
    record = folder_record(Path(base)) if is_folder(base) else RECORDS.get(base)
    return record.variant(words) if record is not None and words else record


def known_record(name: str) -> EncoderRecord:
    """The record of any name.

    Raises
    ------
    WeightsError : nobody knows it
    """
    record = record_at_sight(name)
    if record is not None:
        return record
    base, words = parted(name)
    if (of_package := brought(base)) is not None:
        return of_package[0].variant(words) if words else of_package[0]
    architectures = timm_architectures()
    if architectures and base.split(".")[0] not in architectures:  # said at once: to import timm takes seconds
        raise unknown_encoder(name, [*architectures, *names_brought()])
    from pathovit.encoders.build import timm_record

    return timm_record(name)


def can_be_known(name: str) -> bool:
    """Whether a name can stand for an encoder on this machine, as far as that is told without loading anything."""
    base, _ = parted(name)
    architectures = timm_architectures()
    return base in RECORDS or base in names_brought() or not architectures or base.split(".")[0] in architectures


def with_weights(text: str) -> tuple[str, str | None]:
    """An encoder and its weights, as in `uni=FILE.safetensors`; None where none are named. Names of folders may have such signs, too."""
    signs = [place for place, sign in enumerate(text) if sign == "="]
    for place in (*signs, len(text)):
        if "=" in text[:place] and (Path(parted(text[:place])[0]) / ABOUT).is_file():
            return text[:place], text[place + 1 :] or None
    name, _, weights = text.partition("=")
    return name, weights or None
