"""Weights from a hub on this machine: one that redirects, asks for logins, breaks off; into our cache, and on a stick."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command import PATHOVIT
from made_hub import COMMIT, Hub, only_hub
from safetensors.torch import save

from pathovit.encoders import RECORDS, EncoderRecord, load_encoder
from pathovit.encoders.cache import Origin, cache_folder, in_hub_cache, origin_in
from pathovit.encoders.fetch import fetch_weights
from pathovit.encoders.weights import find_weights
from pathovit.errors import WeightsError
from pathovit.files import file_sha256

TINY = replace(RECORDS["vit_small"], name="tiny", arch="vit_tiny_patch16_224", dim=192, millions=5.5, hub="me/tiny", revision="", licence="MIT", files=("model.safetensors", "pytorch_model.bin"))  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(timm.create_model("vit_tiny_patch16_224").state_dict())


def as_bin(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with only_hub(tmp_path, monkeypatch) as served:
        yield served


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_what_is_fetched_once_is_found_without_the_hub(hub: Hub, weights: dict[str, torch.Tensor], file: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    content = as_bin(weights) if file.endswith("bin") else save(weights)
    hub.files["me/tiny/" + file] = content
    path = fetch_weights(TINY)
    origin = origin_in(cache_folder(), "tiny")
    assert origin is not None
    assert (origin.hub, origin.file, origin.revision, origin.licence) == ("me/tiny", file, COMMIT, "MIT")
    assert origin.sha256 == file_sha256(path)
    asked = len(hub.asked)
    monkeypatch.setitem(RECORDS, "tiny", TINY)
    encoder = load_encoder("tiny", device="cpu", precision="fp32")
    assert encoder.weights_sha256 == origin.sha256
    mine = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    mine.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("head")})
    tile = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        expected = mine.eval()((torch.from_numpy(tile).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    assert np.allclose(encoder.embed(tile), expected.numpy(), atol=1e-5)
    assert fetch_weights(TINY) == path
    assert len(hub.asked) == asked
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="was changed since it was put there"):
        load_encoder("tiny", device="cpu")


def test_what_is_damaged_in_the_cache_is_fetched_again(hub: Hub, weights: dict[str, torch.Tensor]) -> None:
    hub.files["me/tiny/model.safetensors"] = save(weights)
    path = fetch_weights(TINY)
    whole = path.read_bytes()
    path.with_suffix(".json").write_text("{")
    assert fetch_weights(TINY).read_bytes() == whole
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # in place: the hub's own cache may hold the same file
    assert fetch_weights(TINY).read_bytes() == whole


def test_a_transfer_that_breaks_off_goes_on(hub: Hub, weights: dict[str, torch.Tensor]) -> None:
    hub.files["me/tiny/model.safetensors"] = save(weights)
    hub.breaks_off = 2
    assert fetch_weights(TINY).is_file()
    assert any("bytes=" in line for line in hub.asked)


class Bomb:
    def __reduce__(self) -> Any:
        return Path.write_text, (Path("canary.txt"), "exploded")


def failing(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: dict[str, torch.Tensor]) -> dict[str, tuple[EncoderRecord, str]]:  # fmt: skip
    """Every way to fail: how the record differs, and what must be said."""
    good = save(weights)
    hub.files |= {
        "me/tiny/model.safetensors": good,
        "me/code/pytorch_model.bin": as_bin({"state_dict": Bomb()}),
        "me/none/readme.md": b"",
    }
    hub.files |= {"me/words/pytorch_model.bin": as_bin({"epoch": 3}), "me/torn/model.safetensors": good[:1000]}
    hub.files["me/nan/model.safetensors"] = save(
        {name: torch.full_like(tensor, float("nan")) for name, tensor in weights.items()}
    )
    return {
        "gated": (TINY, "it asks for a login. Accept its licence (MIT) at https://huggingface.co/me/tiny"),
        "not granted": (TINY, "your login may not have it yet"),
        "no repository": (
            replace(TINY, hub="me/nowhere"),
            "there is no such repository, or it is not shown without a login (401)",
        ),
        "no revision": (replace(TINY, revision="d" * 40), "its revision dddddddddddd, which is pinned, is gone"),
        "no file": (replace(TINY, hub="me/none"), "there is no model.safetensors and no pytorch_model.bin in it"),
        "forbidden": (TINY, "the hub refuses it (403)"),
        "too many": (TINY, "too much was asked of it (429)"),
        "fault": (TINY, "the hub has a fault of its own (500)"),
        "breaks off": (TINY, "the transfer broke off"),
        "asked offline": (TINY, "HF_HUB_OFFLINE is set"),
        "unreachable": (TINY, "cannot be reached"),
        "code": (replace(TINY, hub="me/code"), "holds more than tensors and is refused"),
        "no tensors": (replace(TINY, hub="me/words"), "no tensors found in it"),
        "torn": (replace(TINY, hub="me/torn"), "not a valid safetensors file"),
        "nan": (replace(TINY, hub="me/nan"), "NaN or infinite"),
        "pinned": (replace(TINY, sha256="0" * 64), "pinned is 000000000000"),
        "no hub": (replace(TINY, hub=""), "is on no hub: there is nothing to fetch"),
    }


CASES = [
    "gated", "not granted", "no repository", "no revision", "no file", "forbidden", "too many", "fault", "breaks off", "asked offline", "unreachable",
    "code", "no tensors", "torn", "nan", "pinned", "no hub",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_failure_has_a_sentence_of_its_own(hub: Hub, weights: dict[str, torch.Tensor], case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    cases = failing(hub, monkeypatch, tmp_path, weights)
    assert list(cases) == CASES
    record, said = cases[case]
    monkeypatch.chdir(tmp_path)
    if case in ("gated", "not granted"):
        hub.gated = {"me/tiny"}
    if case == "not granted":
        monkeypatch.setenv("HF_TOKEN", "other")
    hub.status = {"forbidden": 403, "too many": 429, "fault": 500}.get(case, 0)
    hub.breaks_off = 99 if case == "breaks off" else 0
    if case == "asked offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if case == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError) as raised:
        fetch_weights(record)
    assert said in str(raised.value)
    assert "Traceback" not in str(raised.value)
    others = [words for other, (_, words) in cases.items() if other != case]
    assert not any(words in str(raised.value) for words in others)
    assert not (tmp_path / "canary.txt").exists()
    assert not list(cache_folder().glob("*")) if cache_folder().exists() else True  # nothing is left


def test_what_another_program_fetched_is_taken_over_without_the_hub(hub: Hub, weights: dict[str, torch.Tensor]) -> None:
    from huggingface_hub import hf_hub_download

    hub.files["me/tiny/pytorch_model.bin"] = as_bin(weights)
    hf_hub_download("me/tiny", "pytorch_model.bin", endpoint=hub.url)
    hub.status = 500
    with pytest.raises(WeightsError, match="Another program has fetched them"):
        find_weights(TINY, None)
    assert find_weights(TINY, None) if fetch_weights(TINY) else False


def test_a_stick_carries_encoders_and_notices_what_was_changed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    stick, clinic = tmp_path / "stick", tmp_path / "clinic" / "encoders"
    home = tmp_path / "home" / "encoders"
    home.mkdir(parents=True)
    for name in ("vit_small", "dino_small"):
        made = home / f"{name}.safetensors"
        made.write_bytes(save({"a": torch.ones(3)}))
        about = Origin(name, f"me/{name}", "model.safetensors", COMMIT, "", file_sha256(made), "MIT")
        (home / f"{name}.json").write_text(json.dumps(about.__dict__))
    out = encoders("fetch", "vit_small", "dino_small", "--to", stick, cache=tmp_path / "home")
    assert out.returncode == 0, out.stderr
    done = encoders("fetch", "--from", stick, cache=tmp_path / "clinic")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in clinic.glob("*.safetensors")) == ["dino_small.safetensors", "vit_small.safetensors"]
    content = bytearray((stick / "vit_small.safetensors").read_bytes())
    content[-1] ^= 1
    (stick / "vit_small.safetensors").write_bytes(content)
    for given, said in (
        (("vit_small", "--from", stick), "it is not what was fetched"),
        (("uni", "--from", stick), "there are no weights of 'uni' in it. There are: dino_small, vit_small"),
        (("--from", tmp_path), "there are no weights in it"),
        (("vit_small", "--from", stick, "--to", stick), "do not go together"),
        ((), "Say which encoders"),
    ):
        done = encoders("fetch", *given, cache=tmp_path / "third")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    assert not list((tmp_path / "third").rglob("*.safetensors"))


def test_a_stick_writes_under_the_names_that_were_asked_for_alone(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    made = stick / "uni.safetensors"
    made.write_bytes(save({"a": torch.ones(3)}))
    about = Origin("../../evil", "me/uni", "model.safetensors", COMMIT, "", file_sha256(made), "MIT")
    (stick / "uni.json").write_text(json.dumps(about.__dict__))
    done = encoders("fetch", "uni", "--from", stick, cache=tmp_path / "deep" / "clinic")
    assert done.returncode == 2
    assert "it is damaged (it is of '../../evil')" in done.stderr
    assert not list(tmp_path.rglob("evil*"))


def encoders(*given: object, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATHOVIT_CACHE": str(cache)}
    return subprocess.run([*PATHOVIT, "encoders", *map(str, given)], capture_output=True, text=True, env=environment, timeout=120)


def test_another_commit_that_is_here_already_serves_where_the_pinned_one_cannot_be_had(
    hub: Hub, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    hub.files["me/tiny/pytorch_model.bin"] = as_bin(weights)
    hf_hub_download("me/tiny", "pytorch_model.bin", endpoint=hub.url)
    asked = len(hub.asked)
    pinned = replace(TINY, revision="d" * 40)
    assert in_hub_cache(pinned) is None, "it is never taken for the pinned one"
    found = in_hub_cache(pinned, any_commit=True)
    assert found is not None
    assert found.parent.name == COMMIT
    with pytest.raises(WeightsError):
        fetch_weights(pinned)
    assert len(hub.asked) > asked, "with a network the pinned one is asked for"
    asked = len(hub.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fetch_weights(pinned)
    assert len(hub.asked) == asked
    origin = origin_in(cache_folder(), "tiny")
    assert origin is not None
    assert origin.revision == COMMIT, "which one it was is known"
