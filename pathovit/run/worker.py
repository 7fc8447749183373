"""Steps of a slide as they run inside a worker process: what they need is loaded once, and kept for the next ones."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathovit.encoders.spec import EncoderSpec, spec_at_sight
from pathovit.errors import InternalError, PathovitError, SettingsError, SlideError
from pathovit.files import take_retries
from pathovit.machine import give_back_memory, is_device_lost, keep_freed_memory, quiet_libraries, share_of, use_threads
from pathovit.model.card import KnownModel, know_model
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import SlideRecord
from pathovit.reasons import Code
from pathovit.run.plan import SlideJob, SlidePlan, Twin, plan_slide
from pathovit.run.watchdog import DEVICE_FAILED, STEP_READS, Watchdog
from pathovit.settings import Settings

if TYPE_CHECKING:
    from pathovit.model.slide_model import SlideModel
    from pathovit.run.device import Span
    from pathovit.run.embedder import Embedder

TOPIC = "pathovit-progress"
Message = Mapping[str, Any]  # slide: its index; tiles: embedded since the last one; said: a sentence
REPORT_EVERY_S = 0.5
SWITCH_S = 0.0003  # after which a thread that runs Python makes room for the device: it asks at every operation
IO_PAUSE_S = 1.0


@dataclass(frozen=True)
class Work:
    """What every step needs to know; sent along with it."""

    out: OutFolder
    settings: Settings
    weights_sha256: str  # of the encoder; with the model's, it keys what workers keep loaded
    model: str | None  # a model folder; None: features only
    model_sha256: str | None
    overwrite: bool

    def known_model(self) -> KnownModel | None:
        """Its model, as far as it is known without loading it. Raises SettingsError, as `require_model` does."""
        if self.model is None:
            return None
        known = know_model(self.model)
        self.require_model(known.sha256)
        return known

    def require_model(self, sha256: str) -> None:
        """Raises SettingsError where the model's folder holds another one than when the run began."""
        if sha256 != self.model_sha256:
            raise SettingsError(f"{self.model} on a worker is not the model of this machine. Give all machines the same files.")


@dataclass(frozen=True)
class Ok:
    """What a step returned."""

    value: Any
    retries: int = field(
        default=0, compare=False
    )  # reads and writes that had to be done again, in this process since the last step ended


@dataclass(frozen=True)
class Failed:
    """Why a step did not end: errors are results here, only a death is an event."""

    error: PathovitError
    device_lost: bool = field(default=False, compare=False)
    retries: int = field(default=0, compare=False)


class Kept:
    """What this worker has loaded: one embedder and one model. Steps run side by side, and the first of them loads."""

    def __init__(self, workers: int) -> None:
        """`workers` : that share this machine"""
        quiet_libraries()
        self.cores = share_of(workers)
        sys.setswitchinterval(SWITCH_S)
        self._lock = threading.Lock()
        self._embedder: tuple[tuple[Settings, str], Embedder] | None = None
        self._loading: tuple[Settings, str] | None = None
        self._model: tuple[tuple[str, str | None], SlideModel] | None = None

    def spec(self, work: Work) -> EncoderSpec:
        """What the encoder is; it is loaded beside what is planned with that, where it can be told before."""
        spec = spec_at_sight(work.settings, work.weights_sha256)
        if spec is None:
            return self.embedder(work).encoder.spec
        key = work.settings, work.weights_sha256
        if self._loading != key:
            self._loading = key
            threading.Thread(target=self._load_ahead, args=(work,), daemon=True, name="loading").start()
        return spec

    def _load_ahead(self, work: Work) -> None:
        with suppress(Exception):  # the first step that needs it tries again, and fails with it
            self.embedder(work)

    def embedder(self, work: Work) -> Embedder:
        with self._lock:
            key = work.settings, work.weights_sha256
            if self._embedder is None or self._embedder[0] != key:
                self._embedder = None  # before the next takes its memory
                self._embedder = key, self._load_embedder(work)
            return self._embedder[1]

    def _load_embedder(self, work: Work) -> Embedder:
        from pathovit.encoders.load import load_encoder
        from pathovit.run.embed import batch_tiles, make_embedder

        keep_freed_memory()
        settings, embed = work.settings, work.settings.embed
        encoder = load_encoder(
            embed.encoder, embed.weights, settings.run.device, embed.precision, settings.tiles.tile_px, embed.engine, self.cores
        )
        if encoder.weights_sha256 != work.weights_sha256:
            raise SettingsError(
                f"The weights of {embed.encoder!r} on a worker are not those of this machine. Give all machines the same files."
            )
        batch_tiles(settings, encoder)  # which a GPU has to find out, and not while it is at work
        return make_embedder(encoder, settings, on_hang="exit")

    def model(self, work: Work) -> SlideModel | None:
        from pathovit.model.slide_model import load_model

        if work.model is None:
            return None
        with self._lock:
            key = work.model, work.model_sha256
            if self._model is None or self._model[0] != key:
                model = load_model(work.model)
                work.require_model(model.sha256)
                self._model = key, model
            return self._model[1]


@cache
def kept() -> Kept:
    """Of this process, which its nanny told how many workers share the machine."""
    return Kept(int(os.environ.get("PATHOVIT_WORKERS", "1")))


def start(index: int, job: SlideJob, given: frozenset[str], work: Work) -> SlidePlan | Twin:
    spec, model = kept().spec(work), work.known_model()
    with _limited(job.path, work):
        plan = plan_slide(job, work.out, work.settings, spec, model, work.overwrite, given)
    give_back_memory()
    return plan


def embed(index: int, plan: SlidePlan, part: int, work: Work) -> list[Span]:
    from pathovit.run.embed import embed_part

    pending: dict[str, float] = {}
    embedder = kept().embedder(work)
    spans = embed_part(plan, part, work.out, work.settings, embedder, lambda tiles: _report(index, tiles, pending))
    for said in embedder.remarks():
        _tell({"slide": index, "tiles": 0, "said": said})
    return spans


def finish(index: int, plan: SlidePlan, work: Work) -> SlideRecord:
    from pathovit.run.finish import finish_slide

    use_threads(kept().cores)  # of this thread: those of the device have theirs
    model = kept().model(work)
    with _limited(plan.job.path, work):
        done = finish_slide(plan, work.out, work.settings, model)
    give_back_memory()
    return done


@contextmanager
def _limited(path: Path, work: Work) -> Iterator[None]:
    """Planning and finishing read whole slides: they get as long as many tiles, unless nothing moves."""
    one_read = work.settings.run.read_timeout_s
    watchdog = Watchdog(STEP_READS * one_read, "exit")
    try:
        with watchdog(path.name, "planning or finishing it", idle_s=one_read):
            yield
    finally:
        watchdog.close()


def _tell(message: Message) -> None:
    """The scheduler's side of something."""
    from distributed import get_worker

    get_worker().log_event(TOPIC, message)


def _report(slide: int, tiles: int, pending: dict[str, float]) -> None:
    """Tell the scheduler's side about progress, a few times a second."""
    pending["tiles"] = pending.get("tiles", 0) + tiles
    now = time.monotonic()
    if now - pending.get("at", 0.0) >= REPORT_EVERY_S:
        _tell({"slide": slide, "tiles": int(pending["tiles"])})
        pending.update(tiles=0, at=now)


def in_worker(step: Callable[..., Any], path: Path, *arguments: Any) -> Ok | Failed:
    """As `guarded`, in a process that may end itself, and that is asked again."""
    done = guarded(step, path, *arguments)
    if (
        isinstance(done, Failed) and done.device_lost
    ):  # nothing that this process begins on it will end well: its nanny starts another
        sys.stderr.write(f"pathovit: {done.error}\n")
        sys.stderr.flush()
        os._exit(DEVICE_FAILED)
    if isinstance(done, Failed) and done.error.code == Code.IO_ERROR:
        time.sleep(IO_PAUSE_S)  # before the drive is asked again
    return replace(done, retries=take_retries())


def guarded(step: Callable[..., Any], path: Path, *arguments: Any) -> Ok | Failed:
    """A step's result, or its error as a value."""
    try:
        return Ok(step(*arguments))
    except PathovitError as error:
        return Failed(error)
    except MemoryError as error:
        return Failed(
            SlideError(
                path, f"it needs more memory than there is ({error}). Look whether its pixel size is true.", Code.OUT_OF_MEMORY
            )
        )
    except Exception as error:  # a fault of ours: this slide fails with it, and the exit code says so
        fault = InternalError(f"internal error: {error!r}\n{traceback.format_exc()}")
        return Failed(fault, device_lost=is_device_lost(error))
