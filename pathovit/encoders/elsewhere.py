"""What other programs call encoders, with what is made of their tokens. TRIDENT finds features by that name; STAMP refuses others."""

from __future__ import annotations

OURS = "pathovit_encoder"  # attribute of what we export: our own name for it, with what is made of its tokens
IN_TRIDENT = {
    "uni": "uni_v1", "uni2_h": "uni_v2", "prov_gigapath": "gigapath", "h_optimus_0": "hoptimus0", "h_optimus_1": "hoptimus1",
    "h0_mini": "h0-mini", "open_midnight": "openmidnight", "midnight:cls": "midnight12k", "hibou_large": "hibou_l",
    "kaiko_small": "kaiko-vits16", "kaiko_small_patch8": "kaiko-vits8", "kaiko_base": "kaiko-vitb16", "kaiko_base_patch8": "kaiko-vitb8",
    "kaiko_large": "kaiko-vitl14", "lunit_small_patch8": "lunit-vits8",
    "resnet50": "resnet50_whole",  # theirs ends at the third block
}  # fmt: skip
IN_STAMP = {
    "uni2_h": "uni2", "prov_gigapath": "gigapath", "h_optimus_0": "h-optimus-0", "h_optimus_1": "h-optimus-1",
    "virchow": "virchow-full", "virchow:cls": "virchow", "virchow2": "virchow2-full", "virchow2:cls": "virchow2", "conch_v15": "conch1_5",
}  # fmt: skip
IN_LAZYSLIDE = {
    "uni2_h": "uni2", "prov_gigapath": "gigapath", "h_optimus_0": "h-optimus-0", "h_optimus_1": "h-optimus-1", "h0_mini:cls_mean": "h0-mini",
    "conch_v15": "conch_v1.5", "hibou_base": "hibou-b", "hibou_large": "hibou-l", "phikon_v2": "phikonv2", "open_midnight": "open-midnight",
    "pathorchestra": "path_orchestra", "lunit_small": "lunit-dino-s16", "lunit_small_patch8": "lunit-dino-s8",
    "lunit_resnet50_bt": "lunit-bt", "lunit_resnet50_mocov2": "lunit-mocov2", "lunit_resnet50_swav": "lunit-swav",
}  # fmt: skip


def our_name(theirs: str, known: dict[str, str]) -> str:
    """What we call an encoder that another program names; its own name, where we have none for it."""
    return {there: ours for ours, there in known.items()}.get(theirs, theirs)
