"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import json
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: threads that wait for each other lose their turn
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import pathovit
from made_runs import HOSTILE
from made_slides import MeanColourEncoder, squares_picture, write_tiff

from pathovit.cli.maintenance import slide_maker

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the real slides are not here (../shared/data)")
    return SHARED


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """The package sample_data."""
    return slide_maker()


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "squares.tif", squares_picture())


@pytest.fixture
def make_squares(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "squares.tif", **options: Any) -> Path:
        return write_tiff(tmp_path / name, squares_picture(), **options)

    return make


@pytest.fixture
def mean_colour() -> MeanColourEncoder:
    return MeanColourEncoder()


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


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 28 slides and labels.csv; see made_cohort.py."""
    from made_cohort import write_cohort

    return write_cohort(tmp_path_factory.mktemp("cohort"))


LONG_FILES = ("test_docs.py", "test_notebooks.py")
LONG_ROOMS = ("run", "bench", "encoders", "study")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rooms whose tests take long come first: of two processes none is left alone with one of them at the end."""
    place = {room: index for index, room in enumerate(LONG_ROOMS)}
    items.sort(key=lambda item: -1 if item.path.name in LONG_FILES else place.get(item.path.parent.name, len(place)))
