"""The last step of a slide: what its features say, drawn and written down. slide.json comes last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pathovit.errors import StoreError
from pathovit.outputs.features import SlideFeatures, TileVerdict
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.provenance import versions
from pathovit.outputs.recipe import finish_recipe
from pathovit.outputs.records import FeaturesRecord, HeatmapCheck, SlideRecord, SlideVerdict, TileCounts, TopTile
from pathovit.outputs.store import FeatureStore
from pathovit.run.plan import SlidePlan
from pathovit.settings import Settings
from pathovit.slides.identity import require_unchanged

if TYPE_CHECKING:
    from pathovit.model.slide_model import SlideModel, SlidePrediction


def finish_slide(plan: SlidePlan, out: OutFolder, settings: Settings, model: SlideModel | None) -> SlideRecord:
    """Answer, heatmap and exports of an embedded slide; writes slide.json last and returns it."""
    folder, store = out.slide(plan.slide_id), plan.store(out)
    stored = store.read()
    counts = _count(plan, stored)
    sealed = store.seal()  # from here on the features vouch for themselves
    bare = _describe(plan, settings, stored, counts, sealed)
    # While pictures are drawn the record speaks of features alone: products of another model are not mistaken for ours.
    folder.write(bare, [])
    record, files = bare, list[str]()
    if model is not None:
        record, files = _answer(bare, plan, out, settings, model, stored, store)
    require_unchanged(plan.job.path, plan.state, plan.sha256)
    asked = finish_recipe(settings, model.sha256 if model else None, plan.job.patient, plan.job.label)
    return folder.write(replace(record, finish_recipe=asked), files)


def _count(plan: SlidePlan, stored: SlideFeatures) -> TileCounts:
    counts = TileCounts(**{verdict.name.lower(): int((stored.verdict == verdict).sum()) for verdict in TileVerdict})
    if counts.pending:
        raise StoreError(plan.job.path, f"{counts.pending} tiles were never read. Run the same command again.")
    if counts.ok == 0:
        raise StoreError(plan.job.path, f"not one of its {counts.all} tiles could be read. The file is damaged; copy it again.")
    return counts


def _describe(
    plan: SlidePlan, settings: Settings, stored: SlideFeatures, counts: TileCounts, sealed: FeaturesRecord
) -> SlideRecord:
    """What is known of a slide before a model has seen it."""
    said = [f"{counts.unread} of {counts.all} tissue tiles could not be read" if counts.unread else "", stored.trial]
    said += plan.survey.remarks
    if plan.survey.upsampled > 1:
        said.append(f"slide is {plan.survey.upsampled:.3f} times coarser than the encoder's tiles (upsampled)")
    degraded = counts.unread > settings.run.max_unreadable * counts.all
    return SlideRecord(
        slide_id=plan.slide_id,
        sha256=plan.sha256,
        description=plan.description,
        survey=plan.survey,
        patient=plan.job.patient,
        label=plan.job.label,
        verdict=SlideVerdict.DEGRADED if degraded else SlideVerdict.OK,
        reason="; ".join(filter(None, said)),
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
    record: SlideRecord, plan: SlidePlan, out: OutFolder, settings: Settings, model: SlideModel, stored: SlideFeatures,
    store: FeatureStore,
) -> tuple[SlideRecord, list[str]]:  # fmt: skip
    """The record with the model's answer, and the files that were drawn."""
    from pathovit.show.overview import Kinds, Said, draw_products

    prediction = model.predict(stored, settings.answer.error_rate)
    answer = prediction.to_answer(model.name)
    if stored.trial:
        answer = replace(answer, headline=f"{answer.headline} (a trial)")
    strange = f"unlike the slides the model knows (novelty {prediction.novelty:.2f})" if prediction.strange else ""
    reason = "; ".join(filter(None, [strange, record.reason, *model.remarks(stored)]))
    record = replace(
        record,
        prediction=answer,
        reason=reason,
        heatmap_check=_check(model, stored, prediction) if settings.heatmap.check else None,
    )
    words = Said(answer.headline, f"DEGRADED: {reason}" if record.verdict == SlideVerdict.DEGRADED else reason)
    kinds = Kinds(store.tissue(), stored.attributes.tissue_downsample)
    with plan.open(settings) as opened:
        tiles: list[TopTile] = draw_products(
            opened, out.slide(plan.slide_id).path, plan.survey, stored, prediction, kinds, settings.heatmap, words
        )
    files = ["heatmap.ome.tiff", "heatmap.geojson", "overview.png", *(tile.file for tile in tiles)]
    return replace(record, top_tiles=tuple(tiles)), files


def _check(model: SlideModel, stored: SlideFeatures, prediction: SlidePrediction) -> HeatmapCheck:
    from pathovit.model.faithfulness import check_heatmap

    return check_heatmap(model, stored, prediction)
