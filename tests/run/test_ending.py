"""The end of a cluster: a worker that is just being begun then, in place of one that died, is waited for and ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Nanny
from distributed.core import Status

from pathovit.run import dask_cluster


def ended(monkeypatch: pytest.MonkeyPatch, process: SimpleNamespace, status: Status, begun_after_s: float | None) -> list[str]:
    """Reasons with which Dask was asked to end the worker of a nanny."""
    said: list[str] = []

    async def kill(nanny: Any, timeout: float, reason: str) -> None:
        assert process.pid is not None, "can only join a started process"  # as Dask has it
        said.append(reason)

    async def close() -> None:
        running = asyncio.Event()
        running.set()
        cls = dask_cluster._watching_nanny()
        nanny = cls.__new__(cls)
        nanny.process = SimpleNamespace(status=status, running=running, process=process)
        if begun_after_s is not None:
            asyncio.get_running_loop().call_later(begun_after_s, setattr, process, "pid", 77)
        await nanny.kill(reason="the end")

    monkeypatch.setattr(Nanny, "kill", kill)
    monkeypatch.setattr(dask_cluster, "BEGIN_S", 0.5)
    asyncio.run(close())
    return said


@pytest.mark.parametrize("status", [Status.starting, Status.failed])
def test_one_that_is_being_begun_is_ended_when_it_is_there(monkeypatch: pytest.MonkeyPatch, status: Status) -> None:
    assert ended(monkeypatch, SimpleNamespace(pid=None), status, 0.1) == ["the end"]


def test_one_that_never_comes_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, SimpleNamespace(pid=None), Status.failed, None) == []


def test_one_that_is_there_is_ended_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, SimpleNamespace(pid=3), Status.running, None) == ["the end"]
