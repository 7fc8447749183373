"""The record of any name, of our table or of timm; torch and timm are loaded only for one that the table does not have."""

from __future__ import annotations

from pathovit.encoders.records import RECORDS, EncoderRecord, timm_architectures, unknown_encoder


def known_record(name: str) -> EncoderRecord:
    """The record of any name; torch and timm are only loaded for one that the table does not have."""
    if name in RECORDS:
        return RECORDS[name]
    architectures = timm_architectures()
    if architectures and name.split(".")[0] not in architectures:  # said at once: to import timm takes seconds
        raise unknown_encoder(name, architectures)
    from pathovit.encoders.load import find_record

    return find_record(name)
