"""Every exception of pathovit. A message says what is wrong, in which file, and what to do.

PathovitError
├── SettingsError        an option, a settings file or a manifest is wrong                     exit 2
│   └── WeightsError     weights that are missing, refused, or do not fit the encoder          exit 2
├── NoSlidesError        nothing to do: no slide file was found                                exit 4
├── OutputInUseError     another run is writing to this folder                                 exit 5
├── StorageError         the output cannot be written (full, read-only, faulty)                exit 6
├── InternalError        a fault of pathovit itself, at one slide; the others go on            exit 1
└── SlideError           one slide cannot go on; the others do                                 exit 3
    ├── SlideOpenError       not a slide, damaged, truncated, or unreadable
    ├── ResolutionError      pixel size missing, absurd, or too coarse for the encoder
    ├── TileReadError        pixels that cannot be decoded
    ├── NoTissueError        nothing to analyse
    ├── FeatureError         features that are no numbers, or too large to be stored
    └── StoreError           stored features are damaged, or belong to another recipe
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathovit.reasons import Code

PASSING = tuple(getattr(errno, name) for name in ("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENOTCONN") if hasattr(errno, name))
OF_ERRNO = {
    errno.ENOENT: Code.NO_FILE,
    errno.EACCES: Code.NO_PERMISSION,
    errno.EPERM: Code.NO_PERMISSION,
    errno.ENOMEM: Code.OUT_OF_MEMORY,
}


class PathovitError(Exception):
    """Base of all errors that a user can act on.

    Examples
    --------
    >>> try:
    ...     pathovit.open_slide("none.svs")
    ... except pathovit.PathovitError as error:
    ...     print(error)
    none.svs: there is no such file. Check the path; a link may point nowhere.
    """

    exit_code = 1
    code: Code = Code.INTERNAL


class SettingsError(PathovitError, ValueError):
    """An option, a settings file or a manifest is wrong."""

    exit_code = 2
    code = Code.SETTINGS


class WeightsError(SettingsError):
    """Weights are missing, refused, or do not fit the encoder."""


class NoSlidesError(PathovitError, FileNotFoundError):
    """No slide file was found under the given paths."""

    exit_code = 4
    code = Code.NO_SLIDES


class OutputInUseError(PathovitError, BlockingIOError):
    """Another run is writing to this output folder."""

    exit_code = 5
    code = Code.IN_USE


class StorageError(PathovitError, OSError):
    """The output cannot be written."""

    exit_code = 6
    code = Code.STORAGE


class InternalError(PathovitError):
    """A fault of pathovit itself; its text is what is known of it, the traceback last."""


class SlideError(PathovitError):
    """One slide cannot go on; `path` names it, `reason` says why and what to do, `code` is that in a word."""

    exit_code = 3
    code = Code.DAMAGED

    def __init__(self, path: str | os.PathLike[str], reason: str, code: Code | None = None) -> None:
        super().__init__(f"{Path(path).name}: {reason}")
        self.path = Path(path)
        self.reason = reason
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[type[SlideError], tuple[Path, str, Code]]:  # crosses process borders whole
        return type(self), (self.path, self.reason, self.code)


class SlideOpenError(SlideError, OSError):
    """Not a slide, damaged, truncated, or unreadable."""


class ResolutionError(SlideError, ValueError):
    """Pixel size missing, absurd, or too coarse for the encoder."""

    code = Code.WRONG_MPP


class TileReadError(SlideError, OSError):
    """Pixels that cannot be decoded."""

    code = Code.UNREADABLE


class NoTissueError(SlideError, ValueError):
    """The slide holds nothing to analyse."""

    code = Code.NO_TISSUE


class FeatureError(SlideError, ValueError):
    """Features that are no numbers, or too large to be stored."""

    code = Code.FEATURES


class StoreError(SlideError, ValueError):
    """Stored features are damaged, or belong to another recipe."""

    code = Code.STORE_DAMAGED


def io_error(path: str | os.PathLike[str], error: OSError | str) -> SlideOpenError:
    """The drive failed, and went on failing: it is no fault of the slide."""
    said = error if isinstance(error, str) else error.strerror or str(error)
    return SlideOpenError(path, f"{said}, again and again. Check the drive it lies on; the slide may be sound.", Code.IO_ERROR)


@contextmanager
def slide_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the slide's name on an operating-system error that passes through."""
    try:
        yield
    except SlideError:
        raise
    except OSError as error:
        if error.errno in PASSING:
            raise io_error(path, error) from error
        code = OF_ERRNO.get(error.errno or 0)
        raise SlideOpenError(path, f"{error.strerror or error}. Check the file and the drive it lies on.", code) from error
