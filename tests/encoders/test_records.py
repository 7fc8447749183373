"""The table of encoders: every record builds, takes the weights of the plain architecture, and sees tiles of two sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from pathovit.encoders import RECORDS, EncoderRecord, known_record, load_encoder, make_model, pool_tokens
from pathovit.encoders.adapt import load_strictly
from pathovit.encoders.build import _resolve
from pathovit.encoders.names import with_weights
from pathovit.encoders.pool import pooled
from pathovit.encoders.records import _COMMITS
from pathovit.errors import SettingsError, WeightsError

OF_TIMM = [name for name, record in RECORDS.items() if not record.arch.startswith("pathovit-")]
OF_SIZE = ("img_size", "global_pool", "fc_norm")  # arguments that are ours; others say what was published


def on_meta(record: EncoderRecord, side: int) -> Any:
    with torch.device("meta"):  # shapes only: giants cost nothing
        return make_model(record, side).eval()


def dim_of(model: Any, side: int, pool: str) -> int:
    with torch.device("meta"):
        return int(pool_tokens(model, torch.empty(1, 3, side, side), pool).shape[-1])


def test_there_are_as_many_as_promised() -> None:
    assert len(RECORDS) >= 55


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_builds_what_it_describes_for_tiles_of_two_sizes(name: str) -> None:
    record = RECORDS[name]
    model = on_meta(record, record.tile_px)
    assert dim_of(model, record.tile_px, record.pool) == record.dim
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == pytest.approx(
        record.millions, abs=0.05 + 1e-4 * record.millions
    )
    other = record.tile_px + 2 * record.multiple_px
    assert dim_of(on_meta(record.variant("resample"), other), other, record.pool) == record.dim
    if record.has_tokens:
        for pool in ("cls", "mean", "cls_mean"):
            found = record.variant(pool)
            assert dim_of(model, record.tile_px, pool) == found.dim


@pytest.mark.parametrize("name", OF_TIMM)
def test_every_record_takes_the_weights_of_the_plain_architecture(name: str) -> None:
    """With its classifier, and positions for the size that the architecture has by itself."""
    record = RECORDS[name]
    published = {key: _resolve(value) for key, value in record.args.items() if key not in OF_SIZE}
    with torch.device("meta"):
        plain = timm.create_model(record.arch, pretrained=False, **published)
        load_strictly(make_model(record, record.tile_px), dict(plain.state_dict()), "plain")


@pytest.mark.parametrize("name", [name for name in OF_TIMM if RECORDS[name].hub.startswith("timm/")])
def test_records_of_timms_weights_say_what_timm_says(name: str) -> None:
    record = RECORDS[name]
    config = timm.get_pretrained_cfg(record.hub.removeprefix("timm/"))
    assert config is not None
    assert (config.hf_hub_id, tuple(config.mean), tuple(config.std)) == (record.hub, record.mean, record.std)
    assert config.license.lower().replace("-license", "") == record.licence.lower().removesuffix(" license")
    assert record.tile_px == config.input_size[-1] or "dinov2" in name


# What was wrong once, row by row of what was found.


def test_mae_takes_its_own_weights_and_pools_what_it_norms() -> None:
    with torch.device("meta"):
        load_strictly(make_model(RECORDS["mae_base"], 224), dict(timm.create_model("vit_base_patch16_224").state_dict()), "mae")


@pytest.mark.parametrize("name", ["uni", "uni2_h", "virchow", "virchow2", "prov_gigapath"])
def test_what_is_published_as_bin_alone_is_asked_for_so(name: str) -> None:
    assert RECORDS[name].files == ("pytorch_model.bin",)


def test_gpfm_can_be_fetched_and_licences_have_their_names() -> None:
    assert RECORDS["gpfm"].files == ("GPFM.pth",)
    assert RECORDS["gpfm"].licence == "CC-BY-NC-ND-4.0"
    assert all("Kaiko" in RECORDS[name].licence for name in RECORDS if name.startswith("kaiko"))
    assert "Apache-2.0" in RECORDS["prov_gigapath"].licence
    assert not [name for name, record in RECORDS.items() if record.licence in ("research only", "non-commercial")]


def test_variants_are_in_the_name_and_the_recipe() -> None:
    both = known_record("h0_mini:cls_mean")
    assert (both.name, both.dim, both.base) == ("h0_mini:cls_mean", 1536, "h0_mini")
    assert known_record("h0_mini:cls").dim == 768
    assert known_record("midnight").dim == 3072
    assert known_record("virchow:cls").dim == 1280
    assert known_record("uni:mean:crop").input == "crop"
    assert known_record("vit_tiny_patch16_224:cls_mean").dim == 384
    encoder = load_encoder("vit_small:cls_mean", "random")
    assert (encoder.recipe()["encoder"], encoder.recipe()["pool"], encoder.dim) == ("vit_small:cls_mean", "cls_mean", 768)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50:cls", "resnet50 has no CLS token"),
        ("swin_tiny:mean", "has no CLS token"),
        ("reference:cls", "has no CLS token"),
        ("uni:max", "there is no 'max' of it, only cls, mean, cls_mean, native, crop, resample"),
        ("unni:cls", "Did you mean uni"),
    ],
)
def test_a_variant_that_there_is_not_is_refused(name: str, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        known_record(name)


@pytest.mark.parametrize("name", ["deit_small", "swin_tiny", "dinov3_small", "hiera_tiny"])
@pytest.mark.parametrize("side", [256, 448])
def test_other_sizes_are_seen_or_resized_and_never_an_assertion_of_timm(name: str, side: int) -> None:
    for variant in (name, f"{name}:resample"):
        record = known_record(variant)
        with torch.device("meta"):
            model_px = side if variant.endswith("resample") else record.tile_px
            assert dim_of(on_meta(record, model_px), model_px, record.pool) == record.dim


def test_a_size_that_a_network_cannot_see_is_refused_by_us() -> None:
    record = known_record("crossvit_9_240:resample")
    with pytest.raises(WeightsError, match=r"crossvit_9_240 cannot see tiles of 272 px as they are .* Without :resample"):
        make_model(record, 272)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pool": "max"}, "pool is 'max'"),
        ({"input": "pad"}, "input is 'pad'"),
        ({"dim": 0}, "dim is 0"),
        ({"mpp": 0.0}, "mpp is 0"),
        ({"mpps": (1.0, 2.0)}, "mpp 0.5 is none of mpps"),
        ({"std": (0.0, 0.5, 0.5)}, "std is no colour"),
        ({"mean": (123.0, 117.0, 104.0)}, "mean is no colour"),
        ({"multiple_px": 100}, "tile_px 224 is no multiple of 100"),
        ({"hub": "", "gated": True}, "it is gated, and on no hub"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(said)):
        replace(RECORDS["vit_small"], **changed)


# Networks of our own, in the layout in which their weights are published.


def published(name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file of that network, under the names that they have there."""
    torch.manual_seed(0)
    state = make_model(RECORDS[name], RECORDS[name].tile_px).state_dict()
    for key, tensor in state.items():
        if name == "keep":
            yield re.sub(r"(ls[12])\.gamma", r"\1.weight", key), tensor
        elif name == "ctranspath":
            parts = key.removeprefix("swin.").split(".")
            if parts[0] == "layers" and parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
            yield ".".join(parts), tensor
        elif key == "trunk.pos_embed":  # for 224 px, as they were trained at first
            yield key, tensor[:, : 1 + 14 * 14]
        else:
            yield key, tensor
    if name == "keep":
        yield "text.embeddings.word_embeddings.weight", torch.zeros(3)
        yield "logit_scale", torch.zeros(1)
    if name == "ctranspath":
        yield "layers.0.blocks.1.attn_mask", torch.zeros(3)


@pytest.mark.parametrize("name", ["keep", "conch_v15", "ctranspath"])
def test_networks_of_our_own_take_the_published_layout(name: str) -> None:
    network = make_model(RECORDS[name], RECORDS[name].tile_px)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    load_strictly(network, dict(published(name)), name)
    changed = [
        key for key, tensor in network.state_dict().items() if tensor.is_floating_point() and not torch.equal(tensor, before[key])
    ]
    assert len(changed) > 60
    with torch.inference_mode():
        found = network.eval()(torch.randn(1, 3, RECORDS[name].tile_px, RECORDS[name].tile_px))
    assert found.shape == (1, 768)
    if name == "keep":
        assert found.norm().item() == pytest.approx(1, abs=1e-5)


def test_a_file_that_lacks_a_part_of_it_is_refused(tmp_path: Any) -> None:
    tensors = {key: tensor.contiguous() for key, tensor in published("ctranspath") if "downsample" not in key}
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=r"c.safetensors: does not fit this encoder: it misses"):
        load_encoder("ctranspath", str(tmp_path / "c.safetensors"))


def test_commits_that_are_pinned_are_commits_of_repositories_of_the_table() -> None:
    hubs = {record.hub for record in RECORDS.values()}
    assert set(_COMMITS) <= hubs
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in _COMMITS.values())
    assert RECORDS["uni2_h"].revision == _COMMITS["MahmoodLab/UNI2-h"]
    assert len(_COMMITS) == len(set(_COMMITS.values()))


@pytest.mark.parametrize("name", [name for name in RECORDS if name.startswith("dinov3_small")])
def test_dinov3_says_its_cls_token(name: str) -> None:
    """timm's own way is the mean of all tokens."""
    record = RECORDS[name]
    model = make_model(record, 64).eval()
    with torch.inference_mode():
        tokens = model.forward_features(torch.rand(1, 3, 64, 64))
        assert torch.equal(pooled(model, tokens, record.pool), tokens[:, 0])


def test_a_variant_says_one_thing_of_each_kind_and_has_one_name() -> None:
    uni = RECORDS["uni"]
    assert uni.variant("crop:cls_mean").name == uni.variant("cls_mean:crop").name == "uni:cls_mean:crop"
    for words in ("mean:cls", "crop:native"):
        with pytest.raises(WeightsError, match="says two things of one kind"):
            uni.variant(words)


@pytest.mark.parametrize(
    "asked", [{"precision": "int8"}, {"precision": "fp16"}, {"engine": "onnx"}, {"engine": "openvino", "device": "cuda"}]
)
def test_what_cannot_be_had_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        load_encoder("reference", **asked)


def test_an_encoder_and_its_weights_are_told_apart_in_folders_with_signs(tmp_path: Path) -> None:
    assert with_weights("uni") == ("uni", None)
    assert with_weights("uni=/a=b/w.safetensors") == ("uni", "/a=b/w.safetensors")
    folder = tmp_path / "lr=0.1" / "enc"
    folder.mkdir(parents=True)
    (folder / "encoder.json").touch()
    assert with_weights(str(folder)) == (str(folder), None)
    assert with_weights(f"{folder}=random") == (str(folder), "random")
