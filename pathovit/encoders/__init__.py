"""Encoder: tiles in, one feature vector each out. The one door to timm."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.records import HALF, IMAGENET_MEAN, IMAGENET_STD, RECORDS, EncoderRecord, unknown_encoder
from pathovit.encoders.weights import find_weights, read_safetensors
from pathovit.errors import WeightsError
from pathovit.files import file_sha256
from pathovit.machine import allowed_cores, pick_device, pick_precision

if TYPE_CHECKING:
    import torch
    from torch import nn

Pixels: TypeAlias = "NDArray[np.uint8] | torch.Tensor"  # uint8; a tensor is on the device already
CPU_BATCH_PX = 2**19  # pixels in one pass: 8 tiles of 224 px, 32 of 96 px; a CPU's caches hold no more
GPU_BATCH_TILES = 256  # a GPU is not filled by less
CPU_LANES = 2  # batches at a time: while one waits for a slower core, or for Python, the other goes on
RANDOM = "random"  # as weights: seeded noise, for benchmarks and tests
HEAD_NAMES = ("head.", "head_dist.", "fc.", "classifier.", "pre_logits.")

__all__ = ["HALF", "IMAGENET_MEAN", "IMAGENET_STD", "RECORDS", "Encoder", "EncoderRecord", "find_record", "load_encoder"]


@dataclass(frozen=True)
class Encoder:
    """A model ready to embed tiles on one device."""

    record: EncoderRecord
    model: nn.Module
    device: torch.device
    precision: str  # float32, bfloat16, int8
    tile_px: int  # what `embed` takes
    model_px: int  # what the model sees; tiles are resized if it differs
    weights_sha256: str
    cores: int  # that it may use, on a CPU
    engine: str = "torch"  # or openvino
    compiled: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None  # by the engine, if it is not torch

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def dim(self) -> int:
        return self.record.dim

    @property
    def mpp(self) -> float:
        return self.record.mpp

    @property
    def lanes(self) -> int:
        """Batches that the device works on at a time."""
        return min(CPU_LANES, self.cores) if self.device.type == "cpu" else 1

    @cached_property
    def batch_tiles(self) -> int:
        """Tiles in one pass that keep the device busy: fewer, by halves, where a GPU's memory does not hold them."""
        import torch

        if self.device.type != "cuda":
            return int(2 ** max(0, (CPU_BATCH_PX // self.tile_px**2).bit_length() - 1))
        tiles = GPU_BATCH_TILES
        while tiles > 1:
            try:
                self.embed(self.buffer(tiles))
                break
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                tiles //= 2
        return tiles

    def buffer(self, tiles: int) -> NDArray[np.uint8]:
        """Room for a batch, (tiles, tile_px, tile_px, 3), that the device takes up without a copy."""
        import torch

        pinned = self.device.type == "cuda"
        return torch.empty((tiles, self.tile_px, self.tile_px, 3), dtype=torch.uint8, pin_memory=pinned).numpy()

    def embed(self, tiles: Pixels) -> NDArray[np.float32]:
        """Features (B, D) of tiles uint8 (B, tile_px, tile_px, 3)."""
        return self.launch(tiles)()

    def launch(self, tiles: Pixels) -> Callable[[], NDArray[np.float32]]:
        """Begin to embed; call what is returned for the features. On a GPU it works on while the next batch is begun."""
        import torch

        if self.compiled is not None:
            assert isinstance(tiles, np.ndarray)
            features = self.compiled(tiles)
            return lambda: features
        with torch.inference_mode():
            pixels = torch.from_numpy(tiles) if isinstance(tiles, np.ndarray) else tiles
            pixels = pixels.to(self.device, non_blocking=True)
            found = self.forward(pixels).float()
            if self.device.type != "cuda":
                on_host = found.cpu().numpy()
                return lambda: on_host
            landed = torch.empty(found.shape, pin_memory=True)
            landed.copy_(found, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            done.record(torch.cuda.current_stream(self.device))

        def fetch() -> NDArray[np.float32]:
            done.synchronize()  # until then the tiles must not be freed, and this closure holds them
            assert len(tiles) == len(landed)
            return landed.numpy()

        return fetch

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (B, D), in the model's dtype, of uint8 (B, H, W, 3) pixels on its device."""
        from torch.nn import functional

        mean, std = self.colours
        images = (pixels.permute(0, 3, 1, 2).float() - mean) / std  # (B, H, W, 3) -> (B, 3, H, W), channels last in memory
        if images.shape[-1] != self.model_px:
            images = functional.interpolate(images, (self.model_px, self.model_px), mode="bilinear", antialias=True)
        return pool_tokens(self.model, images.to(next(self.model.parameters()).dtype), self.record.pool)

    @cached_property
    def colours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the colours, (1, 3, 1, 1) each, on the device: a copy would wait for its work."""
        import torch

        with torch.inference_mode(False):
            mean, std = (torch.tensor(c, device=self.device).view(1, 3, 1, 1) * 255 for c in (self.record.mean, self.record.std))
        return mean, std

    def recipe(self) -> dict[str, Any]:
        """What determines the bits of a feature, besides the tile."""
        return {
            "encoder": self.name,
            "weights_sha256": self.weights_sha256,
            "dim": self.dim,
            "tile_px": self.tile_px,
            "model_px": self.model_px,
            "pool": self.record.pool,
            "mean": list(self.record.mean),
            "std": list(self.record.std),
            "engine": self.engine,
            "precision": self.precision,
            "device": self.device.type,
        }


def pool_tokens(model: nn.Module, images: torch.Tensor, pool: str) -> torch.Tensor:
    """One vector (B, D) per image: timm's own pooling, CLS and mean patch token concatenated, or the model's own output."""
    import torch

    if pool == "direct":
        direct: torch.Tensor = model(images)
        return direct
    features = model.forward_features(images)  # type: ignore[operator]  # every timm model has it
    if pool == "cls_mean":
        patches = features[:, model.num_prefix_tokens :]
        return torch.cat([features[:, 0], patches.mean(1)], dim=-1)
    pooled: torch.Tensor = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return pooled


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
    side = tile_px or record.tile_px
    model_px = side if side % record.multiple_px == 0 else record.tile_px
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
