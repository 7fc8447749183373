"""Encoder: tiles in, one feature vector each out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.pool import pool_tokens
from pathovit.encoders.record import EncoderRecord
from pathovit.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

Pixels: TypeAlias = "NDArray[np.uint8] | torch.Tensor"  # uint8; a tensor is on the device already
CPU_BATCH_PX = 2**19  # pixels in one pass: 8 tiles of 224 px, 32 of 96 px; a CPU's caches hold no more
GPU_BATCH_TILES = 256  # a GPU is not filled by less
CPU_LANES = 2  # batches at a time: while one waits for a slower core, or for Python, the other goes on


@dataclass(frozen=True)
class Encoder:
    """A model ready to embed tiles on one device.

    Examples
    --------
    >>> encoder = pathovit.load_encoder("reference")
    >>> encoder.embed(np.zeros((2, encoder.tile_px, encoder.tile_px, 3), np.uint8)).shape
    (2, 256)
    """

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
        return pool_tokens(self.model, self.seen(pixels), self.record.pool)

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same pixels as the model sees them: (B, 3, model_px, model_px), colours scaled, in its dtype."""
        from torch.nn import functional

        mean, std = self.colours
        images = (pixels.permute(0, 3, 1, 2).float() - mean) / std  # (B, H, W, 3) -> (B, 3, H, W), channels last in memory
        if images.shape[-1] != self.model_px:
            side = self.model_px * 8 // 7 if self.record.input == "crop" else self.model_px  # 256 for 224
            if images.shape[-1] != side:
                images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
            edge = (side - self.model_px) // 2
            images = images[..., edge : edge + self.model_px, edge : edge + self.model_px]
        return images.to(next(self.model.parameters()).dtype)

    @cached_property
    def colours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the colours, (1, 3, 1, 1) each, on the device: a copy would wait for its work."""
        import torch

        with torch.inference_mode(False):
            mean, std = (torch.tensor(c, device=self.device).view(1, 3, 1, 1) * 255 for c in (self.record.mean, self.record.std))
        return mean, std

    def network(self) -> nn.Module:
        """Pixels to float32 features as one torch network, for what converts networks."""
        import torch

        class Features(torch.nn.Module):
            def __init__(self, encoder: Encoder) -> None:
                super().__init__()
                self.model, self.encoder = encoder.model, encoder

            def forward(self, tiles: torch.Tensor) -> torch.Tensor:
                return self.encoder.forward(tiles).float()

        assert self.colours  # made outside of a trace, so that it holds them as constants
        return Features(self).eval()

    @property
    def spec(self) -> EncoderSpec:
        return EncoderSpec(
            self.record, self.weights_sha256, self.tile_px, self.model_px, self.engine, self.precision, self.device.type
        )

    def recipe(self) -> dict[str, Any]:
        """What determines the bits of a feature, besides the tile."""
        return self.spec.recipe()
