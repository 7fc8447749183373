"""The same work on a GPU as on the cores: the same tiles, features, answers and models. Skipped where there is no GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command import pathovit
from made_cohort import write_cohort
from made_runs import folder_of
from numpy.typing import NDArray

from pathovit.encoders import load_encoder
from pathovit.encoders.encoder import Encoder, Pixels
from pathovit.model.slide_model import load_model
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.store import FeatureStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]


def test_a_run_on_the_gpu_finds_what_the_cores_find(slides: list[Path], tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        done = pathovit("run", slides[0], "--out", out, "--device", device, "--json")
        assert done.returncode == 0, done.stderr
        folder = folder_of(out, "one")
        stored = FeatureStore(OutFolder(out).slides()[0], slides[0]).read()
        found[device] = stored, json.loads((folder / "slide.json").read_text())
    (here, said_here), (there, said_there) = found["cpu"], found["cuda"]
    assert np.array_equal(here.xy, there.xy)
    assert np.array_equal(here.ok, there.ok)
    a, b = here.features[here.ok].astype(np.float32), there.features[there.ok].astype(np.float32)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.99
    assert cosine.mean() > 0.999
    assert said_here["prediction"]["answer"] == said_there["prediction"]["answer"]


def test_a_batch_that_the_gpu_does_not_hold_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("reference", device="cuda")
    whole = Encoder.launch

    def small_card(self: Encoder, tiles: Pixels) -> Callable[[], NDArray[np.float32]]:
        if len(tiles) > 96:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, tiles)

    monkeypatch.setattr(Encoder, "launch", small_card)
    assert encoder.batch_tiles == 64


def test_a_model_trained_on_the_gpu_says_the_same_on_the_cores(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path)
    said = {}
    for device in ("cpu", "cuda"):
        model = tmp_path / f"model-{device}"
        command = ["train", cohort / "labels.csv", "--features", cohort / "features", "--model", model, "--positive", "tumour"]
        done = pathovit(*command, "--device", device, "--epochs", 8, "--folds", 0)
        assert done.returncode == 0, done.stderr
        loaded = load_model(model)
        store = FeatureStore(OutFolder(cohort / "features").slides()[1], Path("slide-01.svs"))
        said[device] = float(loaded.predict(store.read()).probabilities[1])
    assert said["cpu"] == pytest.approx(said["cuda"], abs=0.1)  # two trainings, with other roundings
