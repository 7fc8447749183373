"""Zarr's files on a drive that fails now and then: single reads and writes are tried again. Import it where it is needed: Zarr takes its time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from zarr.storage import LocalStore

from pathovit.files import pause_after

T = TypeVar("T")


async def _tried_again(call: Callable[[], Awaitable[T]]) -> T:
    """As `files.tried_again`, where nothing may block."""
    for attempt in itertools.count():
        try:
            return await call()
        except OSError as error:
            pause_s = pause_after(error, attempt)
        await asyncio.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


class PatientFiles(LocalStore):
    """A folder of chunks."""

    async def get(self, *arguments: Any, **named: Any) -> Any:
        return await _tried_again(lambda: LocalStore.get(self, *arguments, **named))

    async def set(self, *arguments: Any, **named: Any) -> None:
        await _tried_again(lambda: LocalStore.set(self, *arguments, **named))

    async def set_if_not_exists(self, *arguments: Any, **named: Any) -> None:
        await _tried_again(lambda: LocalStore.set_if_not_exists(self, *arguments, **named))
