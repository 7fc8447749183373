"""Zarr's files on a drive that fails now and then: single reads and writes are tried again. Import it where it is needed: Zarr takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from zarr.storage import LocalStore

from pathovit.errors import PASSING
from pathovit.files import FIRST_PAUSE_S, TRIES, note_retry

T = TypeVar("T")


async def _tried_again(call: Callable[[], Awaitable[T]]) -> T:
    """As `files.tried_again`."""
    for attempt in range(TRIES):
        try:
            return await call()
        except OSError as error:
            if error.errno not in PASSING or attempt == TRIES - 1:
                raise
        note_retry()
        await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
    raise AssertionError("every attempt returned or raised")


class PatientFiles(LocalStore):  # type: ignore[misc]  # a base of unknown type: mypy skips zarr (pyproject)
    """A folder of chunks."""

    async def get(self, *arguments: Any, **named: Any) -> Any:
        return await _tried_again(lambda: LocalStore.get(self, *arguments, **named))

    async def set(self, *arguments: Any, **named: Any) -> None:
        await _tried_again(lambda: LocalStore.set(self, *arguments, **named))

    async def set_if_not_exists(self, *arguments: Any, **named: Any) -> None:
        await _tried_again(lambda: LocalStore.set_if_not_exists(self, *arguments, **named))
