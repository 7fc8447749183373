"""Records that vouch for themselves: JSON whose last value is the digest of all other bytes, so that one changed bit is found."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathovit.files import read_bytes, to_json, write_atomically

SEALED = 2  # the format of such records; those of before had no digest
DIGEST = "digest"
PLACE = re.compile(rb'"digest": "([0-9a-f]{64})"\s*\}\s*\Z')
CHANGED = "was changed since it was written"


class SealError(ValueError):
    """A record that is not what was written."""


def sealed(values: Mapping[str, Any]) -> bytes:
    """A record as bytes."""
    known = {name: value for name, value in values.items() if name != DIGEST}
    blank = to_json({**known, "format": SEALED, DIGEST: "0" * 64})
    return _with_digest(blank, hashlib.sha256(blank).hexdigest())


def _with_digest(content: bytes, digest: str) -> bytes:
    found = PLACE.search(content)
    assert found
    return content[: found.start(1)] + digest.encode() + content[found.end(1) :]


def unsealed(content: bytes) -> Any:
    """What a record says. Raises SealError for one that was changed, and ValueError for what is no JSON."""
    try:
        values = json.loads(content)
    except ValueError:
        raise SealError("is damaged") from None
    if not isinstance(values, dict):
        return values
    place = PLACE.search(content)
    if place is not None:
        if hashlib.sha256(_with_digest(content, "0" * 64)).hexdigest() != place.group(1).decode():
            raise SealError(CHANGED)
    elif DIGEST in values or values.get("format") == SEALED:  # of a later version it is said what it is by whoever reads it
        raise SealError(CHANGED)
    values.pop(DIGEST, None)
    return values


def read_sealed(path: Path) -> Any:
    """Raises OSError, or as `unsealed` does."""
    return unsealed(read_bytes(path))


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, sealed(values))
