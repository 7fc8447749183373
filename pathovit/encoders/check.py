"""Whether an encoder can be loaded at all, before any worker is started; no torch needed, but for what other packages bring."""

from __future__ import annotations

from pathovit.encoders.names import known_record
from pathovit.encoders.own import OF_PACKAGE, brought
from pathovit.encoders.weights import find_weights, require_safetensors
from pathovit.files import file_sha256
from pathovit.settings import Settings

LARGE = 500  # million parameters of which it is said what memory they take: 4 bytes each, twice while they are loaded


def check_weights(settings: Settings) -> str:
    """The SHA-256 of the encoder's weights; raises WeightsError if they are missing or refused, or the encoder is unknown."""
    name, weights = settings.embed.encoder, settings.embed.weights
    if weights == "random":
        return weights
    record = known_record(name)
    if weights is None and record.arch == OF_PACKAGE and (of_package := brought(record.base)) is not None:
        return of_package[2]
    path = find_weights(record, weights)
    require_safetensors(path)
    return file_sha256(path)


def remarks_on(settings: Settings) -> list[str]:
    """What a user should know of an encoder before it is begun with: tiles that it was not trained on, and the memory that it takes."""
    record, asked = known_record(settings.embed.encoder), settings.tiles
    said = []
    if asked.mpp is not None and not record.fits(asked.mpp):
        trained = " and ".join(f"{mpp:g}" for mpp in record.mpps or (record.mpp,))
        said.append(
            f"{record.name} was trained at {trained} um per pixel, and tiles of {asked.mpp:g} are asked for: look whether it is any good there"
        )
    if record.input != "resample" and asked.tile_px is not None and asked.tile_px != record.tile_px:
        how = "cropped" if record.input == "crop" else "resized"
        said.append(
            f"{record.name} sees {record.tile_px} px: tiles of {asked.tile_px} px are {how} to that ({record.base}:resample for as they are)"
        )
    if record.millions >= LARGE:
        said.append(
            f"{record.name} has {record.millions:,.0f} million parameters: about {8 * record.millions / 1e3:.1f} GB of memory while it is loaded"
        )
    return said
