"""What is known of an encoder before it is loaded, and the bundled network in plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import Block
from torch import nn

from pathovit.encoders.check import remarks_on
from pathovit.encoders.load import load_encoder
from pathovit.encoders.reference import ReferenceNet
from pathovit.encoders.spec import spec_at_sight
from pathovit.encoders.weights import BUNDLED
from pathovit.machine import device_at_sight
from pathovit.settings import Settings


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize(
    ("name", "tile_px"), [("vit_small", None), ("vit_small:mean:resample", 128), ("vit_small:resample", 100)]
)
def test_what_is_told_at_sight_is_what_is_loaded(precision: str, engine: str, name: str, tile_px: int | None) -> None:
    """A finished batch is recognised by it, so it must never differ from what would be loaded."""
    settings = Settings()
    embed = replace(settings.embed, encoder=name, weights="random", precision=precision, engine=engine)
    settings = replace(
        settings, embed=embed, run=replace(settings.run, device="cpu"), tiles=replace(settings.tiles, tile_px=tile_px)
    )
    if engine == "openvino":
        pytest.importorskip("openvino")
    loaded = load_encoder(name, "random", "cpu", precision, tile_px, engine)
    assert spec_at_sight(settings, "random") == loaded.spec


def test_with_a_gpu_and_other_names_nothing_is_told_at_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings()
    monkeypatch.setattr("pathovit.machine._may_have_gpu", lambda: True)
    assert device_at_sight("auto") is None
    assert device_at_sight("cpu") == "cpu"
    assert spec_at_sight(settings, "w") is None
    named = replace(settings, embed=replace(settings.embed, encoder="resnet18"), run=replace(settings.run, device="cpu"))
    assert spec_at_sight(named, "w") is None


class OfTimm(nn.Module):
    """The bundled network as it was trained: of timm's parts."""

    def __init__(self) -> None:
        super().__init__()
        backbone = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.stem = nn.Sequential(backbone.conv_stem, backbone.bn1)
        self.stages = backbone.blocks[:5]
        self.project = nn.Conv2d(112, 256, kernel_size=1)
        self.position = nn.Conv2d(256, 256, kernel_size=3, padding=1, groups=256)
        self.blocks = nn.ModuleList(Block(256, 4, mlp_ratio=4.0, qkv_bias=True, init_values=0.1) for _ in range(4))
        self.norm = nn.LayerNorm(256)
        self.out_norm = nn.LayerNorm(256, elementwise_affine=False)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        maps = self.project(self.stages(self.stem(tiles)))
        tokens = (maps + self.position(maps)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        found: torch.Tensor = self.out_norm(self.norm(tokens).mean(dim=1))
        return found


@pytest.mark.parametrize("side", [96, 128, 160])
def test_the_bundled_network_in_plain_torch_gives_the_bits_of_timms(side: int) -> None:
    weights, tiles = load_file(BUNDLED / "reference.safetensors"), torch.randn(4, side, side, 3).permute(0, 3, 1, 2)
    found = []
    for network in (OfTimm(), ReferenceNet()):
        network.load_state_dict(weights)
        with torch.inference_mode():
            found.append(network.eval()(tiles))
    assert torch.equal(*found)


def test_whole_branches_are_left_out_by_chance_in_training_alone() -> None:
    torch.manual_seed(0)
    network, tiles = ReferenceNet(drop_path=0.5), torch.randn(8, 3, 96, 96)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # so that chance alone makes a difference
    network.blocks.train()
    assert not torch.equal(network(tiles), network(tiles))
    network.eval()
    assert torch.equal(network(tiles), network(tiles))


@pytest.mark.parametrize(
    ("encoder", "tile_px", "mpp", "said"),
    [
        ("reference", None, None, []),
        ("uni", 256, 0.5, ["uni sees 224 px: tiles of 256 px are resized to that (uni:resample for as they are)"]),
        ("prov_gigapath", 256, 0.5, ["are cropped", "1,135 million parameters: about 9.1 GB of memory"]),
        ("uni:resample", 256, 0.5, []),
        ("uni", None, 1.0, ["trained at 0.5 um per pixel, and tiles of 1 are asked for"]),
        ("virchow2", None, 1.0, ["631 million parameters"]),  # it was trained at 1.0, too
    ],
)
def test_what_a_user_should_know_is_said(encoder: str, tile_px: int | None, mpp: float | None, said: list[str]) -> None:
    settings = Settings()
    settings = replace(
        settings, embed=replace(settings.embed, encoder=encoder), tiles=replace(settings.tiles, tile_px=tile_px, mpp=mpp)
    )
    found = remarks_on(settings)
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True)), found
