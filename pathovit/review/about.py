"""What must be said of a slide beside every event: which model, which weights, which code."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pathovit
from pathovit.files import read_bytes
from pathovit.outputs.records import SlideRecord


@cache
def code_sha256() -> str:
    """Of all of pathovit's own source."""
    folder = Path(pathovit.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + read_bytes(path) + b"\0")
    return found.hexdigest()


def about(record: SlideRecord | None) -> dict[str, object]:
    """Model, weights and code that stand behind what is shown of a slide."""
    found: dict[str, object] = {"pathovit": pathovit.__version__, "code_sha256": code_sha256()}
    if record is None:
        return found
    answer = record.prediction
    finished = record.finish_recipe.values if record.finish_recipe else {}
    encoder = record.recipe.encoder
    return found | {
        "slide_sha256": record.sha256,
        "model": answer.model if answer else None,
        "model_sha256": finished.get("model_sha256"),
        "encoder": encoder.get("encoder"),
        "encoder_sha256": encoder.get("weights_sha256"),
        "answer": answer.headline if answer else None,
        "tiles_sha256": tiles_sha256(record),
    }


def tiles_sha256(record: SlideRecord) -> str:
    """Of all that decides where tiles lie: cells of another lattice are other tissue."""
    recipe = record.recipe.values
    known = [recipe.get("tiles"), recipe.get("mpp"), record.description.size, recipe.get("steps", {}).get("tiling")]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
