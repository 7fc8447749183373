"""How much is tried: a part of it in every test run, all of it by `make reliability`."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def everything() -> bool:
    return os.environ.get("PATHOVIT_RELIABILITY") == "full"
