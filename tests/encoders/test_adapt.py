"""Weights named as transformers names them: timm's network gives the numbers of theirs, to the last bits of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from pathovit.encoders.adapt import load_strictly
from pathovit.encoders.weights import convert_weights
from pathovit.errors import WeightsError

DIM, HEADS, DEPTH, PATCH = 32, 4, 2, 14


class Theirs(nn.Module):
    """DINOv2 as transformers has it, from its documented layout: names, separate queries, keys and values, positions resampled
    without antialiasing. Written out here, so that the comparison does not need the library."""

    def __init__(self, stored_side: int, registers: int = 0, swiglu: bool = False) -> None:
        super().__init__()
        self.registers, self.swiglu = registers, swiglu
        hidden = (int(DIM * 4 * 2 / 3) + 7) // 8 * 8 if swiglu else 4 * DIM
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.cls_token": (1, 1, DIM), "embeddings.mask_token": (1, DIM), "embeddings.position_embeddings": (1, 1 + stored_side**2, DIM),
            "embeddings.patch_embeddings.projection.weight": (DIM, 3, PATCH, PATCH), "embeddings.patch_embeddings.projection.bias": (DIM,),
            "layernorm.weight": (DIM,), "layernorm.bias": (DIM,),
        }  # fmt: skip
        if registers:
            shapes["embeddings.register_tokens"] = (1, registers, DIM)
        for block in range(DEPTH):
            at = f"encoder.layer.{block}."
            for name in (
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
                "attention.output.dense",
            ):
                shapes |= {f"{at}{name}.weight": (DIM, DIM), f"{at}{name}.bias": (DIM,)}
            for name in ("norm1", "norm2"):
                shapes |= {f"{at}{name}.weight": (DIM,), f"{at}{name}.bias": (DIM,)}
            shapes |= {f"{at}layer_scale1.lambda1": (DIM,), f"{at}layer_scale2.lambda1": (DIM,)}
            first, second, wide = ("weights_in", "weights_out", 2 * hidden) if swiglu else ("fc1", "fc2", hidden)
            shapes |= {f"{at}mlp.{first}.weight": (wide, DIM), f"{at}mlp.{first}.bias": (wide,)}
            shapes |= {f"{at}mlp.{second}.weight": (DIM, hidden), f"{at}mlp.{second}.bias": (DIM,)}
        torch.manual_seed(0)
        self.tensors = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens, normed."""
        t = self.tensors
        patches = functional.conv2d(
            images, t["embeddings.patch_embeddings.projection.weight"], t["embeddings.patch_embeddings.projection.bias"], PATCH
        )
        count, _, side, _ = patches.shape
        positions = t["embeddings.position_embeddings"]
        stored = round((positions.shape[1] - 1) ** 0.5)
        grid = positions[:, 1:].reshape(1, stored, stored, DIM).permute(0, 3, 1, 2)
        if stored != side:
            grid = functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
        tokens = torch.cat([t["embeddings.cls_token"].expand(count, -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, DIM)], 1)
        if self.registers:
            registers = t["embeddings.register_tokens"].expand(count, -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
        for block in range(DEPTH):
            tokens = self._block(tokens, f"encoder.layer.{block}.")
        return functional.layer_norm(tokens, (DIM,), t["layernorm.weight"], t["layernorm.bias"], 1e-6)

    def _linear(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(values, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _block(self, tokens: torch.Tensor, at: str) -> torch.Tensor:
        t = self.tensors
        normed = functional.layer_norm(tokens, (DIM,), t[f"{at}norm1.weight"], t[f"{at}norm1.bias"], 1e-6)
        parts = [self._linear(normed, f"{at}attention.attention.{which}") for which in ("query", "key", "value")]
        heads = [part.unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2) for part in parts]
        seen = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        tokens = tokens + t[f"{at}layer_scale1.lambda1"] * self._linear(seen, f"{at}attention.output.dense")
        normed = functional.layer_norm(tokens, (DIM,), t[f"{at}norm2.weight"], t[f"{at}norm2.bias"], 1e-6)
        if self.swiglu:
            gate, value = self._linear(normed, f"{at}mlp.weights_in").chunk(2, -1)
            found = self._linear(functional.silu(gate) * value, f"{at}mlp.weights_out")
        else:
            found = self._linear(functional.gelu(self._linear(normed, f"{at}mlp.fc1")), f"{at}mlp.fc2")
        return tokens + t[f"{at}layer_scale2.lambda1"] * found


def ours(registers: int, swiglu: bool) -> Any:
    args: dict[str, Any] = {
        "img_size": 16 * PATCH,
        "patch_size": PATCH,
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "init_values": 1.0,
    }
    if swiglu:
        hidden = (int(DIM * 4 * 2 / 3) + 7) // 8 * 8
        args |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * hidden / DIM}
    arch = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    return timm.create_model(arch, num_classes=0, **args).eval()


@pytest.mark.parametrize("prefix", ["", "dinov2.", "vit."])
@pytest.mark.parametrize(
    ("registers", "swiglu", "stored"), [(0, False, 16), (0, True, 16), (0, False, 37), (4, False, 37), (4, True, 16)]
)
def test_timms_network_gives_the_tokens_of_transformers(registers: int, swiglu: bool, stored: int, prefix: str) -> None:
    theirs, network = Theirs(stored, registers, swiglu), ours(registers, swiglu)
    load_strictly(network, {prefix + name: tensor for name, tensor in theirs.tensors.items()}, "theirs")
    images = torch.randn(2, 3, 16 * PATCH, 16 * PATCH)
    with torch.inference_mode():
        assert (network.forward_features(images) - theirs(images)).abs().max() < 1e-5


def test_against_the_library_itself() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.Dinov2Config(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=16 * PATCH,
        patch_size=PATCH,
        use_swiglu_ffn=True,
    )
    model = transformers.Dinov2Model(config).eval()
    network = ours(0, True)
    load_strictly(network, dict(model.state_dict()), "theirs")
    images = torch.randn(2, 3, 16 * PATCH, 16 * PATCH)
    with torch.inference_mode():
        assert (network.forward_features(images) - model(images).last_hidden_state).abs().max() < 1e-5


def test_a_part_that_is_missing_there_is_told() -> None:
    theirs = Theirs(16)
    del theirs.tensors["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(WeightsError, match=r"it misses 1 tensors, e.g. 'blocks.1.attn.qkv.weight'"):
        load_strictly(ours(0, False), theirs.tensors, "theirs")


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pt")

    def full(*given: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(WeightsError, match="not enough memory to read it"):
        convert_weights(tmp_path / "w.pt", tmp_path / "w.safetensors")
