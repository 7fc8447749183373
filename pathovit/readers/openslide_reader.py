"""OpenSlideSource: pixels of any slide. The one door to OpenSlide."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SlideOpenError, TileReadError
from pathovit.readers import without_path

KEPT_BYTES = 64 * 2**20  # of decoded tiles: neighbours, and the next row of tiles, share them


class OpenSlideSource:
    """Pixels through OpenSlide. Its first read error is terminal for a handle, so the handle is replaced."""

    def __init__(self, path: Path) -> None:
        import openslide

        self.path = path
        self._lock = threading.Lock()
        self._cache = openslide.OpenSlideCache(KEPT_BYTES)
        self._handle = self._open()
        self.sizes = list(self._handle.level_dimensions)
        self.properties = dict(self._handle.properties)
        self._downsamples = self._handle.level_downsamples

    def _open(self) -> Any:
        import openslide

        try:
            handle = openslide.OpenSlide(self.path)
            handle.set_cache(self._cache)
            return handle
        except (openslide.OpenSlideUnsupportedFormatError, openslide.OpenSlideError) as error:
            raise SlideOpenError(
                self.path, f"OpenSlide cannot open it ({without_path(error, self.path)}). Check that it is a whole slide image."
            ) from error

    def read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        import openslide

        # OpenSlide takes level-0 integers and divides by its own mean downsample (4.0007 for a true 4): rounding the
        # product back keeps the shift under an eighth of a pixel of this level, where x * 4 drifts by up to one.
        scale = self._downsamples[level]
        at = (round(x_level * scale), round(y_level * scale))
        handle = self._handle
        try:
            return np.asarray(handle.read_region(at, level, (width, height)))
        except openslide.OpenSlideError:
            with self._lock:
                if self._handle is handle:
                    self._handle = self._open()
        alone = self._open()  # another thread's bad tile may have spoilt the shared handle: judge this one by itself
        try:
            return np.asarray(alone.read_region(at, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise TileReadError(self.path, f"tile at {at} of level {level} cannot be decoded ({error}).") from error
        finally:
            alone.close()

    def close(self) -> None:
        self._handle.close()
