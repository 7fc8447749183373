"""Recipes: everything that determines a result. A part is done when its recipe is that of today, whatever its file is called.

On disk a recipe is JSON, byte for byte the same for the same settings; one of another version is kept as it was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pathovit.encoders.record import EncoderRecord
from pathovit.geometry import XY
from pathovit.outputs.provenance import STEP_VERSIONS
from pathovit.settings import Settings, TileSpec, fill_spec

Values = Mapping[str, Any]
OUTLINES = "outlines"  # of tissue, that a person drew
IMPORTED = "imported"  # in the place of a reader, and of the digest of weights, which other programs do not tell


@dataclass(frozen=True)
class Recipe:
    """What a result was made by, as JSON holds it."""

    values: Values

    def differences(self, other: Recipe, there: str = "there", here: str = "now") -> list[str]:
        """Keys whose values differ from another recipe's, with both values and where they are from."""
        return differing(self.values, other.values, there=there, here=here)

    def to_json(self) -> dict[str, Any]:
        return dict(self.values)


@dataclass(frozen=True)
class EmbedRecipe(Recipe):
    """Everything that determines the stored features of a slide."""

    @property
    def encoder(self) -> Values:
        return dict(self.values["encoder"])

    @property
    def tiles(self) -> Values:
        return dict(self.values["tiles"])

    @property
    def is_imported(self) -> bool:
        """Whether another program made the features, of a slide that is not here."""
        return self.values.get("reader") == IMPORTED

    @property
    def outlines(self) -> str | None:
        """Digest of the file that outlines the tissue, where it was not looked for."""
        found = self.values.get("tissue", {}).get(OUTLINES)
        return None if found is None else str(found)

    @property
    def max_tiles(self) -> int | None:
        cap = self.values["embed"]["max_tiles"]
        return None if cap is None else int(cap)

    def shaping(self) -> Values:
        """What shaped the tiles and features, and must be shared by all that are learned from together."""
        tiles = {key: value for key, value in self.tiles.items() if key != "max_upsampling"}  # allows, and shapes nothing
        found = {**{key: self.values[key] for key in ("encoder", "tissue", "steps") if key in self.values}, "tiles": tiles}
        if OUTLINES in found.get("tissue", {}):  # of one slide, and good tissue as well
            found["tissue"] = {key: value for key, value in found["tissue"].items() if key != OUTLINES}
        return found


@dataclass(frozen=True)
class FinishRecipe(Recipe):
    """Everything, besides the features, that determines what is said of a slide."""


def tile_spec(settings: Settings, record: EncoderRecord) -> TileSpec:
    return fill_spec(settings.tiles, record.tile_px, record.mpp)


def feature_dtype(settings: Settings, record: EncoderRecord) -> str:
    """What features are stored in: as asked, or as suits the encoder."""
    return settings.embed.feature_dtype or record.feature_dtype


def embed_recipe(
    sha256: str, mpp: XY, reader: str, settings: Settings, record: EncoderRecord, encoder: Values, outlines: str | None = None
) -> EmbedRecipe:
    """The recipe of a slide's features.

    Parameters
    ----------
    reader : the one that was found to serve the slide
    encoder : what the loaded encoder says of itself (`Encoder.recipe`); on which device it runs does not count
    outlines : digest of the file that outlines its tissue, where it is not looked for
    """
    embed = {key: getattr(settings.embed, key) for key in ("chunk_tiles", "max_tiles", "reader")}
    if (dtype := feature_dtype(settings, record)) != "float16":
        embed["feature_dtype"] = dtype
    values = {
        "slide_sha256": sha256,
        "mpp": list(mpp),
        "reader": reader,
        "tissue": asdict(settings.tissue) | ({OUTLINES: outlines} if outlines else {}),
        "tiles": asdict(tile_spec(settings, record)),
        "encoder": {key: value for key, value in encoder.items() if key != "device"},
        "embed": embed,
        "steps": {name: STEP_VERSIONS[name] for name in ("tissue", "tiling", "embedding")},
    }
    return EmbedRecipe(_as_read_back(values))


def finish_recipe(settings: Settings, model_sha256: str | None, patient: str | None, label: str | None) -> FinishRecipe:
    """The recipe of answer, heatmap and exports; `model_sha256` is None where there are features only."""
    values = {
        "model_sha256": model_sha256,
        "answer": asdict(settings.answer),
        "heatmap": {**asdict(settings.heatmap), "model": None},
        "max_unreadable": settings.run.max_unreadable,
        "patient": patient,
        "label": label,
        "steps": {name: STEP_VERSIONS[name] for name in ("aggregator", "heatmap")},
    }
    return FinishRecipe(_as_read_back(values))


def _as_read_back(values: Values) -> Values:
    return dict(json.loads(json.dumps(values)))


def differing(old: Values, new: Values, prefix: str = "", there: str = "there", here: str = "now") -> list[str]:
    """Keys whose values differ, with both values and where they are from."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differing(a, b, f"{prefix}{key}.", there, here)
        elif a != b:
            found.append(f"{prefix}{key}: {a} {there}, {b} {here}")
    return found
