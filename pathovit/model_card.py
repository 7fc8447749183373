"""model.json: what a slide model was made for, from what, and how well it does. Read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pathovit.errors import WeightsError

BUNDLED = Path(__file__).parent / "models"
NEEDED = ("config", "encoder", "weights_sha256")


def read_card(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a model and its card; a bundled model is known by its name.

    Raises
    ------
    WeightsError : not a model folder, or a damaged one
    """
    path = Path(folder)
    if not path.is_dir() and (BUNDLED / str(folder)).is_dir():
        path = BUNDLED / str(folder)
    card_path = path / "model.json"
    if not card_path.is_file():
        raise WeightsError(f"{path}: not a model folder (model.json is missing). Make one with: pathovit train LABELS.csv")
    try:
        card = json.loads(card_path.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{card_path}: damaged ({error}). Train the model again.") from error
    missing = [key for key in NEEDED if key not in card]
    if missing:
        raise WeightsError(f"{card_path}: of another version ({', '.join(missing)} missing). Train the model again.")
    return path.resolve(), card
