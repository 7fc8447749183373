"""The steps of one slide in this process, with an encoder that needs no weights and counts its tiles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from made_slides import MeanColourEncoder

from pathovit.outputs.folder import OutFolder
from pathovit.run.drive import Drive
from pathovit.run.embed import embed_part, make_embedder
from pathovit.run.finish import finish_slide
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide
from pathovit.run.schedule import SlideState
from pathovit.run.worker import Work
from pathovit.settings import Settings

SETTINGS = replace(Settings(), embed=replace(Settings().embed, batch_tiles=4, chunk_tiles=8, part_tiles=16))


class CountingEncoder(MeanColourEncoder):
    """Counts the tiles that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.tiles = 0

    def launch(self, tiles: Any) -> Callable[[], Any]:
        self.tiles += len(tiles)
        return super().launch(tiles)


def run_one(
    path: Path,
    out: OutFolder,
    encoder: MeanColourEncoder,
    settings: Settings = SETTINGS,
    overwrite: bool = False,
) -> SlidePlan:
    """The three steps of one slide, without a model."""
    plan = plan_slide(SlideJob(path), out, settings, encoder, None, overwrite)
    assert isinstance(plan, SlidePlan)
    if not plan.embedded:
        with make_embedder(encoder, settings) as embedder:
            for part in range(plan.parts(settings.embed.part_tiles)):
                embed_part(plan, part, out, settings, embedder, lambda tiles: None)
    if plan.done is None:
        finish_slide(plan, out, settings, None)
    return plan


def drive(out: OutFolder, *paths: Path) -> Drive:
    states = [SlideState(index, SlideJob(path)) for index, path in enumerate(paths)]
    return Drive(states, Work(out, SETTINGS, "", None, None, False), lambda state: None, threading.Event(), lambda text: None)
