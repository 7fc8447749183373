"""The last step of a slide: what its features say, drawn and written down. slide.json comes last."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pathovit.errors import StoreError
from pathovit.outputs.features import SlideFeatures, TileVerdict
from pathovit.outputs.folder import MAPS, OutFolder
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import finish_recipe
from pathovit.outputs.records import FeaturesRecord, HeatmapCheck, SlideRecord, SlideVerdict, TileCounts
from pathovit.outputs.store import FeatureStore
from pathovit.reasons import Code
from pathovit.run.plan import SlidePlan, answered_before, require_whole_answer
from pathovit.settings import Settings
from pathovit.slides.description import Survey
from pathovit.slides.identity import require_unchanged
from pathovit.slides.slide import Slide, open_slide

if TYPE_CHECKING:
    from pathovit.model.prediction import Answered
    from pathovit.model.slide_model import SlideModel
    from pathovit.show.views import Kinds, View


def finish_slide(plan: SlidePlan, out: OutFolder, settings: Settings, model: SlideModel | None) -> SlideRecord:
    """Views, answer, heatmap and exports of an embedded slide; writes slide.json last and returns it."""
    from pathovit.show.views import Kinds, save_views, scanned_parts, thumbnail

    folder, store = out.slide(plan.slide_id), plan.store(out)
    stored = store.read()
    counts = _count(plan.job.path, stored)
    sealed = store.seal()  # from here on the features vouch for themselves
    if model is None and (before := answered_before(folder, stored.recipe)) is not None:
        require_whole_answer(plan.job.path, before, folder.look(before, None).damaged, out)
        require_unchanged(plan.job.path, plan.state, plan.sha256)
        return folder.write(before, _files(before, folder.path))
    kinds = Kinds(store.tissue(), stored.attributes.tissue_downsample)
    with plan.open(settings) as opened:
        views = [thumbnail(opened, box, settings.heatmap.overview_px) for box in scanned_parts(opened, kinds)]
        bare = replace(_describe(plan, settings, stored, counts, sealed), views=save_views(folder.path, views))
        # While pictures are drawn the record speaks of features alone: products of another model are not mistaken for ours.
        folder.write(bare, _files(bare, folder.path))
        answered = model.answer(stored, settings.answer.error_rate) if model is not None else None
        record = _answer(bare, out, settings, answered, stored, kinds, views, opened) if answered else bare
        if model and answered and settings.heatmap.check:
            record = replace(record, heatmap_check=_check(model, stored, answered))
    require_unchanged(plan.job.path, plan.state, plan.sha256)
    return _end(record, out, settings, answered)


def redraw_slide(record: SlideRecord, out: OutFolder, settings: Settings, answered: Answered, path: Path | None) -> SlideRecord:
    """Heatmap and exports of another model's answer, from what is stored.

    Parameters
    ----------
    path : the slide file, where it is at hand as it was: for pictures of its top tiles, and for views if none are stored

    Raises
    ------
    StoreError : features are missing or damaged, or there is no picture of the slide to draw on
    """
    from pathovit.show.views import Kinds, load_views, save_views, scanned_parts, thumbnail

    folder, description = out.slide(record.slide_id), record.description
    store = FeatureStore(folder, path or out.called(record))
    stored = store.read()
    counts = _count(store.path, stored)
    kinds = Kinds(store.tissue(), stored.attributes.tissue_downsample)
    at_hand = open_slide(path, description.mpp, description.mpp_source, record.sha256, settings.embed.reader) if path else None
    with at_hand or nullcontext() as opened:
        views = load_views(folder.path, record.views)
        if not views and opened:
            views = [thumbnail(opened, box, settings.heatmap.overview_px) for box in scanned_parts(opened, kinds)]
            record = replace(record, views=save_views(folder.path, views))
        if not views:
            raise StoreError(
                store.path, "the slide is not where it was, and no picture of it is stored. Run `pathovit run` on it."
            )
        bare = replace(
            record,
            prediction=None,
            heatmap_check=None,
            top_tiles=(),
            finish_recipe=None,
            reason=_reason(stored, counts, record.survey),
        )
        folder.write(bare, _files(bare, folder.path))
        drawn = _answer(bare, out, settings, answered, stored, kinds, views, opened)
        if not path:  # pictures of top tiles are those of the same answer, or of none
            if record.finish_recipe == finish_recipe(settings, answered.model_sha256, record.patient, record.label):
                drawn = replace(drawn, top_tiles=record.top_tiles)
            else:
                shutil.rmtree(folder.path / "top_tiles", ignore_errors=True)
        return _end(drawn, out, settings, answered)


def _count(path: Path, stored: SlideFeatures) -> TileCounts:
    counts = TileCounts(**{verdict.name.lower(): int((stored.verdict == verdict).sum()) for verdict in TileVerdict})
    if counts.pending:
        raise StoreError(path, f"{counts.pending} tiles were never read. Run the same command again.")
    if counts.ok == 0:
        raise StoreError(
            path, f"not one of its {counts.all} tiles could be read. The file is damaged; copy it again.", Code.UNREADABLE
        )
    return counts


def _reason(stored: SlideFeatures, counts: TileCounts, survey: Survey) -> str:
    said = [f"{counts.unread} of {counts.all} tissue tiles could not be read" if counts.unread else "", stored.trial]
    said += survey.remarks
    if survey.upsampled > 1:
        said.append(f"slide is {survey.upsampled:.3f} times coarser than the encoder's tiles (upsampled)")
    return "; ".join(filter(None, said))


def _describe(
    plan: SlidePlan, settings: Settings, stored: SlideFeatures, counts: TileCounts, sealed: FeaturesRecord
) -> SlideRecord:
    """What is known of a slide before a model has seen it."""
    degraded = counts.unread > settings.run.max_unreadable * counts.all
    return SlideRecord(
        slide_id=plan.slide_id,
        sha256=plan.sha256,
        description=replace(plan.description, file=plan.job.file),
        survey=plan.survey,
        patient=plan.job.patient,
        label=plan.job.label,
        verdict=SlideVerdict.DEGRADED if degraded else SlideVerdict.OK,
        code=Code.UNREAD_TILES if degraded else "",
        reason=_reason(stored, counts, plan.survey),
        trial=stored.trial,
        tiles=counts,
        prediction=None,
        heatmap_check=None,
        seconds=sealed.seconds,
        recipe=stored.recipe,
        finish_recipe=None,
        versions=versions(),
    )


def _answer(
    record: SlideRecord, out: OutFolder, settings: Settings, answered: Answered, stored: SlideFeatures, kinds: Kinds,
    views: list[View], opened: Slide | None,
) -> SlideRecord:  # fmt: skip
    """The record with the model's answer, drawn."""
    from pathovit.show.overview import About, Said, draw_products

    prediction = answered.prediction
    answer = prediction.to_answer(answered.model)
    if stored.trial:
        answer = replace(answer, headline=f"{answer.headline} (a trial)")
    reason = "; ".join(filter(None, [prediction.remark, record.reason, *answered.remarks]))
    words = Said(answer.headline, f"DEGRADED: {reason}" if record.verdict == SlideVerdict.DEGRADED else reason)
    about = About(record.slide_id, record.description, record.survey)
    tiles = draw_products(
        out.slide(record.slide_id).path, views, opened, about, stored, prediction, kinds, settings.heatmap, words
    )  # fmt: skip
    return replace(record, prediction=answer, reason=reason, top_tiles=tuple(tiles))


def _check(model: SlideModel, stored: SlideFeatures, answered: Answered) -> HeatmapCheck:
    from pathovit.model.faithfulness import check_heatmap

    return check_heatmap(model, stored, answered.prediction)


def _files(record: SlideRecord, folder: Path) -> list[str]:
    """What was made of the features."""
    pictures = [*(view.file for view in record.views), *(tile.file for tile in record.top_tiles)]
    return [*pictures, *(name for name in MAPS if record.prediction and (folder / name).exists())]


def _end(record: SlideRecord, out: OutFolder, settings: Settings, answered: Answered | None) -> SlideRecord:
    asked = finish_recipe(settings, answered.model_sha256 if answered else None, record.patient, record.label)
    done = replace(record, finish_recipe=asked)
    return out.slide(record.slide_id).write(done, _files(done, out.slide(record.slide_id).path))
