"""The first step of a slide: what it is, where its tissue lies, which tiles are read; and what of all that is done already.

    plan_slide  ->  embed_part 1..K  ->  finish_slide

Every step can be killed at any point and run again: state lies on disk, and is recognised by its recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pathovit.encoders.record import EncoderRecord
from pathovit.errors import SettingsError, SlideOpenError, StoreError, slide_errors
from pathovit.files import file_sha256
from pathovit.geometry import XY
from pathovit.outputs.features import FeatureAttributes
from pathovit.outputs.folder import LOOKED_AT_BYTES, Look, OutFolder, Refused, SlideFolder
from pathovit.outputs.recipe import EmbedRecipe, embed_recipe, feature_dtype, finish_recipe, tile_spec
from pathovit.outputs.records import DONE, SlideRecord
from pathovit.outputs.store import FeatureStore
from pathovit.reasons import Code
from pathovit.settings import Settings
from pathovit.slides.description import SlideDescription, Survey
from pathovit.slides.identity import FileState, file_state
from pathovit.slides.outlines import read_outlines
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, check_resolution, lay_grid
from pathovit.slides.tissue import TissueMask, find_tissue, outlined_tissue

if TYPE_CHECKING:
    from pathovit.encoders.encoder import Encoder
    from pathovit.encoders.spec import EncoderSpec
    from pathovit.model.card import KnownModel
    from pathovit.model.slide_model import SlideModel


@dataclass(frozen=True)
class SlideJob:
    """A slide asked for: its file, and what the user knows better than the file."""

    path: Path
    mpp: XY | None = None  # um per pixel of level 0
    mpp_source: str = "option --mpp"
    patient: str | None = None
    label: str | None = None
    file: str = ""  # its name, if it may be told; else results speak of ids
    file_id: str = ""  # what stands for the file itself
    outlines: Path | None = None  # file with the outlines of its tissue, which is not looked for then

    @property
    def called(self) -> str:
        """What results call the file."""
        return self.file or self.file_id


@dataclass(frozen=True)
class SlidePlan:
    """What will be done with a slide."""

    job: SlideJob
    slide_id: str
    sha256: str
    description: SlideDescription
    survey: Survey
    state: FileState  # of the slide's files when they were looked at first
    compared: frozenset[int] | None = None  # see Slide.compared
    embedded: bool = False  # all features are on disk, and have been checked
    done: SlideRecord | None = None  # if all products are on disk, as they were written
    unread: int = 0  # files of those that were not looked into
    damaged: tuple[str, ...] = ()  # files of it that were found missing or changed, and are made again

    def parts(self, part_tiles: int) -> int:
        return -(-self.survey.tiles // part_tiles)

    def recipe(self, settings: Settings, encoder: Encoder | EncoderSpec) -> EmbedRecipe:
        """The recipe of its features."""
        mpp, reader = self.description.mpp, self.description.reader
        outlines = file_sha256(self.job.outlines) if self.job.outlines else None
        return embed_recipe(self.sha256, mpp, reader, settings, encoder.record, encoder.recipe(), outlines)

    def store(self, out: OutFolder) -> FeatureStore:
        return FeatureStore(out.slide(self.slide_id), self.job.path)

    def open(self, settings: Settings) -> Slide:
        """The slide again, as it was planned."""
        return open_slide(
            self.job.path, self.description.mpp, self.description.mpp_source, self.sha256, settings.embed.reader, self.compared
        )  # fmt: skip


@dataclass(frozen=True)
class Twin:
    """A slide whose content another one has that was given before, under the same name: it would write to the same folder."""

    slide_id: str


@dataclass(frozen=True)
class Surveyed:
    """An open slide with its tissue and its grid. The caller closes the slide."""

    slide: Slide
    mask: TissueMask
    grid: TileGrid

    @property
    def survey(self) -> Survey:
        mask = self.mask
        return Survey(mask.area_mm2, len(self.grid), self.grid.upsampled, mask.left_out_mm2, mask.remarks)


def survey_slide(job: SlideJob, settings: Settings, record: EncoderRecord, sha256: str | None = None) -> Surveyed:
    """Preflight, tissue and grid of one slide; no model is loaded, and its content is not read for a digest."""
    slide = open_slide(job.path, job.mpp, job.mpp_source, sha256, settings.embed.reader)
    try:
        spec = tile_spec(settings, record)
        check_resolution(slide, spec)  # before any pixel is read
        if job.outlines:
            with _of_this_slide(job.path):
                outlines = read_outlines(job.outlines)
            mask = outlined_tissue(slide, outlines, settings.tissue)
        else:
            mask = find_tissue(slide, settings.tissue)
        grid = lay_grid(slide, mask, spec, settings.embed.max_tiles, record.scaled_decoding)
    except BaseException:
        slide.close()
        raise
    return Surveyed(slide, mask, grid)


@contextmanager
def _of_this_slide(path: Path) -> Iterator[None]:
    """A file of outlines that cannot be read is the trouble of its slide alone: the others go on."""
    try:
        yield
    except SettingsError as error:
        raise SlideOpenError(path, f"the outlines of its tissue cannot be read: {error}") from error


def plan_slide(
    job: SlideJob, out: OutFolder, settings: Settings, encoder: Encoder | EncoderSpec, model: SlideModel | KnownModel | None,
    overwrite: bool, given: frozenset[str] = frozenset(),
) -> SlidePlan | Twin:  # fmt: skip
    """Plan a slide and lay out its store; a slide that is done already is recognised without looking at its pixels.

    Parameters
    ----------
    given : slide_ids of slides that were given before: nothing of theirs is touched

    Raises
    ------
    SettingsError : the model needs other features
    SlideError : the slide cannot go on, the folder holds features of it made by another recipe, or an answer that would be lost
    """
    sha256, state = out.fingerprint(job.path)
    known_as = out.known_as(sha256, job.file)
    if known_as in given:
        return Twin(known_as)
    job = with_known(job, out.slide(known_as).record())
    overwrite = overwrite and not out.is_replaced(known_as)
    if not overwrite and (before := _plan_of_before(job, known_as, sha256, state, out, settings, encoder)):
        record, plan = before
        if model is not None:
            model.check(record.recipe)
        seen = _look(record, out, settings)
        if not seen.damaged and _is_asked(record, plan, settings, model):
            return replace(plan, embedded=True, done=record, unread=seen.skipped)
        if model is None:
            require_whole_answer(job.path, record, seen.damaged, out)
        plan = replace(plan, damaged=seen.damaged)
        if _is_whole(plan.store(out)):
            return replace(plan, embedded=True)
        return replace(_lay_out(job, known_as, sha256, state, out, settings, encoder, model, False), damaged=seen.damaged)
    refused = out.slide(known_as).read()
    damaged = (DONE,) if isinstance(refused, Refused) and not overwrite else ()
    return replace(_lay_out(job, known_as, sha256, state, out, settings, encoder, model, overwrite), damaged=damaged)


def recognise_slide(
    job: SlideJob, out: OutFolder, settings: Settings, encoder: EncoderSpec, model: KnownModel | None, overwrite: bool,
    given: frozenset[str],
) -> SlidePlan | Twin | None:  # fmt: skip
    """What `plan_slide` says of a slide that is done, where that can be told without reading the slide; else None."""
    sha256 = out.unchanged(job.path)
    if sha256 is None:
        return None
    known_as, state = out.known_as(sha256, job.file), file_state(job.path)
    if known_as in given:
        return Twin(known_as)
    if overwrite and not out.is_replaced(known_as):
        return None
    job = with_known(job, out.slide(known_as).record())
    if (before := _plan_of_before(job, known_as, sha256, state, out, settings, encoder)) is None:
        return None
    record, plan = before
    if not _is_asked(record, plan, settings, model) or (seen := _look(record, out, settings)).damaged:
        return None
    return replace(plan, embedded=True, done=record, unread=seen.skipped)


def _plan_of_before(
    job: SlideJob, known_as: str, sha256: str, state: FileState, out: OutFolder, settings: Settings, encoder: Encoder | EncoderSpec
) -> tuple[SlideRecord, SlidePlan] | None:  # fmt: skip
    """The record of a slide whose features were made as they are asked for now, and the plan that they were made by."""
    record = out.slide(known_as).record()
    if record is None or (job.mpp is None and not record.description.mpp_source.startswith("metadata")):
        return None
    description = replace(record.description, mpp=job.mpp or record.description.mpp)
    plan = SlidePlan(job, known_as, sha256, description, record.survey, state)
    return (record, plan) if record.recipe == plan.recipe(settings, encoder) else None


def _look(record: SlideRecord, out: OutFolder, settings: Settings) -> Look:
    """Raises SlideOpenError where the drive of the results fails."""
    folder = out.slide(record.slide_id)
    with slide_errors(folder.path):
        return folder.look(record, None if settings.run.full_check else LOOKED_AT_BYTES)


def _is_asked(record: SlideRecord, plan: SlidePlan, settings: Settings, model: SlideModel | KnownModel | None) -> bool:
    """Whether what was made is all that is asked for now. Features are enough where no model is given."""
    if record.finish_recipe is None:
        return False
    named = not plan.job.file or bool(record.description.file)
    if model is None:
        return record.has_features and (named or record.prediction is not None)
    return named and record.finish_recipe == finish_recipe(settings, model.sha256, plan.job.patient, plan.job.label)


def answered_before(folder: SlideFolder, recipe: EmbedRecipe) -> SlideRecord | None:
    """The record of a slide that has an answer for features of this recipe: where they are made again it stays true."""
    record = folder.record()
    return record if record is not None and record.prediction is not None and record.recipe == recipe else None


def require_whole_answer(path: Path, record: SlideRecord, damaged: Sequence[str], out: OutFolder) -> None:
    """Raises StoreError where files of a slide's answer are damaged, and there is no model to make them again."""
    of_answer = [name for name in damaged if not name.startswith("features.")]
    if record.prediction is not None and of_answer:
        raise StoreError(
            path,
            f"it has an answer, and {', '.join(of_answer[:3])} missing or changed since it was written, which only the model that answered makes "
            f"again: pathovit run SLIDE --model MODEL --out {out.path}",
        )


def _is_whole(store: FeatureStore) -> bool:
    """Whether all features are there as they were written."""
    try:
        tiles, _, size = store.shape()
        return store.is_sound() and len(store.committed()) == -(-tiles // size)
    except StoreError:
        return False


def _lay_out(
    job: SlideJob, known_as: str, sha256: str, state: FileState, out: OutFolder, settings: Settings,
    encoder: Encoder | EncoderSpec, model: SlideModel | KnownModel | None, overwrite: bool,
) -> SlidePlan:  # fmt: skip
    """Look at the slide, and lay out its store where there is none that can go on."""
    found = survey_slide(job, settings, encoder.record, sha256)
    with found.slide as slide:
        plan = SlidePlan(job, known_as, sha256, slide.description, found.survey, state, slide.compared)
        store, recipe = plan.store(out), plan.recipe(settings, encoder)
        if model is not None:
            model.check(recipe)
        stored = None if overwrite else _stored_recipe(store)
        if stored is not None and stored != recipe:
            raise StoreError(job.path, _said_otherwise(out, stored, recipe), Code.OTHER_RECIPE)

        if stored is None or not store.is_sound():
            attributes = FeatureAttributes.of_slide(slide, encoder.recipe()["device"], recipe, found.mask.downsample)
            dtype = feature_dtype(settings, encoder.record)
            answered = model is None and not overwrite and answered_before(store.folder, recipe) is not None
            store.create(
                found.grid, encoder.dim, settings.embed.chunk_tiles, attributes, found.mask.kinds(), dtype, forget=not answered
            )
            if overwrite:
                out.mark_replaced(known_as)
        else:
            store.sweep()
    return replace(plan, embedded=_is_whole(store))


def _said_otherwise(out: OutFolder, stored: EmbedRecipe, recipe: EmbedRecipe) -> str:
    """Why features that lie there are not gone on with, and what can be done."""
    differing = stored.differences(recipe)
    if all(line.startswith("steps.") for line in differing):
        return (
            f"{out.path} holds features of it that were made by an older pathovit, which finds tissue or tiles otherwise ({'; '.join(differing[:4])}). They are "
            "left as they are: predict, teach, export and verify still work on them. To embed anew: the same command with --overwrite."
        )
    outlined = "Give the same --tissue as before. " if any(line.startswith("tissue.outlines") for line in differing) else ""
    return (
        f"{out.path} holds features of it made by another recipe ({'; '.join(differing[:4])}). "
        f"{outlined}Choose another --out, or replace them with --overwrite."
    )


def _stored_recipe(store: FeatureStore) -> EmbedRecipe | None:
    """The recipe of what lies there, as it says itself or its record does; None where nobody can tell, and nothing is kept."""
    try:
        if (recipe := store.recipe()) is not None:
            return recipe
    except StoreError:  # damaged: the record may know
        pass
    record = store.folder.record()
    return record.recipe if record is not None and record.has_features else None


def with_known(job: SlideJob, record: SlideRecord | None) -> SlideJob:
    """The job with the patient and the label that were given before, where they are not given again."""
    if record is None:
        return job
    return replace(job, patient=job.patient or record.patient, label=record.label if job.label is None else job.label)


def with_mpp(job: SlideJob, mpp: float | None) -> SlideJob:
    """The job with a pixel size given for all slides, unless it has its own."""
    return job if mpp is None or job.mpp is not None else replace(job, mpp=(mpp, mpp), mpp_source="option --mpp")
