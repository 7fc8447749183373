"""A folder of results that may be written to, and somebody at its page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_reader import Client, client_of


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    return folder


@pytest.fixture
def client(out: Path) -> Iterator[Client]:
    found = client_of(out)
    found.enter()
    yield found
    found.review.close()
