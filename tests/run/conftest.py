"""Three made slides and a finished run on them, shared by the tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from command import pathovit
from made_runs import HOSTILE


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory, maker: ModuleType) -> list[Path]:
    """Three small made slides, one of them benign and with a name that hurts."""
    folder = tmp_path_factory.mktemp("slides")
    made = []
    for name, seed, share in (("one", 1, 0.3), ("two", 2, 0.15), ("three", 3, 0.0)):
        made.append(maker.make_slide(folder, maker.SampleSpec(name=name, seed=seed, size=(3000, 2600), tumour_fraction=share)))
    hostile = made[2].rename(folder / f"{HOSTILE}.svs")
    return [made[0], made[1], hostile]


@pytest.fixture(scope="session")
def finished(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    done = pathovit("run", *slides, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert all(slide["stage"] == "done" for slide in json.loads(done.stdout)["slides"])
    return out
