"""What an encoder is on this machine, before it is loaded: all that a recipe says of it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pathovit.encoders.names import record_at_sight
from pathovit.encoders.record import EncoderRecord
from pathovit.machine import device_at_sight, precision_at_sight
from pathovit.settings import Settings

INT8 = "int8, linear layers"  # as recipes have it: before 2026-11-30 convolutions were in 8 bits, too, and could be wrong


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder for tiles of one size, on one kind of device."""

    record: EncoderRecord
    weights_sha256: str
    tile_px: int  # what it takes
    model_px: int  # what the model sees; tiles are resized if it differs
    engine: str  # torch or openvino
    precision: str  # float32, bfloat16, int8
    device: str  # cpu, cuda, mps

    @property
    def dim(self) -> int:
        return self.record.dim

    def recipe(self) -> dict[str, Any]:
        """What determines the bits of a feature, besides the tile; and the device, for the record."""
        own = (
            {"input": self.record.input, "arch": self.record.arch, "args": self.record.args} if self.record.folder else {}
        )  # of those of our table they are known
        return own | {
            "encoder": self.record.name,
            "weights_sha256": self.weights_sha256,
            "dim": self.dim,
            "tile_px": self.tile_px,
            "model_px": self.model_px,
            "pool": self.record.pool,
            "mean": list(self.record.mean),
            "std": list(self.record.std),
            "engine": self.engine,
            "precision": INT8 if self.precision == "int8" else self.precision,
            "device": self.device,
        }


def sides(record: EncoderRecord, tile_px: int | None) -> tuple[int, int]:
    """Side of the tiles that an encoder takes, and of what its model sees."""
    side = tile_px or record.tile_px
    return side, side if record.input == "resample" and side % record.multiple_px == 0 else record.tile_px


def spec_at_sight(settings: Settings, weights_sha256: str) -> EncoderSpec | None:
    """What `load_encoder` will load; None where torch has to be asked: for a GPU, and for names that our table does not have."""
    embed = settings.embed
    record = record_at_sight(embed.encoder)
    device = "cpu" if embed.engine == "openvino" else device_at_sight(settings.run.device)
    if record is None or device is None:
        return None
    prefers_fp32 = record.prefers_fp32 and embed.engine == "torch"
    precision = precision_at_sight(embed.precision, prefers_fp32)
    if precision is None:
        return None
    return EncoderSpec(record, weights_sha256, *sides(record, settings.tiles.tile_px), embed.engine, precision, device)
