"""Whether an encoder can be loaded at all, before any worker is started; no torch needed."""

from __future__ import annotations

from pathovit.encoders.records import RECORDS
from pathovit.encoders.weights import find_weights
from pathovit.errors import WeightsError
from pathovit.settings import Settings


def check_weights(settings: Settings) -> None:
    """Raises WeightsError if the encoder is unknown, or its weights are missing or of a refused kind."""
    name, weights = settings.embed.encoder, settings.embed.weights
    if weights == "random":
        return
    record = RECORDS.get(name)
    if record is None:
        from pathovit.encoders import find_record

        record = find_record(name)
    path = find_weights(record, weights)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file. Check the path.")
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path.name}: only .safetensors weights are loaded, because other formats can run code. "
            f"Convert it with: pathovit encoders convert {path.name} {path.stem}.safetensors"
        )
