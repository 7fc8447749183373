"""The table of encoders, by name. Where no commit of a repository is pinned, its newest is fetched; which that was is kept with the weights."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pathovit.encoders.record import HALF, Colour, EncoderRecord
from pathovit.errors import WeightsError


def unknown_encoder(name: str, architectures: Iterable[str]) -> WeightsError:
    """The error for a name that nobody knows, with the nearest ones."""
    near = difflib.get_close_matches(name.partition(":")[0], [*RECORDS, *architectures], n=3)
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


_CLIP: tuple[Colour, Colour] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_H_OPTIMUS: tuple[Colour, Colour] = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_LUNIT: tuple[Colour, Colour] = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)
_HIBOU: tuple[Colour, Colour] = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)
_HALF: tuple[Colour, Colour] = (HALF, HALF)
# Names of layers, resolved when a model is made, so that this table needs no torch.
_SWIGLU = {"mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "torch.nn.SiLU"}
_AT_224 = {"img_size": 224}  # of DINOv2, whose positions are stored for 518
_BIN = ("pytorch_model.bin",)
_KAIKO = "Kaiko Non-Commercial Public License 1"
_LUNIT_NC = "Lunit non-commercial"
_OWKIN_NC = "Owkin non-commercial"
_OPEN, _NC = "Apache-2.0", "CC-BY-NC-ND-4.0"
_ALL_MPPS = (0.25, 0.5, 1.0, 2.0)


def _timm(
    name: str,
    arch: str,
    dim: int,
    millions: float,
    weights: str,
    licence: str = _OPEN,
    colours: tuple[Colour, Colour] | None = None,
    **more: Any,
) -> EncoderRecord:
    """One of timm's own, trained on photographs; `weights` is timm's name for how."""
    if colours is not None:
        more |= {"mean": colours[0], "std": colours[1]}
    return EncoderRecord(name, arch, dim, millions, licence, f"timm/{arch}.{weights}", files=("model.safetensors",), **more)


def _path(
    name: str,
    arch: str,
    dim: int,
    millions: float,
    hub: str,
    licence: str,
    colours: tuple[Colour, Colour] | None = None,
    **more: Any,
) -> EncoderRecord:
    """One of pathology; its licence is the user's to accept."""
    if colours is not None:
        more |= {"mean": colours[0], "std": colours[1]}
    return EncoderRecord(name, arch, dim, millions, licence, hub, **more)


def _kaiko(name: str, arch: str, dim: int, millions: float, **more: Any) -> EncoderRecord:
    hub = f"1aurent/{arch}.kaiko_ai_towards_large_pathology_fms"
    return _path(name, arch, dim, millions, hub, _KAIKO, _HALF, files=("model.safetensors",), **more)


def _lunit(name: str, arch: str, dim: int, millions: float, weights: str, **more: Any) -> EncoderRecord:
    return _path(
        name, arch, dim, millions, f"1aurent/{arch}.lunit_{weights}", _LUNIT_NC, _LUNIT, files=("model.safetensors",), **more
    )


_ALL = [
    EncoderRecord(
        "reference", "pathovit-reference", 256, 3.9, _OPEN, "", tile_px=96, mpp=1.0, multiple_px=32, mean=HALF, std=HALF, pool="direct",
        input="resample", scaled_decoding=False, note="bundled; small hybrid CNN-ViT distilled from DINOv2, for demonstration",
    ),
    # General-purpose encoders, trained on photographs. Hierarchical ones:
    _timm("swin_tiny", "swin_tiny_patch4_window7_224", 768, 27.5, "ms_in1k", "MIT", multiple_px=32),
    _timm("swin_small", "swin_small_patch4_window7_224", 768, 48.8, "ms_in22k_ft_in1k", "MIT", multiple_px=32),
    _timm("swin_base", "swin_base_patch4_window7_224", 1024, 86.7, "ms_in22k", "MIT", multiple_px=32),
    _timm("swinv2_tiny", "swinv2_tiny_window8_256", 768, 27.6, "ms_in1k", "MIT", tile_px=256, multiple_px=32),
    _timm("swinv2_base", "swinv2_base_window8_256", 1024, 86.9, "ms_in1k", "MIT", tile_px=256, multiple_px=32),
    _timm("hiera_tiny", "hiera_tiny_224", 768, 27.1, "mae", "CC-BY-NC-4.0", multiple_px=32),
    _timm("hiera_small", "hiera_small_224", 768, 34.2, "mae", "CC-BY-NC-4.0", multiple_px=32),
    _timm("hiera_base", "hiera_base_224", 768, 50.8, "mae", "CC-BY-NC-4.0", multiple_px=32),
    _timm("convnext_tiny", "convnext_tiny", 768, 27.8, "fb_in1k", multiple_px=32),
    _timm("convnext_small", "convnext_small", 768, 49.5, "fb_in22k", multiple_px=32),
    _timm("convnext_base", "convnext_base", 1024, 87.6, "fb_in22k", multiple_px=32),
    _timm("resnet50", "resnet50", 2048, 23.5, "a1_in1k", multiple_px=32),
    _timm("efficientnet_b0", "efficientnet_b0", 1280, 4, "ra_in1k", multiple_px=32),
    # Plain ones, trained with labels:
    _timm("vit_small", "vit_small_patch16_224", 384, 21.7, "augreg_in21k_ft_in1k", colours=_HALF),
    _timm("vit_base", "vit_base_patch16_224", 768, 85.8, "augreg2_in21k_ft_in1k", colours=_HALF),
    _timm("vit_large", "vit_large_patch16_224", 1024, 303.3, "augreg_in21k_ft_in1k", colours=_HALF),
    _timm("vit_base_patch32", "vit_base_patch32_224", 768, 87.5, "augreg_in21k_ft_in1k", colours=_HALF, multiple_px=32),
    _timm("vit_small_hybrid", "vit_small_r26_s32_224", 384, 36, "augreg_in21k_ft_in1k", colours=_HALF, multiple_px=32),
    _timm("deit_small", "deit_small_distilled_patch16_224", 384, 21.7, "fb_in1k"),
    _timm("deit3_small", "deit3_small_patch16_224", 384, 21.7, "fb_in22k_ft_in1k"),
    _timm("deit3_base", "deit3_base_patch16_224", 768, 85.8, "fb_in22k_ft_in1k"),
    # Trained without labels:
    _timm("dino_small", "vit_small_patch16_224", 384, 21.7, "dino"),
    _timm("dino_small_patch8", "vit_small_patch8_224", 384, 21.7, "dino", multiple_px=8),
    _timm("dino_base", "vit_base_patch16_224", 768, 85.8, "dino"),
    _timm("mae_base", "vit_base_patch16_224", 768, 85.8, "mae", "CC-BY-NC-4.0", args={"global_pool": "avg", "fc_norm": False}),
    _timm("mae_large", "vit_large_patch16_224", 1024, 303.3, "mae", "CC-BY-NC-4.0", args={"global_pool": "avg", "fc_norm": False}),
    _timm("dinov2_small", "vit_small_patch14_dinov2", 384, 21.6, "lvd142m", args=_AT_224, multiple_px=14),
    _timm("dinov2_small_reg", "vit_small_patch14_reg4_dinov2", 384, 21.6, "lvd142m", args=_AT_224, multiple_px=14),
    _timm("dinov2_base", "vit_base_patch14_dinov2", 768, 85.7, "lvd142m", args=_AT_224, multiple_px=14),
    _timm("dinov2_large", "vit_large_patch14_dinov2", 1024, 303.2, "lvd142m", args=_AT_224, multiple_px=14),
    _timm("dinov2_giant", "vit_giant_patch14_dinov2", 1536, 1134.8, "lvd142m", args=_AT_224, multiple_px=14),
    *(
        _timm(f"dinov3_{size}", f"vit_{size}_patch16_dinov3", dim, millions, "lvd1689m", "DINOv3 License", tile_px=256, pool="cls")  # timm's own is the mean
        for size, dim, millions in (
            ("small", 384, 21.6), ("small_plus", 384, 28.7), ("base", 768, 85.6), ("large", 1024, 303.1), ("huge_plus", 1280, 840.5), ("7b", 4096, 6716),
        )
    ),
    # Trained with captions:
    _timm("clip_huge", "vit_huge_patch14_clip_224", 1280, 630.8, "laion2b", colours=_CLIP, multiple_px=14),
    _timm("clip_giant", "vit_giant_patch14_clip_224", 1408, 1011.2, "laion2b", colours=_CLIP, multiple_px=14),
    _timm("clip_gigantic", "vit_gigantic_patch14_clip_224", 1664, 1842.8, "laion2b", colours=_CLIP, multiple_px=14),
    # Pathology foundation models.
    _path("uni", "vit_large_patch16_224", 1024, 303.4, "MahmoodLab/UNI", _NC, args={"init_values": 1e-5}, files=_BIN, gated=True),
    _path(
        "uni2_h", "vit_giant_patch14_224", 1536, 681.4, "MahmoodLab/UNI2-h", _NC, multiple_px=14, files=_BIN, gated=True,
        args={
            "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True, "reg_tokens": 8, **_SWIGLU,
        },
    ),
    _path(
        "virchow", "vit_huge_patch14_224", 2560, 631.2, "paige-ai/Virchow", _OPEN, pool="cls_mean", multiple_px=14, files=_BIN, gated=True,
        args={"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **_SWIGLU},
    ),
    _path(
        "virchow2", "vit_huge_patch14_224", 2560, 631.2, "paige-ai/Virchow2", _NC, pool="cls_mean", multiple_px=14, files=_BIN, gated=True,
        args={"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": "", **_SWIGLU}, mpps=_ALL_MPPS,
    ),
    _path(
        "prov_gigapath", "vit_giant_patch14_dinov2", 1536, 1135, "prov-gigapath/prov-gigapath", "Apache-2.0 with conditions, research only",
        input="crop", files=_BIN, gated=True, args={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "mlp_ratio": 5.33334},
    ),
    *(
        _path(
            f"h_optimus_{number}", "vit_giant_patch14_reg4_dinov2", 1536, 1134.8, f"bioptimus/H-optimus-{number}", licence, _H_OPTIMUS,
            args={"img_size": 224, "init_values": 1e-5}, multiple_px=14, gated=True,
        )
        for number, licence in ((0, _OPEN), (1, _NC))
    ),
    _path(
        "h0_mini", "vit_base_patch14_reg4_dinov2", 768, 85.7, "bioptimus/H0-mini", _NC, _H_OPTIMUS, multiple_px=14, gated=True,
        args={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, **_SWIGLU},
        note="its users differ: CLS as here, or h0_mini:cls_mean",
    ),
    _path(
        "midnight", "vit_giant_patch14_dinov2", 3072, 1134.8, "kaiko-ai/midnight", "MIT", _HALF, pool="cls_mean", multiple_px=14, mpps=_ALL_MPPS,
        args={"img_size": 224, "init_values": 1e-5}, files=("model.safetensors",), note="midnight:cls is half of it",
    ),
    _path(
        "open_midnight", "vit_giant_patch14_reg4_dinov2", 1536, 1134.8, "SophontAI/OpenMidnight", _OPEN, multiple_px=14, gated=True,
        args={"img_size": 224, "init_values": 1e-5}, files=("teacher_checkpoint_load.pt",),
    ),
    _path("phikon", "vit_base_patch16_224", 768, 85.8, "1aurent/vit_base_patch16_224.owkin_pancancer", _OWKIN_NC, files=("model.safetensors",)),
    _path(
        "phikon_v2", "vit_large_patch14_dinov2", 1024, 303.4, "owkin/phikon-v2", _OWKIN_NC, files=("model.safetensors",),
        args={"img_size": 224, "patch_size": 16, "init_values": 1e-5},
    ),
    _path(
        "hibou_base", "vit_base_patch14_reg4_dinov2", 768, 85.7, "histai/hibou-B", _OPEN, _HIBOU, multiple_px=14, gated=True,
        args={"img_size": 224, "init_values": 1e-5},
    ),
    _path(
        "hibou_large", "vit_large_patch14_reg4_dinov2", 1024, 303.7, "histai/hibou-L", _OPEN, _HIBOU, multiple_px=14, gated=True,
        args={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.34375, **_SWIGLU},
    ),
    _path(
        "gpfm", "vit_large_patch14_dinov2", 1024, 303.2, "majiabo/GPFM", _NC, multiple_px=14, files=("GPFM.pth",),
        args={"img_size": 224, "init_values": 1e-5},
    ),
    _path("mstar", "vit_large_patch16_224", 1024, 303.4, "Wangyh/mSTAR", "see its page", args={"init_values": 1e-5}, gated=True),
    _path("pathorchestra", "vit_large_patch16_224", 1024, 303.4, "AI4Pathology/PathOrchestra", _NC, args={"init_values": 1e-5}, gated=True),
    _path("keep", "pathovit-keep", 768, 304.7, "Astaxanthin/KEEP", "see its page", pool="direct", files=("model.safetensors",)),
    _path(
        "conch_v15", "pathovit-conch_v15", 768, 306.7, "MahmoodLab/conchv1_5", _NC, tile_px=448, pool="direct", gated=True,
        files=("pytorch_model_vision.bin",),
    ),
    _path("ctranspath", "pathovit-ctranspath", 768, 27.5, "", "GPL-3.0", pool="direct", multiple_px=32, mpp=1.0, mpps=(0.5, 1.0)),
    _kaiko("kaiko_small", "vit_small_patch16_224", 384, 21.7),
    _kaiko("kaiko_small_patch8", "vit_small_patch8_224", 384, 21.7, multiple_px=8),
    _kaiko("kaiko_base", "vit_base_patch16_224", 768, 85.8),
    _kaiko("kaiko_base_patch8", "vit_base_patch8_224", 768, 85.8, multiple_px=8),
    _kaiko("kaiko_large", "vit_large_patch14_reg4_dinov2", 1024, 303.2, args={"img_size": 224, "init_values": 1e-5}, multiple_px=14),
    _lunit("lunit_small", "vit_small_patch16_224", 384, 21.7, "dino"),
    _lunit("lunit_small_patch8", "vit_small_patch8_224", 384, 21.7, "dino", multiple_px=8),
    *(_lunit(f"lunit_resnet50_{name}", "resnet50", 2048, 23.5, name, multiple_px=32) for name in ("bt", "mocov2", "swav")),
]  # fmt: skip

# Commits at which the weights of a repository are in public use, in two independent places at least: weights that are exchanged under a
# name are not fetched without a word.
_COMMITS = {
    "MahmoodLab/UNI": "b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
    "MahmoodLab/UNI2-h": "d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
    "paige-ai/Virchow": "19eebc84ae33e79f1b2d866e6ff90ae50e522f9a",
    "paige-ai/Virchow2": "3158645804b69e3f3bc4439d4116edddf0840a72",
    "prov-gigapath/prov-gigapath": "eba85dd46097c3eedfcc2a3a9a930baecb6bcc19",
    "bioptimus/H-optimus-0": "b145cc1e6c6b30d3251aa8b1f844e6974188a743",
    "bioptimus/H-optimus-1": "3592cb220dec7a150c5d7813fb56e68bd57473b9",
    "bioptimus/H0-mini": "5b5cc0505d19ae558270045eb0df8c34df4d9609",
    "kaiko-ai/midnight": "adc6b15679c981cce6f9b018bbad09d16eeeda9f",
    "SophontAI/OpenMidnight": "87189e6674d397a14a5cd342c97b1a1615a185aa",
    "owkin/phikon-v2": "2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd",
    "1aurent/vit_small_patch8_224.lunit_dino": "c23bc01cfbe022bc1f2a8a9306125a07818e4eb4",
    "timm/resnet50.a1_in1k": "767268603ca0cb0bfe326fa87277f19c419566ef",
    "timm/efficientnet_b0.ra_in1k": "1b5383e5f79cc0f7fc067e372f8f26a5fa73f26a",
    "timm/convnext_tiny.fb_in1k": "b43a6303c9fcf176d2d707478a128c2c91e93528",
    "timm/swin_tiny_patch4_window7_224.ms_in1k": "4cc3a7275b50b53a7bec45f32c236ebe64227cff",
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k": "7e2c55630205e1266030f18370f4c6ed1a514b52",
    "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k": "063c6c38a5d8510b2e57df480445e94b231dad2c",
    "timm/vit_small_patch14_dinov2.lvd142m": "4610ca143709d58a633b6397a74412c2c3842454",
    "timm/vit_base_patch14_dinov2.lvd142m": "4685c99dabffe5affac90bd99dbffd25801ae58d",
    "timm/vit_large_patch14_dinov2.lvd142m": "4741e1cafbf45415e77074bb0cb42dba76c8684a",
    "timm/vit_small_patch16_dinov3.lvd1689m": "3bf4720a82ec2066db88137180ff1f83a675cef0",
    "timm/vit_base_patch16_dinov3.lvd1689m": "c6a5fb7d12bbd3cf3b0079253141c3332aaed7da",
    "timm/vit_large_patch16_dinov3.lvd1689m": "30c1109559f65dea34316b0d4842d35c5771fe11",
}

RECORDS: dict[str, EncoderRecord] = {record.name: replace(record, revision=_COMMITS.get(record.hub, "")) for record in _ALL}
