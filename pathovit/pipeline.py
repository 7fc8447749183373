"""One slide from file to heatmap, as a straight line, in three steps that a scheduler can spread over workers:

    plan_slide  ->  embed_part 1..K  ->  finish_slide

Every step can be killed at any point and run again: state lies on disk, and is recognised by its recipe.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathovit import RESEARCH_USE
from pathovit.device import worker_cores
from pathovit.encoders.records import EncoderRecord
from pathovit.errors import SettingsError, StoreError
from pathovit.features import Verdict, differing
from pathovit.files import tried_again
from pathovit.geometry import XY
from pathovit.preflight import FileState, check_file, content_sha256, file_state, require_unchanged, slide_id
from pathovit.provenance import STEP_VERSIONS, versions
from pathovit.settings import Settings, TileSpec
from pathovit.slide import Slide, open_slide
from pathovit.store import FeatureStore, file_digest, to_json, write_atomically
from pathovit.tiling import TileGrid, check_resolution, fill_spec, lay_grid
from pathovit.tissue import TissueMask, find_tissue

if TYPE_CHECKING:
    from pathovit.embedding import Embedder, Span
    from pathovit.encoders import Encoder
    from pathovit.heatmap import Heatmap
    from pathovit.slide_model import SlideModel, SlidePrediction

DONE = "slide.json"


@dataclass(frozen=True)
class SlideJob:
    """A slide asked for: its file, and what the user knows better than the file."""

    path: Path
    mpp: XY | None = None  # um per pixel of level 0
    mpp_source: str = "option --mpp"
    patient: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class SlidePlan:
    """What will be done with a slide."""

    job: SlideJob
    slide_id: str
    sha256: str
    vendor: str
    size: tuple[int, int]
    mpp: tuple[float, float]
    mpp_source: str
    reader: str
    tissue_mm2: float
    tiles: int
    upsampled: float
    left_out_mm2: dict[str, float] = field(default_factory=dict)  # what was taken for no tissue although it is not glass
    remarks: tuple[str, ...] = ()  # what must be said of the file and its glass
    state: FileState = ()  # of the slide's files when they were looked at first
    embedded: bool = False  # all features are on disk
    done: dict[str, Any] | None = None  # slide.json, if all products are on disk

    def parts(self, part_tiles: int) -> int:
        return -(-self.tiles // part_tiles)

    def feature_bytes(self, dim: int) -> int:
        """Bytes of features and grid before compression."""
        return self.tiles * (2 * dim + 16 + 4 + 1)


def tile_spec(settings: Settings, record: EncoderRecord) -> TileSpec:
    return fill_spec(settings.tiles, record.tile_px, record.mpp)


def plan_slide(
    job: SlideJob, settings: Settings, record: EncoderRecord, sha256: str | None = None
) -> tuple[SlidePlan, Slide, TileGrid, TissueMask]:
    """Preflight, tissue and grid of one slide; no model is loaded. The caller closes the slide."""
    slide = open_slide(job.path, job.mpp, job.mpp_source, sha256, settings.embed.reader)
    try:
        spec = tile_spec(settings, record)
        check_resolution(slide, spec)  # before any pixel is read
        mask = find_tissue(slide, settings.tissue)
        grid = lay_grid(slide, mask, spec, settings.embed.max_tiles, record.scaled_decoding)
    except BaseException:
        slide.close()
        raise
    plan = SlidePlan(
        job,
        slide.id,
        slide.sha256,
        slide.vendor,
        slide.size,
        slide.mpp,
        slide.mpp_source,
        slide.reader,
        mask.area_mm2,
        len(grid),
        grid.upsampled,
        mask.left_out_mm2,
        mask.remarks,
    )
    return plan, slide, grid, mask


def batch_tiles(settings: Settings, encoder: Encoder) -> int:
    """Tiles in one pass: as asked, or as many as keep the device busy."""
    return settings.embed.batch_tiles or min(encoder.batch_tiles, settings.embed.chunk_tiles)


def embed_recipe(sha256: str, mpp: tuple[float, float], reader: str, settings: Settings, encoder: Encoder) -> dict[str, Any]:
    """Everything that determines the stored features of a slide; `reader` is the one that was found to serve it."""
    steps = {name: STEP_VERSIONS[name] for name in ("tissue", "tiling", "embedding")}
    recipe = {
        "slide_sha256": sha256,
        "mpp": list(mpp),
        "reader": reader,
        "tissue": asdict(settings.tissue),
        "tiles": asdict(tile_spec(settings, encoder.record)),
        "encoder": {key: value for key, value in encoder.recipe().items() if key != "device"},
        "embed": {key: getattr(settings.embed, key) for key in ("chunk_tiles", "max_tiles", "reader")},
        "steps": steps,
    }
    return dict(json.loads(json.dumps(recipe)))  # as it will be read back


def fingerprint(path: Path, out: Path) -> tuple[str, FileState]:
    """Content SHA-256 of a slide, remembered by size, time and inode of its files; and these.

    Raises
    ------
    SlideOpenError : the file is being written to
    """
    check_file(path)
    state = file_state(path)
    note = fingerprint_note(path, out)
    before: list[str] = []
    if note.is_file():
        known = json.loads(note.read_bytes())
        if known["state"] == [list(file) for file in state]:
            return str(known["sha256"]), state
        before = [*known.get("before", []), known["sha256"]]
    digest = content_sha256(path)
    state = require_unchanged(path, state, digest)
    earlier = [old for old in dict.fromkeys(before) if old != digest]
    write_atomically(note, json.dumps({"state": state, "sha256": digest, "before": earlier}).encode())
    return digest, state


def superseded(out: Path) -> set[str]:
    """Digests of slides whose file has other content now: an answer for them is an older one of the same file."""
    notes = [json.loads(note.read_bytes()) for note in (out / ".fingerprints").glob("*.json")]
    current = {note["sha256"] for note in notes}
    return {old for note in notes for old in note.get("before", [])} - current


def fingerprint_note(path: Path, out: Path) -> Path:
    """Where the digest of a slide file is remembered; the path itself is not written down, for folders can name patients."""
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return out / ".fingerprints" / f"{name}.json"


def start_slide(
    job: SlideJob, out: Path, settings: Settings, encoder: Encoder, model: SlideModel | None, overwrite: bool
) -> SlidePlan:
    """Plan a slide and lay out its store; a slide that is done already is recognised without looking at its pixels.

    Raises
    ------
    SettingsError : the folder holds features of this slide made by another recipe, or the model needs other features
    SlideError : the slide cannot go on
    """
    sha256, state = fingerprint(job.path, out)
    folder = out / "slides" / slide_id(job.path, sha256)
    done = read_done(folder)
    if done is not None and not overwrite and (job.mpp is not None or done["slide"]["mpp_source"].startswith("metadata")):
        mpp = job.mpp or tuple(done["slide"]["mpp"])
        recipe = embed_recipe(sha256, mpp, done["slide"].get("reader", ""), settings, encoder)
        if done["recipe"] == recipe and products_exist(folder, done):
            if model is not None:
                model.check(recipe)
            same = done["finish_recipe"] == finish_recipe(settings, model, job)
            finished = same or (model is None and done["finish_recipe"] is not None)
            return SlidePlan(job, state=state, embedded=True, done=done if finished else None, **plan_fields(done))
    plan, slide, grid, mask = plan_slide(job, settings, encoder.record, sha256)
    with slide:
        store = FeatureStore(folder, job.path)
        recipe = embed_recipe(sha256, slide.mpp, slide.reader, settings, encoder)
        if model is not None:
            model.check(recipe)
        try:
            stored = None if overwrite else store.recipe()
        except StoreError:
            stored = None  # a damaged store is laid out anew
        if stored is not None and stored != recipe:
            raise SettingsError(
                f"{folder.name}: {out} holds features made by another recipe ({'; '.join(differing(stored, recipe)[:4])}). "
                "Choose another --out, or replace them with --overwrite."
            )
        if stored is None:
            attributes = _attributes(slide, grid, recipe, encoder) | {"tissue_downsample": list(mask.downsample)}
            store.create(grid, encoder.dim, settings.embed.chunk_tiles, attributes, mask.kinds())
        else:
            store.sweep()
    return replace(plan, tiles=store.shape()[0], state=state)


def _attributes(slide: Slide, grid: TileGrid, recipe: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    bounds = slide.bounds
    return {
        "pathovit": RESEARCH_USE,
        "slide_id": slide.id,
        "mpp_x": slide.mpp[0],
        "mpp_y": slide.mpp[1],
        "mpp_source": slide.mpp_source,
        "level0_size": list(slide.size),
        "bounds": [bounds.x, bounds.y, bounds.width, bounds.height],
        "has_bounds": slide.has_bounds,
        "unit": "level-0 pixels, top-left",
        "device": encoder.device.type,
        "recipe": recipe,
        **grid.describe(),
    }


def plan_fields(done: dict[str, Any]) -> dict[str, Any]:
    """The fields of a SlidePlan that slide.json remembers."""
    slide = done["slide"]
    names = ("slide_id", "sha256", "vendor", "mpp_source", "reader", "tissue_mm2", "tiles", "upsampled", "left_out_mm2")
    tuples = {name: tuple(slide[name]) for name in ("size", "mpp", "remarks")}
    return {**{name: slide[name] for name in names}, **tuples}


def make_embedder(encoder: Encoder, settings: Settings) -> Embedder:
    """Raises SettingsError where the device cannot decode, and was asked to."""
    from pathovit.embedding import Embedder
    from pathovit.readers.device_decoder import DeviceDecoder

    decoder = None
    if settings.embed.reader == "device":
        if encoder.compiled is not None:
            raise SettingsError(f"--reader device cannot feed --engine {encoder.engine}. Use --reader auto.")
        decoder = DeviceDecoder(encoder.device)
    return Embedder(encoder, settings.run.readers or worker_cores(), settings.run.read_timeout_s, decoder)


def embed_part(
    plan: SlidePlan, part: int, out: Path, settings: Settings, embedder: Embedder, on_batch: Callable[[int], None]
) -> list[Span]:
    """Embed one part of a slide: the chunks of it that are not committed yet. Returns when the device was at work for it."""
    embed = settings.embed
    store = FeatureStore(out / "slides" / plan.slide_id, plan.job.path)
    if store.recipe() != embed_recipe(plan.sha256, plan.mpp, plan.reader, settings, embedder.encoder):
        raise StoreError(
            plan.job.path, "its features are laid out for another recipe (another run, or a worker with another device)."
        )
    per_part = embed.part_tiles // embed.chunk_tiles
    chunks = range(part * per_part, min((part + 1) * per_part, -(-plan.tiles // embed.chunk_tiles)))
    committed = store.committed()
    todo = [chunk for chunk in chunks if chunk not in committed]
    on_batch(sum(min(embed.chunk_tiles, plan.tiles - chunk * embed.chunk_tiles) for chunk in chunks if chunk in committed))
    spans: list[Span] = []
    state = plan.state
    if todo:
        with (
            open_slide(plan.job.path, plan.mpp, plan.mpp_source, plan.sha256, settings.embed.reader) as slide,
            ThreadPoolExecutor(1, thread_name_prefix="writer") as writer,
        ):
            grid = stored_grid(slide, store, settings, embedder.encoder.record)
            writing: Future[None] | None = None
            size = batch_tiles(settings, embedder.encoder)
            stream = embedder.embed(
                slide, grid, todo, chunk_tiles=embed.chunk_tiles, batch_tiles=size, on_batch=on_batch, on_device=spans.append
            )
            with closing(stream):  # before the slide is
                for chunk, features, verdict in stream:
                    if writing:
                        writing.result()
                    state = require_unchanged(plan.job.path, state, plan.sha256)
                    writing = writer.submit(store.write_chunk, chunk, features, verdict)
            if writing:
                writing.result()
    return spans


def stored_grid(slide: Slide, store: FeatureStore, settings: Settings, record: EncoderRecord) -> TileGrid:
    """The grid that was laid when the store was made."""
    attributes = store.attributes()
    xy = store.grid_xy()
    return TileGrid(
        slide.id, tile_spec(settings, record), xy, np.ones(len(xy), np.float32), tuple(attributes["tile_l0"]),
        tuple(attributes["stride_l0"]), tuple(attributes["origin"]), attributes["read_level"], tuple(attributes["read_px"]),
        attributes["read_scale"], attributes["upsampled"], attributes["total_tiles"],
    )  # fmt: skip


def finish_recipe(settings: Settings, model: SlideModel | None, job: SlideJob) -> dict[str, Any]:
    """Everything, besides the features, that determines what is said of a slide."""
    steps = {name: STEP_VERSIONS[name] for name in ("aggregator", "heatmap")}
    recipe = {
        "model_sha256": model.sha256 if model else None,
        "answer": asdict(settings.answer),
        "heatmap": {**asdict(settings.heatmap), "model": None},
        "max_unreadable": settings.run.max_unreadable,
        "patient": job.patient,
        "label": job.label,
        "steps": steps,
    }
    return dict(json.loads(json.dumps(recipe)))


def finish_slide(plan: SlidePlan, out: Path, settings: Settings, model: SlideModel | None, seconds: float) -> dict[str, Any]:
    """Answer, heatmap and exports of an embedded slide; writes slide.json last and returns it."""
    folder = out / "slides" / plan.slide_id
    store = FeatureStore(folder, plan.job.path)
    slide = store.read(plan.slide_id)
    counts = {verdict.name.lower(): int((slide.verdict == verdict).sum()) for verdict in Verdict}
    bad = counts["missing"] + counts["unreadable"]
    if counts["pending"]:
        raise StoreError(plan.job.path, f"{counts['pending']} tiles were never read. Run the same command again.")
    if counts["ok"] == 0:
        raise StoreError(
            plan.job.path, f"not one of its {len(slide.verdict)} tiles could be read. The file is damaged; copy it again."
        )
    degraded = bad > settings.run.max_unreadable * len(slide.verdict)
    said = [f"{bad} of {len(slide.verdict)} tissue tiles could not be read" if bad else "", slide.trial, *plan.remarks]
    if plan.upsampled > 1:
        said.append(f"slide is {plan.upsampled:.3f} times coarser than the encoder's tiles (upsampled)")
    if model is not None:
        said += model.remarks(slide)
    reason = "; ".join(filter(None, said))
    done: dict[str, Any] = {
        "research_use": RESEARCH_USE,
        "slide": {
            **{key: value for key, value in asdict(plan).items() if key not in ("job", "state", "embedded", "done")},
            "file": plan.job.path.name,
            "patient": plan.job.patient,
            "label": plan.job.label,
        },
        "verdict": "degraded" if degraded else "ok",
        "reason": reason,
        "trial": slide.trial,
        "tiles": counts,
        "prediction": None,
        "heatmap_check": None,
        "seconds": round(seconds, 2),
        "recipe": slide.attributes["recipe"],
        "finish_recipe": None,
        "versions": versions(),
    }
    # From here on the features are vouched for, and products of another model are not mistaken for ours.
    _write_done(folder, done, [store.zarr_path])
    store.finish()
    if model is not None:
        from pathovit.overview import Kinds, Said, draw_products

        prediction = model.predict(slide, settings.answer.error_rate)
        done["prediction"] = {"model": model.name, **prediction.to_dict()}
        if slide.trial:
            done["prediction"]["headline"] += " (a trial)"
        if prediction.strange:
            strange = f"unlike the slides the model knows (novelty {prediction.novelty:.2f})"
            done["reason"] = reason = "; ".join(filter(None, [strange, reason]))
        if settings.heatmap.check:
            from pathovit.faithfulness import check_heatmap

            done["heatmap_check"] = check_heatmap(model, slide, prediction)
        kinds = Kinds(store.tissue(), tuple(slide.attributes["tissue_downsample"]))
        words = Said(done["prediction"]["headline"], f"DEGRADED: {reason}" if degraded else reason)
        done["top_tiles"] = draw_products(plan, folder, slide, prediction, kinds, settings, words)
    require_unchanged(plan.job.path, plan.state, plan.sha256)
    done["finish_recipe"] = finish_recipe(settings, model, plan.job)
    _write_done(folder, done, [folder])
    return done


def _write_done(folder: Path, done: dict[str, Any], roots: list[Path]) -> None:
    """slide.json with the digests of all files under the given folders."""
    files = sorted(p for root in roots for p in root.rglob("*") if p.is_file() and p != folder / DONE)
    done["products"] = {str(p.relative_to(folder)): file_digest(p) for p in files}
    write_atomically(folder / DONE, to_json(done))


def read_done(folder: Path) -> dict[str, Any] | None:
    """slide.json of a slide folder; None if there is none, or it is damaged, or speaks of another folder.

    Its finish_recipe is None until all is drawn.
    """
    try:
        done = dict(json.loads(tried_again((folder / DONE).read_bytes)))
    except (OSError, ValueError):
        return None
    return None if fault_of(folder, done) else done


def fault_of(folder: Path, done: dict[str, Any]) -> str:
    """Why a record is not read: it leads out of its own folder, or another version wrote it; nothing for a good one."""
    slide = done.get("slide", {})
    named = [*done.get("products", {}), *(tile.get("file", "") for tile in done.get("top_tiles", []))]
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in named)
    if not inside or slide.get("slide_id", folder.name) != folder.name:
        return f"its {DONE} leads out of its own folder, and is not read"
    if "finish_recipe" not in done or "trial" not in done or "left_out_mm2" not in slide:
        return f"its {DONE} was written by another version, and is not read: run it again"
    return ""


def products_exist(folder: Path, done: dict[str, Any]) -> bool:
    return all((folder / name).is_file() for name in done["products"])


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
    from pathovit.overview import score_layers

    settings = settings or Settings()
    out = Path(out)
    plan = start_slide(with_mpp(SlideJob(Path(path)), mpp), out, settings, encoder, model, overwrite=False)
    started = time.perf_counter()
    if not plan.embedded:
        with make_embedder(encoder, settings) as embedder:
            for part in range(plan.parts(settings.embed.part_tiles)):
                embed_part(plan, part, out, settings, embedder, lambda tiles: None)
    if plan.done is None:
        finish_slide(plan, out, settings, model, time.perf_counter() - started)
    slide = FeatureStore(out / "slides" / plan.slide_id, Path(path)).read(plan.slide_id)
    prediction = model.predict(slide, settings.answer.error_rate)
    return prediction, score_layers(slide, prediction)


def with_mpp(job: SlideJob, mpp: float | None) -> SlideJob:
    """The job with a pixel size given for all slides, unless it has its own."""
    return job if mpp is None or job.mpp is not None else replace(job, mpp=(mpp, mpp), mpp_source="option --mpp")
