"""OpenSlideSource: pixels of any slide. The one door to OpenSlide."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SlideOpenError, TileReadError, io_error
from pathovit.files import fails_now_and_then, note_retry, open_patiently
from pathovit.reasons import Code
from pathovit.slides.readers import CUT_OFF, without_path

OPENED_AGAIN = 12  # times: with 1 % of all reads failing, as few as four in ten attempts to open a file end well
READ_AGAIN = 2
LOOKED_AT = 4  # times at most, where what was found may be what a failed read left: until two looks agree
FAILING = "nput/output error"  # in what OpenSlide says of a drive
KEPT_BYTES = 64 * 2**20  # of decoded tiles: neighbours, and the next row of tiles, share them


def is_tiff(path: Path) -> bool:
    with open_patiently(path) as file:
        return file.read(2) in (b"II", b"MM")


class OpenSlideSource:
    """Pixels through OpenSlide. Its first read error is terminal for a handle, so the handle is replaced."""

    def __init__(self, path: Path) -> None:
        import openslide

        self.path = path
        self._lock = threading.Lock()
        self._opened = 0
        self._cache = openslide.OpenSlideCache(KEPT_BYTES)
        self._handle = self._open()
        self.properties = dict(self._handle.properties)
        seen: dict[str, str] = {}
        while self._is_doubtful() and self.properties != seen and self._opened < LOOKED_AT:
            seen = self.properties
            self._handle.close()
            self._handle = self._open()
            self.properties = dict(self._handle.properties)
        self.sizes = list(self._handle.level_dimensions)
        self._downsamples = self._handle.level_downsamples

    def _is_doubtful(self) -> bool:
        """Whether it is as if a read had failed, which leaves no other trace: a pixel size is lost, or a vendor not recognised."""
        return "openslide.mpp-x" not in self.properties or self.properties.get("openslide.vendor") == "generic-tiff"

    def _open(self) -> Any:
        """A handle; where OpenSlide fails it is asked again, for a read that failed looks like a file of another kind."""
        import openslide

        for attempt in range(OPENED_AGAIN):
            try:
                handle = openslide.OpenSlide(self.path)
            except (openslide.OpenSlideUnsupportedFormatError, openslide.OpenSlideError) as failed:
                error: Exception = failed
                if attempt == 0 and openslide.OpenSlide.detect_format(self.path) is None and not is_tiff(self.path):
                    break
                continue
            if attempt:
                note_retry()
            handle.set_cache(self._cache)
            self._opened += 1
            return handle
        why = without_path(error, self.path)
        failing = FAILING in why or fails_now_and_then(self.path)
        if failing:
            raise io_error(self.path, "Input/output error") from error
        if CUT_OFF.search(why):
            raise SlideOpenError(self.path, f"truncated ({why}). Copy it again from its source.", Code.TRUNCATED) from error
        code = Code.NOT_A_SLIDE if openslide.OpenSlide.detect_format(self.path) is None else Code.DAMAGED
        raise SlideOpenError(
            self.path, f"OpenSlide cannot open it ({why}). Check that it is a whole slide image.", code
        ) from error

    def interpolates(self, level: int, downsample: tuple[float, float]) -> bool:
        """Whether pixels of a level come out moved and softened: OpenSlide divides positions by its own mean downsample."""
        own = self._downsamples[level]
        drift = max(abs(true / own - 1) * side for true, side in zip(downsample, self.sizes[level], strict=True))
        return drift > 1 / 64 or any(true != round(true) for true in downsample)

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
        for attempt in itertools.count():
            alone = self._open()  # another thread's bad tile may have spoilt the shared handle: judge this one by itself
            try:
                found = np.asarray(alone.read_region(at, level, (width, height)))
                if attempt:
                    note_retry()
                return found
            except openslide.OpenSlideError as error:
                if FAILING in str(error):
                    if attempt == OPENED_AGAIN:
                        raise io_error(self.path, "Input/output error") from error
                elif attempt == READ_AGAIN:
                    raise TileReadError(self.path, f"tile at {at} of level {level} cannot be decoded ({error}).") from error
            finally:
                alone.close()
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        self._handle.close()
