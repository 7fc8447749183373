"""Tensors of a weights file to the names and shapes that a network of timm has; what is left over or missing is refused.

Two families are told by their names: timm's own (with the older ones that timm itself knows), and transformers' ViT and DINOv2,
whose numbers come out the same to the last bit.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from pathovit.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

HEADS = ("head.", "head_dist.", "fc.", "classifier.", "pre_logits.")  # of a classifier, which features do without
PATCHES = "embeddings.patch_embeddings.projection.weight"  # what transformers calls it
BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)")
PARTS = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "norm1": "norm1", "norm2": "norm2",
    "attention.output.dense": "attn.proj", "layer_scale1": "ls1", "layer_scale2": "ls2",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2",
}  # fmt: skip
QKV = ("query", "key", "value")
Tensors = dict[str, "torch.Tensor"]


def load_strictly(model: nn.Module, tensors: Tensors, name: str) -> None:
    """Give a network its weights: all of them come from the file, and what is left over may only be a classifier.

    Parameters
    ----------
    name : of the file, for the error

    Raises
    ------
    WeightsError : it is another network's
    """
    of_hub = next((key for key in tensors if key.endswith(PATCHES)), None)
    if of_hub is not None:
        tensors = from_transformers(tensors, of_hub.removesuffix(PATCHES), model)
    elif (adapt := _own_filter(model)) is not None:
        tensors = adapt(dict(tensors), model)
    wanted = model.state_dict()
    tensors = {k: v for k, v in tensors.items() if k in wanted or not (k.startswith(HEADS) or k.endswith("mask_token"))}
    missing = sorted(k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked"))
    extra = sorted(set(tensors) - set(wanted))
    shapes = [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    for what, names in (("misses", missing), ("has unknown", extra), ("has other shapes for", shapes)):
        if names:
            raise WeightsError(
                f"{name}: does not fit this encoder: it {what} {len(names)} tensors, e.g. {names[0]!r}. "
                "Check --encoder; foreign files may need `pathovit encoders convert` first."
            )
    model.load_state_dict(tensors, strict=False)


def _own_filter(model: nn.Module) -> Any:
    """What the module of a network has for files with older names, or for tiles of another size."""
    if (own := getattr(model, "adapt", None)) is not None:
        return own
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)


def from_transformers(tensors: Tensors, prefix: str, model: nn.Module) -> Tensors:
    """Tensors named as transformers names them, for timm's network of the same shape; positions are resampled as transformers does."""
    import torch

    found: Tensors = {}
    apart: dict[str, Tensors] = {}  # queries, keys and values, by what they become together
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        if (of_block := BLOCK.fullmatch(name)) is None:
            found |= _outside_blocks(name, tensor)
            continue
        block, part, kind = of_block.groups()
        if part.startswith("attention.attention.") and (which := part.rpartition(".")[2]) in QKV:
            apart.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[which] = tensor
        else:
            known = PARTS.get(part, part)
            found[f"blocks.{block}.{known}.{'gamma' if kind == 'lambda1' else kind}"] = tensor
    for name, three in apart.items():
        if len(three) == 3:  # else it is said to be missing
            found[name] = torch.cat([three[which] for which in QKV])
    positions, wanted = found.get("pos_embed"), model.state_dict().get("pos_embed")
    if positions is None or "cls_token" not in found:
        return found  # it is no ViT: what does not fit is said
    if getattr(model, "no_embed_class", False):  # timm adds none to the CLS token: what it would add becomes part of it
        found["cls_token"] = found["cls_token"] + positions[:, :1]
        positions = positions[:, 1:]
    if wanted is not None:
        positions = _resampled(positions, wanted.shape[1], prefix_tokens=0 if getattr(model, "no_embed_class", False) else 1)
    return found | {"pos_embed": positions}


def _outside_blocks(name: str, tensor: torch.Tensor) -> Tensors:
    names = {
        "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed", "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias",
    }  # fmt: skip
    if name.startswith("pooler.") or name.endswith("mask_token"):
        return {}
    return {names.get(name, name): tensor}


def _resampled(positions: torch.Tensor, wanted: int, prefix_tokens: int) -> torch.Tensor:
    """Positions (1, T, D) of a square grid for one of another size: bicubic, and not antialiased."""
    import torch
    from torch.nn import functional

    if positions.shape[1] == wanted:
        return positions
    first, grid = positions[:, :prefix_tokens], positions[:, prefix_tokens:].float()
    side, to = round(grid.shape[1] ** 0.5), round((wanted - prefix_tokens) ** 0.5)
    maps = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, T, D) -> (1, D, side, side)
    resized = functional.interpolate(maps, (to, to), mode="bicubic", align_corners=False)
    return torch.cat([first, resized.permute(0, 2, 3, 1).reshape(1, to * to, -1).to(positions.dtype)], dim=1)
