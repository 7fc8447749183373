"""Whether an encoder can be loaded at all, before any worker is started; no torch needed."""

from __future__ import annotations

from pathovit.encoders.records import RECORDS
from pathovit.encoders.weights import file_sha256, find_weights, require_safetensors
from pathovit.settings import Settings


def check_weights(settings: Settings) -> str:
    """The SHA-256 of the encoder's weights; raises WeightsError if they are missing or refused, or the encoder is unknown."""
    name, weights = settings.embed.encoder, settings.embed.weights
    if weights == "random":
        return weights
    record = RECORDS.get(name)
    if record is None:
        from pathovit.encoders import find_record

        record = find_record(name)
    path = find_weights(record, weights)
    require_safetensors(path)
    return file_sha256(path)
