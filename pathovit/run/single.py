"""One slide from file to heatmap in this process, as a straight line: what `pathovit run` does with many, by workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathovit.errors import PathovitError, SettingsError, WeightsError
from pathovit.model.card import REFERENCE, model_digest, read_card, require_evidence
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.inventory import writing
from pathovit.outputs.names import Names
from pathovit.outputs.runs import RunLog, RunRecord, SlideOutcome
from pathovit.run.folder import show_results
from pathovit.run.jobs import told
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide, with_mpp
from pathovit.settings import Settings, as_settings
from pathovit.show.heatmap import Heatmap

if TYPE_CHECKING:
    from pathovit.encoders.encoder import Encoder
    from pathovit.model.prediction import SlidePrediction
    from pathovit.model.slide_model import SlideModel

FROM_PYTHON = "(a model given from Python)"


def analyse_slide(
    path: Path | str,
    encoder: Encoder | Path | str | None = None,
    model: SlideModel | Path | str = REFERENCE,
    out: Path | str = "out",
    settings: Settings | Mapping[str, Any] | Path | str | None = None,
    mpp: float | None = None,
) -> tuple[SlidePrediction, Heatmap]:
    """Carry one slide: file -> Slide -> TissueMask -> TileGrid -> SlideFeatures -> SlidePrediction -> Heatmap.

    The same steps as `pathovit run`, in this process, with the same files under `out`: table, report and record of the call, too.

    Parameters
    ----------
    encoder : one that is loaded (`load_encoder`; `own_encoder` for a network or a function), or its name or folder; None for the one that the
        model was trained on
    model : one that is loaded, or its folder
    settings : a record, tables as in a settings file, or such a file
    mpp : um per pixel of level 0, for a slide that does not say it

    Raises
    ------
    SlideError : the slide cannot be read, or its features were made otherwise before
    SettingsError, WeightsError : encoder, model or settings do not fit
    OutputInUseError : another run writes to `out`, or another call of this

    Examples
    --------
    >>> prediction, heatmap = pathovit.analyse_slide(path, out=out)
    >>> prediction.answer
    'tumour'
    """
    from pathovit.encoders.load import load_encoder
    from pathovit.model.slide_model import load_model
    from pathovit.run.embed import embed_part, make_embedder
    from pathovit.run.finish import finish_slide
    from pathovit.show.overview import score_layers

    settings, folder = as_settings(settings), OutFolder(Path(out))
    if isinstance(model, Path | str):
        settings = replace(settings, heatmap=replace(settings.heatmap, model=str(model)))
        model = load_model(model)
    else:
        settings = replace(settings, heatmap=replace(settings.heatmap, model=_where_it_lies(model, settings.heatmap.model)))
    require_evidence(model.card, model.name)
    if encoder is None and settings.embed.encoder != REFERENCE:
        encoder = settings.embed.encoder
    if encoder is None:
        trained, tiles = model.card.trained, settings.tiles
        encoder = trained.encoder
        settings = replace(settings, tiles=replace(tiles, tile_px=tiles.tile_px or trained.tile_px, mpp=tiles.mpp or trained.mpp))
    if callable(encoder):
        raise SettingsError(
            "A function or a network is no encoder yet: pathovit.own_encoder(it, name, mpp=..., tile_px=...) makes one."
        )
    if isinstance(encoder, Path | str):
        embed = settings.embed
        encoder = load_encoder(
            str(encoder), embed.weights, settings.run.device, embed.precision, settings.tiles.tile_px, embed.engine
        )
    began = time.monotonic()
    with writing(folder.path):
        names = None if settings.run.keep_names else Names.read(folder.path)
        (job,) = told([with_mpp(SlideJob(Path(path).absolute()), mpp)], names)
        log = RunLog(folder, _asked(job, settings, encoder, model), names)
        try:
            plan = plan_slide(job, folder, settings, encoder, model, overwrite=False)
            assert isinstance(plan, SlidePlan), "no slide was given before"
            if not plan.embedded:
                with make_embedder(encoder, settings) as embedder:
                    for part in range(plan.parts(settings.embed.part_tiles)):
                        embed_part(plan, part, folder, settings, embedder, lambda tiles: None)
            if plan.done is None:
                finish_slide(plan, folder, settings, model)
        except PathovitError as error:
            log.refuse(error)
            raise
        folder.settle(job.path, plan.slide_id, None)  # that a run failed on it before is over
        if names is not None:
            names.note(job.path, None, plan.slide_id)
            names.write(folder.path)
        stored = plan.store(folder).read()
        outcome = SlideOutcome(job.called, "done", plan.slide_id, "", "")
        show_results(folder, log.end(0, time.monotonic() - began, (outcome,)))
    prediction = model.predict(stored, settings.answer.error_rate)
    return prediction, score_layers(stored, prediction)


def _where_it_lies(model: SlideModel, asked: str) -> str:
    """What leads to a loaded model again, for who draws the heatmap anew; a name of nothing, where it is only at hand here."""
    for known in (asked, model.name):
        try:
            folder, card = read_card(known) if known else (None, None)
            if card is not None and model_digest(card) == model.sha256:
                return known if known == REFERENCE else str(folder)
        except WeightsError:  # no folder, or another one now
            continue
    return FROM_PYTHON


def _asked(job: SlideJob, settings: Settings, encoder: Encoder, model: SlideModel) -> RunRecord:
    settings = replace(settings, embed=replace(settings.embed, encoder=encoder.name))
    return RunRecord(
        command=("analyse_slide",),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        settings=settings.to_dict(),
        weights_sha256=encoder.weights_sha256,
        model=settings.heatmap.model,
        model_sha256=model.sha256,
        demonstration=model.card.demonstration,
        slides=(job.file_id or str(job.path),),
    )
