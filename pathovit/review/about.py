"""What must be said of a slide beside every event: which model, which weights, which code."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import pathovit
from pathovit.outputs.records import SlideRecord


@cache
def code_sha256() -> str:
    """Of all of pathovit's own source."""
    folder = Path(pathovit.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def about(record: SlideRecord | None) -> dict[str, object]:
    """Model, weights and code that stand behind what is shown of a slide."""
    found: dict[str, object] = {"pathovit": pathovit.__version__, "code_sha256": code_sha256()}
    if record is None:
        return found
    finished = record.finish_recipe.values if record.finish_recipe else {}
    encoder = record.recipe.encoder
    return found | {
        "slide_sha256": record.sha256,
        "model": record.prediction.model if record.prediction else None,
        "model_sha256": finished.get("model_sha256"),
        "encoder": encoder.get("encoder"),
        "encoder_sha256": encoder.get("weights_sha256"),
        "answer": record.prediction.headline if record.prediction else None,
    }
