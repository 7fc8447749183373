import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pathovit.encoders import RECORDS, Encoder, known_record, load_encoder, make_model, openvino_engine
from pathovit.encoders.weights import BUNDLED, convert_weights
from pathovit.errors import SettingsError, WeightsError
from pathovit.files import file_sha256
from pathovit.settings import EmbedSettings

SMALL = [
    "reference",
    "swin_tiny",
    "vit_small",
    "deit_small",
    "dinov2_small",
    "dinov2_small_reg",
    "resnet50",
    "efficientnet_b0",
    "convnext_tiny",
]
LARGE = ["swinv2_tiny", "vit_base", "vit_base_patch32", "vit_small_hybrid", "h0_mini"]


def tiles(side: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_every_encoder_keeps_the_contract(name: str) -> None:
    record = RECORDS[name]
    encoder = load_encoder(name, None if name == "reference" else "random", device="cpu", precision="fp32")
    batch = tiles(record.tile_px)
    features = encoder.embed(batch)
    assert features.shape == (3, record.dim)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.allclose(encoder.embed(batch[:1]), features[:1], atol=1e-4)  # a tile's feature does not depend on its neighbours
    assert not np.array_equal(features[0], features[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_every_large_encoder_keeps_the_contract(name: str) -> None:
    test_every_encoder_keeps_the_contract(name)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_bf16_features_stay_close_to_fp32() -> None:
    exact, half = (load_encoder("reference", device="cpu", precision=p).embed(tiles(96, 16)) for p in ("fp32", "bf16"))
    assert cosine(exact, half).min() > 0.99


@pytest.mark.parametrize(("precision", "closest"), [("fp32", 0.99999), ("bf16", 0.999), ("int8", 0.99)])
@pytest.mark.parametrize("name", ["vit_small", "swin_tiny", "convnext_tiny", "resnet50", "reference"])
def test_openvino_gives_the_features_of_torch(name: str, precision: str, closest: float) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    weights = None if name == "reference" else "random"
    batch = tiles(RECORDS[name].tile_px, 5)
    exact = load_encoder(name, weights, device="cpu", precision="fp32").embed(batch)
    other = load_encoder(name, weights, precision=precision, engine="openvino")
    found = other.embed(batch)
    assert (found.dtype, found.shape) == (np.float32, exact.shape)
    assert cosine(exact, found).min() > closest
    assert np.allclose(other.embed(batch[:2]), found[:2], atol=1e-2 * np.abs(found).max())
    assert other.recipe()["engine"] == "openvino"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["reference", "resnet50"])
def test_features_do_not_depend_on_how_many_streams_run_side_by_side(name: str, precision: str) -> None:
    """With convolutions in 8 bits and two streams OpenVINO 2026.4 made numbers that had nothing to do with the tile."""
    pytest.importorskip("openvino")
    weights = None if name == "reference" else "random"
    batch = tiles(load_encoder(name, weights).tile_px, 4)
    one, two = (load_encoder(name, weights, "cpu", precision, engine="openvino", cores=cores) for cores in (1, 2))
    assert (one.lanes, two.lanes) == (1, 2)
    assert cosine(one.embed(batch), two.embed(batch)).min() > 0.9999


def test_an_engine_that_makes_other_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    plain = load_encoder("reference", device="cpu", precision="fp32")
    wrong = replace(plain, compiled=lambda tiles: np.random.default_rng(1).normal(size=(len(tiles), 256)).astype(np.float32))
    with pytest.raises(
        SettingsError, match=r"it makes other features of 'reference' .* than torch does \(cosine -?0\.\d+\). Use --engine torch"
    ):
        openvino_engine._require_alike(plain, wrong)
    with pytest.raises(SettingsError, match="cosine nan"):
        openvino_engine._require_alike(
            plain, replace(plain, compiled=lambda tiles: np.full((len(tiles), 256), np.nan, np.float32))
        )


def test_int8_needs_openvino() -> None:
    with pytest.raises(SettingsError, match="int8 needs embed.engine openvino"):
        EmbedSettings(precision="int8")


def test_a_batch_is_begun_before_the_last_one_is_fetched() -> None:
    encoder = load_encoder("reference", device="cpu", precision="fp32")
    first, second = tiles(96, 3), tiles(96, 6)[3:]
    waiting = [encoder.launch(first), encoder.launch(second)]
    assert np.array_equal(waiting[1](), encoder.embed(second))
    assert np.array_equal(waiting[0](), encoder.embed(first))


def test_the_batch_is_halved_until_the_gpu_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def embed(self: Encoder, tiles: Any) -> Any:
        tried.append(len(tiles))
        if len(tiles) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = load_encoder("reference", device="cpu")
    assert encoder.batch_tiles == 32
    monkeypatch.setattr(Encoder, "embed", embed)
    monkeypatch.setattr(Encoder, "buffer", lambda self, tiles: np.empty((tiles, 96, 96, 3), np.uint8))
    assert replace(encoder, device=SimpleNamespace(type="cuda")).batch_tiles == 64
    assert tried == [256, 128, 64]


def test_a_tile_of_another_size_is_resized_unless_the_name_says_resample(tmp_path: Path) -> None:
    at_224 = load_encoder("vit_small", "random", precision="fp32")
    save_file(at_224.model.state_dict(), tmp_path / "w.safetensors")
    resized = load_encoder("vit_small", str(tmp_path / "w.safetensors"), tile_px=256, precision="fp32")
    batch = tiles(256, 2)
    images = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
    smaller = torch.nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    assert np.abs(resized.embed(batch) - at_224.embed(smaller.round().clamp(0, 255).to(torch.uint8).numpy())).max() < 0.05
    resampled = load_encoder("vit_small:resample", str(tmp_path / "w.safetensors"), tile_px=256, precision="fp32")
    assert (resized.model_px, resampled.model_px) == (224, 256)
    assert resampled.model.pos_embed.shape[1] == 1 + 16 * 16
    assert resampled.embed(batch).shape == (2, 384)
    assert resized.recipe() != resampled.recipe()


def test_a_cropped_tile_is_seen_in_its_middle() -> None:
    """As GigaPath's own preparation does: 256 px are cropped to 224, others are resized to 256 first."""
    cropped, plain = (load_encoder(name, "random", tile_px=side) for name, side in (("vit_small:crop", 256), ("vit_small", 224)))
    batch = tiles(256, 2)
    assert np.array_equal(cropped.embed(batch), plain.embed(np.ascontiguousarray(batch[:, 16:240, 16:240])))
    larger = load_encoder("vit_small:crop", "random", tile_px=512)
    small = Image.fromarray(tiles(8, 1)[0])
    at_256, at_512 = (np.array(small.resize((side, side), Image.Resampling.BICUBIC))[None] for side in (256, 512))
    assert cosine(larger.embed(at_512), cropped.embed(at_256)).min() > 0.999
    assert RECORDS["prov_gigapath"].input == "crop"


def test_tiles_that_do_not_fit_the_patches_are_resized() -> None:
    encoder = load_encoder("dinov2_small:resample", "random", tile_px=256)  # 256 is no multiple of 14
    assert encoder.model_px == 224
    assert encoder.embed(tiles(256, 1)).shape == (1, 384)


def test_any_timm_name_works() -> None:
    record = known_record("resnet18")
    assert (record.dim, record.tile_px) == (512, 224)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"Unknown encoder 'vit_smal'. Did you mean vit_small"):
        known_record("vit_smal")


def test_without_weights_the_message_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("PATHOVIT_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"pathovit encoders fetch vit_small, or give a file with --weights"):
        load_encoder("vit_small")


def test_weights_fetched_once_are_found_in_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder laid out as the hub's cache stands in for the hub."""
    encoder = load_encoder("vit_small", "random", precision="fp32")
    repository = tmp_path / "models--timm--vit_small_patch16_224.augreg_in21k_ft_in1k"
    (repository / "refs").mkdir(parents=True)
    commit = encoder.record.revision  # the one that is known: another one is never taken for it
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    head = {"head.weight": torch.zeros(1000, 384), "head.bias": torch.zeros(1000)}  # a classifier, to be left out
    save_file({**encoder.model.state_dict(), **head}, snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = load_encoder("vit_small", precision="fp32")
    assert np.array_equal(found.embed(tiles(224)), encoder.embed(tiles(224)))
    assert found.weights_sha256 == file_sha256(snapshot / "model.safetensors")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file(load_encoder("resnet50", "random").model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w.safetensors: does not fit this encoder"):
        load_encoder("vit_small", str(tmp_path / "w.safetensors"))


def test_pickled_weights_are_refused_unopened(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"pathovit encoders convert .*w.pt .*w.safetensors"):
        load_encoder("vit_small", str(tmp_path / "w.pt"))


def test_a_pickle_in_disguise_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="not a valid safetensors file"):
        load_encoder("vit_small", str(tmp_path / "w.safetensors"))


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    state = load_file(BUNDLED / "reference.safetensors")
    name = next(key for key, tensor in state.items() if tensor.is_floating_point())
    state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="NaN or infinite"):
        load_encoder("reference", str(tmp_path / "w.safetensors"))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("canary.txt"), "exploded")  # type: ignore[return-value]


def test_convert_strips_nests_and_prefixes(tmp_path: Path) -> None:
    torch.save(
        {"epoch": 3, "teacher": {"module.backbone.a.weight": torch.ones(2), "module.backbone.b": torch.zeros(1)}},
        tmp_path / "w.pth",
    )
    assert convert_weights(tmp_path / "w.pth", tmp_path / "w.safetensors") == 2
    assert sorted(load_file(tmp_path / "w.safetensors")) == ["a.weight", "b"]


def test_convert_leaves_what_was_trained_beside_the_backbone(tmp_path: Path) -> None:
    named = {name: torch.ones(1) for name in ("backbone.a", "backbone.b", "head.c")}
    torch.save({"teacher": named}, tmp_path / "dino.pth")
    torch.save({"model": {name: torch.ones(1) for name in ("a", "b", "decoder_c")}}, tmp_path / "mae.pth")
    for name in ("dino", "mae"):
        assert convert_weights(tmp_path / f"{name}.pth", tmp_path / "w.safetensors") == 2
        assert set(load_file(tmp_path / "w.safetensors")) == {"a", "b"}


def test_convert_tells_a_page_from_a_pickle_and_keeps_its_source(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("<html>Log in</html>")
    with pytest.raises(WeightsError, match="it is no file of tensors"):
        convert_weights(tmp_path / "w.pt", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="has to be called so. Use w.safetensors"):
        convert_weights(tmp_path / "w.pt", tmp_path / "w.pt")


def test_convert_refuses_a_file_that_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w.pt: it holds more than tensors and is refused"):
        convert_weights(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert not (tmp_path / "canary.txt").exists()


def test_the_bundled_weights_are_small_and_the_card_knows_them() -> None:
    models = BUNDLED.parents[1] / "model" / "bundled" / "reference"
    card = json.loads((models / "model.json").read_text())
    assert card["encoder"]["weights_sha256"] == file_sha256(BUNDLED / "reference.safetensors")
    assert (BUNDLED / "reference.safetensors").stat().st_size + (models / "model.safetensors").stat().st_size < 20e6
    assert sum(p.numel() for p in make_model(RECORDS["reference"], 96).parameters()) <= 8_000_000
