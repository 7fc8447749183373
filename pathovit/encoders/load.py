"""A name and weights to an encoder on a device. The one door to timm, with `reference.py`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathovit.encoders.encoder import Encoder
from pathovit.encoders.records import IMAGENET_MEAN, IMAGENET_STD, RECORDS, EncoderRecord, unknown_encoder
from pathovit.encoders.spec import sides
from pathovit.encoders.weights import find_weights, read_safetensors
from pathovit.errors import WeightsError
from pathovit.files import file_sha256
from pathovit.machine import allowed_cores, pick_device, pick_precision

if TYPE_CHECKING:
    import torch
    from torch import nn

RANDOM = "random"  # as weights: seeded noise, for benchmarks and tests
HEAD_NAMES = ("head.", "head_dist.", "fc.", "classifier.", "pre_logits.")


def find_record(name: str) -> EncoderRecord:
    """The record of a name in the table, else one made from timm's own configuration of that name."""
    if name in RECORDS:
        return RECORDS[name]
    import timm

    if not timm.is_model(name):
        raise unknown_encoder(name, timm.list_models())
    config = timm.get_pretrained_cfg(name)
    model = timm.create_model(name, pretrained=False, num_classes=0)
    size = config.input_size[-1] if config else 224
    return EncoderRecord(
        name, name.split(".")[0], int(getattr(model, "head_hidden_size", None) or model.num_features), getattr(config, "license", None) or "unknown",
        (config.hf_hub_id or "") if config else "", tile_px=size, multiple_px=size,
        mean=tuple(config.mean) if config else IMAGENET_MEAN, std=tuple(config.std) if config else IMAGENET_STD,
    )  # fmt: skip


def load_encoder(
    name: str,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    tile_px: int | None = None,
    engine: str = "torch",
    cores: int | None = None,
) -> Encoder:
    """Build an encoder and load its weights. Never uses the network.

    Parameters
    ----------
    name : a name of the table (`pathovit encoders`), or any timm architecture
    weights : a .safetensors file; None for the bundled or the fetched one; "random" for seeded noise
    tile_px : tile side if not the encoder's own; positions are resampled where the architecture allows it
    cores : that it may use, on a CPU; None for all that this process is allowed
    engine : "torch"; "openvino" is faster on most CPUs and needs `pip install "pathovit[openvino]"`

    Raises
    ------
    SettingsError : a device, precision or engine that cannot be had
    WeightsError : unknown name, no weights, or weights that do not fit
    """
    import torch

    record = find_record(name)
    side, model_px = sides(record, tile_px)
    if weights == RANDOM:
        with torch.random.fork_rng():  # the caller's own chance goes on as it was
            torch.manual_seed(0)
            model, digest = make_model(record, model_px), RANDOM
    else:
        path = find_weights(record, weights)
        digest = file_sha256(path) if path.is_file() else ""
        if weights is None and record.sha256 and digest != record.sha256:
            raise WeightsError(
                f"{path.name}: SHA-256 is {digest[:12]}..., pinned is {record.sha256[:12]}.... The file was changed."
            )
        model = make_model(record, model_px)
        _load_strictly(model, read_safetensors(path), path)
    model = model.eval().requires_grad_(False)
    if engine == "openvino":
        from pathovit.encoders.openvino_engine import compile_encoder

        plain = Encoder(record, model, torch.device("cpu"), "float32", side, model_px, digest, cores or allowed_cores())
        return compile_encoder(plain, precision)
    target = pick_device(device)
    dtype = pick_precision(precision, target, record.prefers_fp32)
    said = str(dtype).removeprefix("torch.")
    return Encoder(record, model.to(target, dtype), target, said, side, model_px, digest, cores or allowed_cores())


def make_model(record: EncoderRecord, model_px: int) -> nn.Module:
    """The bare network, with random weights, for inputs of `model_px`."""
    if record.name == "reference":
        from pathovit.encoders.reference import ReferenceNet

        return ReferenceNet()
    import timm

    args: dict[str, Any] = {key: _resolve(value) for key, value in record.args.items()}
    if model_px != record.tile_px and "vit" in record.arch:
        args["img_size"] = model_px
    model: nn.Module = timm.create_model(record.arch, pretrained=False, num_classes=0, **args)
    return model


def _resolve(value: Any) -> Any:
    """ "torch.nn.SiLU" -> the class; anything else as it is."""
    if isinstance(value, str) and value.startswith(("timm.", "torch.")):
        module, _, name = value.rpartition(".")
        return getattr(importlib.import_module(module), name)
    return value


def _load_strictly(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Every tensor of the model must come from the file; what is left over may only be a classifier."""
    module = sys.modules[type(model).__module__]
    adapt = getattr(module, "checkpoint_filter_fn", None)  # timm's own: older names, positions for other sizes
    if adapt is not None:
        tensors = adapt(dict(tensors), model)
    wanted = model.state_dict()
    tensors = {k: v for k, v in tensors.items() if k in wanted or (not k.startswith(HEAD_NAMES) and not k.endswith("mask_token"))}
    missing = sorted(k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked"))
    extra = sorted(set(tensors) - set(wanted))
    shapes = [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    for what, names in (("misses", missing), ("has unknown", extra), ("has other shapes for", shapes)):
        if names:
            raise WeightsError(
                f"{path.name}: does not fit this encoder: it {what} {len(names)} tensors, e.g. {names[0]!r}. "
                "Give the weights made for this architecture."
            )
    model.load_state_dict(tensors, strict=False)
