"""A record to a network, or timm's own configuration to a record. The one door to timm, with `nets.py`."""

from __future__ import annotations

import importlib
from dataclasses import replace
from math import gcd
from typing import TYPE_CHECKING, Any

from pathovit.encoders.pool import pool_tokens
from pathovit.encoders.record import IMAGENET_MEAN, IMAGENET_STD, EncoderRecord, parted
from pathovit.encoders.records import unknown_encoder
from pathovit.errors import WeightsError
from pathovit.text import first_line

if TYPE_CHECKING:
    from torch import nn

REFERENCE_ARCH = "pathovit-reference"
UNFIT = (AssertionError, RuntimeError, ValueError)  # what networks raise for a size that is not theirs
LAYERS = ("timm.layers.SwiGLUPacked", "torch.nn.SiLU")  # that a record may name


def timm_record(name: str) -> EncoderRecord:
    """A record made from timm's own configuration of a name, or a variant of it.

    Raises
    ------
    WeightsError : timm does not know the name, or there is no such variant
    """
    import timm
    import torch

    base, words = parted(name)
    if not timm.is_model(base):
        raise unknown_encoder(name, timm.list_models())
    config = timm.get_pretrained_cfg(base)
    side = config.input_size[-1] if config else 224
    with torch.device("meta"):  # shapes only
        model = timm.create_model(base, pretrained=False, num_classes=0).eval()
        dim = pool_tokens(model, torch.empty(1, 3, side, side), "head").shape[-1]
    record = EncoderRecord(
        base, base.split(".")[0], dim, round(sum(p.numel() for p in model.parameters()) / 1e6, 1), getattr(config, "license", None) or "unknown", (config.hf_hub_id or "") if config else "",
        tile_px=side, multiple_px=side if side % 32 else 32,
        mean=tuple(config.mean) if config else IMAGENET_MEAN, std=tuple(config.std) if config else IMAGENET_STD,
    )  # fmt: skip
    return record.variant(words) if words else record


def make_model(record: EncoderRecord, model_px: int) -> nn.Module:
    """The bare network, with random weights, for inputs of `model_px`.

    Raises
    ------
    WeightsError : it cannot see tiles of this size
    """
    try:
        model = _build(record, model_px)
    except TypeError as error:
        raise WeightsError(f"Encoder {record.name!r}: {record.arch} does not take its args ({error}).") from error
    if model_px != record.tile_px and record.arch != REFERENCE_ARCH:
        _require_fit(record, model_px)
    return model


def _build(record: EncoderRecord, model_px: int) -> nn.Module:
    if record.arch == REFERENCE_ARCH:  # without timm, which takes seconds to import
        from pathovit.encoders.reference import ReferenceNet

        return ReferenceNet()
    import timm

    from pathovit.encoders.nets import OWN_NETS

    if (own := OWN_NETS.get(record.arch)) is not None:
        return own(model_px)
    if not timm.is_model(record.arch):
        raise WeightsError(f"Encoder {record.name!r}: timm knows no architecture {record.arch!r}.")
    return _timm_model(record if model_px == record.tile_px else for_side(record, model_px))


def _timm_model(record: EncoderRecord) -> nn.Module:
    import timm

    args: dict[str, Any] = {key: _resolve(value) for key, value in record.args.items()}
    model: nn.Module = timm.create_model(record.arch, pretrained=False, num_classes=0, **args)
    if "cls" in record.pool.split("_") and not getattr(model, "num_prefix_tokens", 0):
        raise WeightsError(f"Encoder {record.name!r}: {record.arch} has no CLS token. Use :mean.")
    return model


def for_side(record: EncoderRecord, side: int) -> EncoderRecord:
    """The record of the same network made for tiles of another side: what is to be written with weights that were trained on them."""
    made = replace(record, tile_px=side, multiple_px=gcd(record.multiple_px, side))
    if side == record.tile_px or record.arch == REFERENCE_ARCH:
        return made
    import timm
    import torch

    if not timm.is_model(record.arch):
        return made
    sized = replace(made, args=record.args | {"img_size": side})
    try:
        with torch.device("meta"):  # shapes only
            _timm_model(sized)
    except TypeError:  # a network of convolutions has no such argument: it takes any size
        return made
    return sized


def _require_fit(record: EncoderRecord, model_px: int) -> None:
    """One pass without numbers: networks say in many ways that a size is not theirs."""
    import torch

    try:
        with torch.device("meta"):
            pool_tokens(_build(record, model_px).eval(), torch.empty(1, 3, model_px, model_px), record.pool)
    except UNFIT as error:
        raise WeightsError(
            f"Encoder {record.name!r}: {record.arch} cannot see tiles of {model_px} px as they are ({first_line(error)}). "
            f"Without :resample in its name they are resized to {record.tile_px} px."
        ) from error


def _resolve(value: Any) -> Any:
    """ "torch.nn.SiLU" -> the class; anything else as it is.

    Raises
    ------
    WeightsError : a name that no record needs; it could be anything that Python can import
    """
    if isinstance(value, str) and value.startswith(("timm.", "torch.")):
        if value not in LAYERS:
            raise WeightsError(f"{value!r} is no layer that an encoder's record may name: only {', '.join(LAYERS)}.")
        module, _, name = value.rpartition(".")
        return getattr(importlib.import_module(module), name)
    return value
