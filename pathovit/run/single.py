"""One slide from file to heatmap in this process, as a straight line: what `pathovit run` does with many, by workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.names import Names
from pathovit.run.jobs import told
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide, with_mpp
from pathovit.settings import Settings
from pathovit.show.heatmap import Heatmap

if TYPE_CHECKING:
    from pathovit.encoders.encoder import Encoder
    from pathovit.model.prediction import SlidePrediction
    from pathovit.model.slide_model import SlideModel


def analyse_slide(
    path: Path | str,
    encoder: Encoder,
    model: SlideModel,
    out: Path | str,
    settings: Settings | None = None,
    mpp: float | None = None,
) -> tuple[SlidePrediction, Heatmap]:
    """Carry one slide: file -> Slide -> TissueMask -> TileGrid -> SlideFeatures -> SlidePrediction -> Heatmap.

    The same steps as `pathovit run`, in this process, with the same files under `out`.
    """
    from pathovit.run.embed import embed_part, make_embedder
    from pathovit.run.finish import finish_slide
    from pathovit.show.overview import score_layers

    settings, folder = settings or Settings(), OutFolder(Path(out))
    names = None if settings.run.keep_names else Names.read(folder.path)
    (job,) = told([with_mpp(SlideJob(Path(path)), mpp)], names)
    plan = plan_slide(job, folder, settings, encoder, model, overwrite=False)
    assert isinstance(plan, SlidePlan), "no slide was given before"
    if not plan.embedded:
        with make_embedder(encoder, settings) as embedder:
            for part in range(plan.parts(settings.embed.part_tiles)):
                embed_part(plan, part, folder, settings, embedder, lambda tiles: None)
    if plan.done is None:
        finish_slide(plan, folder, settings, model)
    if names is not None:
        names.note(job.path, None, plan.slide_id)
        names.write(folder.path)
    stored = plan.store(folder).read()
    prediction = model.predict(stored, settings.answer.error_rate)
    return prediction, score_layers(stored, prediction)
