"""Put the reference model into the package: python workflows/reference/ship.py WORK/reference"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from pathovit.files import to_json
from pathovit.model.card import BUNDLED, REFERENCE

FILES = ("MODEL_CARD.md", "evaluation.png", "training.png", "model.json", "model.safetensors", "predictions.csv", "split.csv")


def main() -> None:
    made, here = Path(sys.argv[1]), BUNDLED / REFERENCE
    for name in FILES:
        shutil.copyfile(made / name, here / name)
    card = json.loads((here / "model.json").read_text())
    (here / "model.json").write_bytes(to_json(card | {"demonstration": True}))


if __name__ == "__main__":
    main()
