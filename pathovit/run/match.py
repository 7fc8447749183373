"""Settings and a slide model that fit each other, found out before any worker is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pathovit.encoders.names import can_be_known, record_at_sight
from pathovit.errors import SettingsError
from pathovit.model.card import REFERENCE, Trained, read_card, require_evidence, require_weights
from pathovit.settings import Settings
from pathovit.tables import Say


@dataclass(frozen=True)
class Matched:
    """Settings and the folder of a slide model that fit each other; without a model there are features only."""

    settings: Settings
    model: str | None


def match_model(settings: Settings, encoder_given: bool, model_given: bool, say: Say = lambda text: None) -> Matched:
    """Settings and model folder that fit each other.

    A model brings the encoder and the tiles it was trained on, unless others were asked for; an encoder that no model
    was given for is run for its features alone.
    """
    if not model_given and settings.heatmap.model == REFERENCE and settings.embed.encoder != REFERENCE:
        say(
            f"no slide model for encoder {settings.embed.encoder!r} was given: features only. "
            "Train one with `pathovit train LABELS.csv`, then use --model."
        )
        return Matched(settings, None)
    folder, card = read_card(settings.heatmap.model)
    require_weights(folder, card)  # before anything is begun with it
    require_evidence(card, settings.heatmap.model)
    if settings.heatmap.model != REFERENCE:  # `heatmap` may be called from another folder later
        settings = replace(settings, heatmap=replace(settings.heatmap, model=str(folder)))
    trained = card.trained
    if not encoder_given and not can_be_known(trained.encoder):
        raise SettingsError(
            f"{settings.heatmap.model}: it was trained on an encoder of somebody's own, {trained.encoder!r}. Give its folder with --encoder."
        )
    if not encoder_given:
        settings = replace(settings, embed=replace(settings.embed, encoder=trained.encoder))
    tiles = settings.tiles
    settings = replace(settings, tiles=replace(tiles, tile_px=tiles.tile_px or trained.tile_px, mpp=tiles.mpp or trained.mpp))
    _refuse_misfit(settings, trained, settings.heatmap.model)
    return Matched(settings, str(folder))


def _refuse_misfit(settings: Settings, trained: Trained, model: str) -> None:
    """Refuse tiles and encoders that the model was not made for; before workers are started."""
    record = record_at_sight(settings.embed.encoder)
    asked = {
        "--encoder": record.name if record else settings.embed.encoder,
        "--tile-px": settings.tiles.tile_px,
        "--tile-mpp": settings.tiles.mpp,
    }
    fitting = {"--encoder": trained.encoder, "--tile-px": trained.tile_px, "--tile-mpp": trained.mpp}
    for option, value in asked.items():
        if value != fitting[option]:
            raise SettingsError(
                f"{option} {value}: the model {Path(model).name!r} was made for {fitting[option]}. Leave out {option}; or store features with "
                "`pathovit embed`, train a model on them, and give that with --model."
            )
