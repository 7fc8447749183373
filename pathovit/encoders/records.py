"""The table of encoders: what timm must build, and how the weights were trained to see tiles."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pathovit.errors import WeightsError

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
HALF: Colour = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class EncoderRecord:
    """One encoder. `arch` and `args` go to timm; the rest says what its weights expect."""

    name: str
    arch: str
    dim: int  # of the feature vector
    licence: str
    hub: str  # "repository" on the model hub that holds model.safetensors, or "" for bundled or user's weights
    args: dict[str, Any] = field(default_factory=dict)
    tile_px: int = 224
    mpp: float = 0.5
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    pool: str = "head"  # head: timm's own; cls_mean: CLS and mean of patch tokens, concatenated; direct: the model's output
    multiple_px: int = 16  # other tile sizes must be a multiple of this; else tiles are resized to tile_px
    sha256: str | None = None  # of the weights file, where it is pinned
    gated: bool = False  # the hub asks for a licence to be accepted
    prefers_fp32: bool = False  # bf16 is slower for it on CPUs
    feature_dtype: str = "float16"  # that they are stored in; float32 where they are too large for that
    scaled_decoding: bool = True  # its features hardly change if a JPEG is decoded at half its size rather than averaged
    note: str = ""


def unknown_encoder(name: str, architectures: Iterable[str]) -> WeightsError:
    """The error for a name that nobody knows, with the nearest ones."""
    near = difflib.get_close_matches(name, [*RECORDS, *architectures], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else " `pathovit encoders` lists them."
    return WeightsError(f"Unknown encoder {name!r}.{hint}")


@cache
def timm_architectures() -> frozenset[str]:
    """Names that timm registers, read from its sources; empty where these look otherwise than expected."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    found: set[str] = set()
    for source in (Path(spec.submodule_search_locations[0]) / "models").glob("*.py"):
        text = source.read_text("utf-8")
        found.update(re.findall(r"@register_model\s+def (\w+)\(", text))
        found.update(
            re.findall(
                r"'(\w+)':\s*'\w+", "".join(re.findall(r"register_model_deprecations\(__name__, \{(.*?)\}\)", text, re.DOTALL))
            )
        )
    return frozenset(found)


_H_OPTIMUS_MEAN: Colour = (0.707223, 0.578729, 0.703617)
_H_OPTIMUS_STD: Colour = (0.211883, 0.230117, 0.177517)
_LUNIT_MEAN: Colour = (0.70322989, 0.53606487, 0.66096631)
_LUNIT_STD: Colour = (0.21716536, 0.26081574, 0.20723464)
# Names of layers, resolved when a model is made, so that this table needs no torch.
_SWIGLU = {"mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "torch.nn.SiLU"}

_ALL = [
    EncoderRecord(
        "reference", "pathovit-reference", 256, "Apache-2.0", "", tile_px=96, mpp=1.0, multiple_px=32,
        mean=HALF, std=HALF, pool="direct", scaled_decoding=False,
        note="bundled; small hybrid CNN-ViT distilled from DINOv2, for demonstration",
    ),
    # General-purpose encoders, trained on photographs.
    EncoderRecord("swin_tiny", "swin_tiny_patch4_window7_224", 768, "MIT", "timm/swin_tiny_patch4_window7_224.ms_in1k", multiple_px=224),
    EncoderRecord(
        "swinv2_tiny", "swinv2_tiny_window8_256", 768, "MIT", "timm/swinv2_tiny_window8_256.ms_in1k", tile_px=256, multiple_px=256
    ),
    EncoderRecord("vit_small", "vit_small_patch16_224", 384, "Apache-2.0", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", mean=HALF, std=HALF),
    EncoderRecord("vit_base", "vit_base_patch16_224", 768, "Apache-2.0", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", mean=HALF, std=HALF),
    EncoderRecord(
        "vit_base_patch32", "vit_base_patch32_224", 768, "Apache-2.0", "timm/vit_base_patch32_224.augreg_in21k_ft_in1k",
        mean=HALF, std=HALF, multiple_px=32,
    ),
    EncoderRecord("deit_small", "deit_small_distilled_patch16_224", 384, "Apache-2.0", "timm/deit_small_distilled_patch16_224.fb_in1k"),
    EncoderRecord(
        "vit_small_hybrid", "vit_small_r26_s32_224", 384, "Apache-2.0", "timm/vit_small_r26_s32_224.augreg_in21k_ft_in1k",
        mean=HALF, std=HALF, multiple_px=32,
    ),
    EncoderRecord("convnext_tiny", "convnext_tiny", 768, "Apache-2.0", "timm/convnext_tiny.fb_in1k", multiple_px=32),
    EncoderRecord(
        "dinov2_small", "vit_small_patch14_dinov2", 384, "Apache-2.0", "timm/vit_small_patch14_dinov2.lvd142m",
        args={"img_size": 224}, multiple_px=14,
    ),
    EncoderRecord(
        "dinov2_small_reg", "vit_small_patch14_reg4_dinov2", 384, "Apache-2.0", "timm/vit_small_patch14_reg4_dinov2.lvd142m",
        args={"img_size": 224}, multiple_px=14,
    ),
    EncoderRecord(
        "dinov2_giant", "vit_giant_patch14_dinov2", 1536, "Apache-2.0", "timm/vit_giant_patch14_dinov2.lvd142m",
        args={"img_size": 224}, multiple_px=14,
    ),
    EncoderRecord("mae_base", "vit_base_patch16_224", 768, "CC-BY-NC-4.0", "timm/vit_base_patch16_224.mae", args={"global_pool": "avg"}),
    EncoderRecord("dino_small", "vit_small_patch16_224", 384, "Apache-2.0", "timm/vit_small_patch16_224.dino"),
    EncoderRecord("dino_small_patch8", "vit_small_patch8_224", 384, "Apache-2.0", "timm/vit_small_patch8_224.dino", multiple_px=8),
    EncoderRecord("resnet50", "resnet50", 2048, "Apache-2.0", "timm/resnet50.a1_in1k", multiple_px=32),
    EncoderRecord("efficientnet_b0", "efficientnet_b0", 1280, "Apache-2.0", "timm/efficientnet_b0.ra_in1k", multiple_px=32),
    # Pathology foundation models; their licences are the user's to accept on the hub.
    EncoderRecord(
        "uni", "vit_large_patch16_224", 1024, "CC-BY-NC-ND-4.0", "MahmoodLab/UNI",
        args={"init_values": 1e-5}, tile_px=224, gated=True,
    ),
    EncoderRecord(
        "uni2_h", "vit_giant_patch14_224", 1536, "CC-BY-NC-ND-4.0", "MahmoodLab/UNI2-h", multiple_px=14, gated=True,
        args={
            "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True, "reg_tokens": 8, **_SWIGLU,
        },
    ),
    EncoderRecord(
        "virchow", "vit_huge_patch14_224", 2560, "Apache-2.0", "paige-ai/Virchow", pool="cls_mean", multiple_px=14, gated=True,
        args={"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **_SWIGLU},
    ),
    EncoderRecord(
        "virchow2", "vit_huge_patch14_224", 2560, "CC-BY-NC-ND-4.0", "paige-ai/Virchow2", pool="cls_mean", multiple_px=14, gated=True,
        args={"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": "", **_SWIGLU},
    ),
    EncoderRecord(
        "prov_gigapath", "vit_giant_patch14_dinov2", 1536, "research only", "prov-gigapath/prov-gigapath", gated=True,
        args={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "mlp_ratio": 5.33334},
    ),
    EncoderRecord(
        "h_optimus_0", "vit_giant_patch14_reg4_dinov2", 1536, "Apache-2.0", "bioptimus/H-optimus-0", args={"img_size": 224, "init_values": 1e-5},
        mean=_H_OPTIMUS_MEAN, std=_H_OPTIMUS_STD, multiple_px=14, gated=True,
    ),
    EncoderRecord(
        "h_optimus_1", "vit_giant_patch14_reg4_dinov2", 1536, "CC-BY-NC-ND-4.0", "bioptimus/H-optimus-1", args={"img_size": 224, "init_values": 1e-5},
        mean=_H_OPTIMUS_MEAN, std=_H_OPTIMUS_STD, multiple_px=14, gated=True,
    ),
    EncoderRecord(
        "h0_mini", "vit_base_patch14_reg4_dinov2", 768, "CC-BY-NC-ND-4.0", "bioptimus/H0-mini",
        args={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, **_SWIGLU},
        mean=_H_OPTIMUS_MEAN, std=_H_OPTIMUS_STD, multiple_px=14, gated=True,
    ),
    EncoderRecord("kaiko_small", "vit_small_patch16_224", 384, "CC-BY-NC-SA-4.0", "1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms", mean=HALF, std=HALF),
    EncoderRecord("kaiko_base", "vit_base_patch16_224", 768, "CC-BY-NC-SA-4.0", "1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms", mean=HALF, std=HALF),
    EncoderRecord("lunit_small", "vit_small_patch16_224", 384, "non-commercial", "1aurent/vit_small_patch16_224.lunit_dino", mean=_LUNIT_MEAN, std=_LUNIT_STD),
    EncoderRecord(
        "lunit_small_patch8", "vit_small_patch8_224", 384, "non-commercial", "1aurent/vit_small_patch8_224.lunit_dino",
        mean=_LUNIT_MEAN, std=_LUNIT_STD, multiple_px=8,
    ),
    EncoderRecord("phikon", "vit_base_patch16_224", 768, "non-commercial", "1aurent/vit_base_patch16_224.owkin_pancancer"),
    EncoderRecord(
        "gpfm", "vit_large_patch14_dinov2", 1024, "CC-BY-NC-SA-4.0", "majiabo/GPFM", args={"img_size": 224, "init_values": 1e-5}, multiple_px=14,
        note="published as a .pth file: convert it first",
    ),
]  # fmt: skip

RECORDS: dict[str, EncoderRecord] = {record.name: record for record in _ALL}
