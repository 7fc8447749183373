"""Whether an encoder can be loaded at all, before any worker is started; no torch needed."""

from __future__ import annotations

from pathovit.encoders.names import known_record
from pathovit.encoders.weights import find_weights, require_safetensors
from pathovit.files import file_sha256
from pathovit.settings import Settings


def check_weights(settings: Settings) -> str:
    """The SHA-256 of the encoder's weights; raises WeightsError if they are missing or refused, or the encoder is unknown."""
    name, weights = settings.embed.encoder, settings.embed.weights
    if weights == "random":
        return weights
    path = find_weights(known_record(name), weights)
    require_safetensors(path)
    return file_sha256(path)
