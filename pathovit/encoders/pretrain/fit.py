"""Steps of a pretraining, one after the other; a killed one goes on to the same weights. On several devices under torchrun."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pathovit.encoders.build import UNFIT
from pathovit.encoders.encoder import Encoder
from pathovit.encoders.pretrain.augment import to_images
from pathovit.encoders.pretrain.backbone import Backbone, norms_of, settle
from pathovit.encoders.pretrain.methods import Dino, Distil, Mae, Method
from pathovit.encoders.pretrain.teacher import FAR, LOOK_TILES, Lessons, Teacher
from pathovit.encoders.pretrain.tiles import Draw, TileStream, fresh
from pathovit.encoders.record import EncoderRecord
from pathovit.errors import SettingsError
from pathovit.files import write_atomically
from pathovit.machine import keep_freed_memory, pick_device, pick_precision

LEARNING_RATES = {"distil": 1e-3, "dino": 5e-4, "mae": 1e-3}
FORMAT = 3  # of what is kept
SETTLE_TILES = 512  # from which batch norm learns mean and spread of tiles as they are
LOOKS = 20  # lines of the history
KEEP_S = 300  # of work that is lost when it is killed, at most
Line = dict[str, float]
State = Mapping[str, Any]


@dataclass(frozen=True)
class PretrainSettings:
    """How an encoder is trained without labels."""

    method: str = "distil"
    steps: int = 2000
    batch_tiles: int = 32
    learning_rate: float | None = None  # the method's own
    weight_decay: float = 0.04
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in LEARNING_RATES:
            raise SettingsError(f"--method {self.method!r}, expected {', '.join(LEARNING_RATES)}.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise SettingsError(f"--learning-rate is {self.learning_rate:g}, expected above 0.")
        if self.seed < 0:
            raise SettingsError(f"--seed is {self.seed}, expected 0 or more.")
        for name in ("steps", "batch_tiles"):
            if getattr(self, name) < 2:
                raise SettingsError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least 2.")


@dataclass(frozen=True)
class Pretrained:
    """What came of it."""

    backbone: Backbone
    history: list[Line]


def pretrain(
    record: EncoderRecord, side: int, start: Callable[[nn.Module], None], stream: TileStream, teacher: Encoder | None,
    settings: PretrainSettings, known: str, checkpoint: Path, on_line: Callable[[Line], None], score: Callable[[Backbone], float | None] | None,
) -> Pretrained:  # fmt: skip
    """Train a network on tiles of slides.

    Parameters
    ----------
    side : of the tiles
    start : gives the network its first weights; or leaves them to chance
    teacher : for distil
    known : digest of everything else that determines the weights: slides, teacher, start
    checkpoint : the same call goes on from it, and from what the teacher said, beside it. Both are left for `forget`.
    score : how good the network is at a moment, if that can be told

    Raises
    ------
    SettingsError : the method does not fit the network, or the loss is no longer a number
    """
    keep_freed_memory()
    with torch.random.fork_rng(), _together() as (rank, ranks):
        torch.manual_seed(settings.seed)
        device = pick_device(settings.device)
        backbone = Backbone(record, side)
        start(backbone.network)
        taught = Teacher(teacher) if teacher is not None and settings.method == "distil" else None
        method = _method(settings.method, backbone, taught).to(device)
        at_most = settings.learning_rate or LEARNING_RATES[settings.method]
        optimizer = torch.optim.AdamW(_groups(method, settings.weight_decay), at_most)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings.steps))
        state = {"method": method, "optimizer": optimizer, "schedule": schedule} | ({"teacher": taught} if taught else {})
        key = hashlib.sha256(
            json.dumps([FORMAT, asdict(settings), asdict(record), side, known, ranks], sort_keys=True).encode()
        ).hexdigest()
        begun = checkpoint.is_file()
        done, history, total = _restore(checkpoint, state, key, device)
        if taught and not begun:
            taught.look(stream.batch(FAR, fresh(FAR, LOOK_TILES)).pixels)
            if rank == 0:
                _keep(checkpoint, state, key, 0, [], 0.0)
        lessons = None
        if taught:
            folder = checkpoint.with_name(f"{checkpoint.name}.told-{key[:12]}")
            lessons = Lessons(taught, stream, folder, settings.steps, settings.batch_tiles, rank, ranks, settings.seed)

        def draws(step: int) -> list[Draw]:
            return lessons.draws(step) if lessons else fresh(step, settings.batch_tiles, rank)

        plain = _plain(stream, method.learned, settings.batch_tiles, device) if rank == 0 else []
        for line in history if rank == 0 else ():
            on_line(line)
        whole: nn.Module = DistributedDataParallel(method, find_unused_parameters=True) if ranks > 1 else method
        dtype = pick_precision(settings.precision, device)
        every = max(1, settings.steps // LOOKS)
        since = int(history[-1]["step"]) if history else 0
        timed, since_s = done, time.monotonic()  # step and moment from which speed is told
        kept = since_s
        for batch in stream.batches(done, settings.steps, draws):
            torch.manual_seed(settings.seed * FAR + batch.step * ranks + rank)
            method.train()
            told = [one.to(device) for one in lessons.said(batch)] if lessons else []
            images = to_images(torch.from_numpy(batch.pixels).to(device))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = whole(images, *told)
            loss.backward()
            nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step((batch.step + 1) / settings.steps)
            total += loss.item()
            step = batch.step + 1
            if not np.isfinite(total):
                raise SettingsError(f"Step {step}: the loss is no longer a number. Lower --learning-rate.")
            looked = step % every == 0 or step == settings.steps
            if looked and rank == 0:
                line = {
                    "step": step,
                    "loss": total / (step - since),
                    "learning_rate": float(schedule.get_last_lr()[0]),
                    "tiles_per_s": settings.batch_tiles * ranks * (step - timed) / (time.monotonic() - since_s),
                }
                if score is not None:
                    settle(method.learned, plain)
                    nearest = score(method.learned.eval())
                    line |= {} if nearest is None else {"nearest": nearest}
                history.append(line)
                on_line(history[-1])
            if looked:
                total, since, timed, since_s = 0.0, step, step, time.monotonic()
            if rank == 0 and (looked or time.monotonic() - kept > KEEP_S):
                _keep(checkpoint, state, key, step, history, total)
                kept = time.monotonic()
        settle(method.learned, plain)
        return Pretrained(method.learned.eval().cpu(), history)


def forget(checkpoint: Path) -> None:
    """Remove what a training has kept beside its encoder."""
    for told in checkpoint.parent.glob(f"{checkpoint.name}.told-*"):
        shutil.rmtree(told)
    checkpoint.unlink()


def _plain(stream: TileStream, backbone: Backbone, batch_tiles: int, device: torch.device) -> list[Tensor]:
    """Images as they are, to settle batch norm by; none where there is none."""
    if not norms_of(backbone):
        return []
    pixels = torch.from_numpy(stream.batch(FAR + 1, fresh(FAR + 1, SETTLE_TILES)).pixels)
    return [to_images(pixels[at : at + batch_tiles].to(device)) for at in range(0, SETTLE_TILES, batch_tiles)]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over the first twentieth, then down along a cosine."""
    warm = max(1, steps // 20)
    return (step + 1) / (warm + 1) if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _method(name: str, backbone: Backbone, teacher: Teacher | None) -> Method:
    if name == "distil":
        assert teacher is not None, "asked for before"
        return Distil(backbone, *teacher.dims)
    if name == "dino":
        return Dino(backbone, _local_side(backbone))
    return Mae(backbone)


def _local_side(backbone: Backbone) -> int:
    """About half the side, where the network sees several sizes; else the whole."""
    step = backbone.record.multiple_px
    half = max(step, backbone.side // 2 // step * step)
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, half, half))
    except UNFIT:
        return backbone.side
    return half


def _groups(method: nn.Module, weight_decay: float) -> list[Any]:
    """Parameters that decay, and vectors, which do not."""
    free = [p for p in method.parameters() if p.requires_grad]
    return [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
    ]


def claim_device() -> None:
    """Under torchrun the GPU of this process, before anything lies on one."""
    if torch.cuda.is_available() and (place := os.environ.get("LOCAL_RANK")):
        torch.cuda.set_device(int(place))


@contextlib.contextmanager
def _together() -> Iterator[tuple[int, int]]:
    """Rank, and how many there are: under torchrun several processes, with a device each, learn as one."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield 0, 1
        return
    claim_device()
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield torch.distributed.get_rank(), ranks
    finally:
        torch.distributed.destroy_process_group()


def _keep(path: Path, state: State, key: str, step: int, history: list[Line], total: float) -> None:
    """`total` : loss of the steps since the last line of the history"""
    buffer = io.BytesIO()
    parts = {name: part.state_dict() for name, part in state.items()}
    torch.save({"key": key, "step": step, "history": history, "total": total, **parts}, buffer)
    write_atomically(path, buffer.getvalue())


def _restore(path: Path, state: State, key: str, device: torch.device) -> tuple[int, list[Line], float]:
    """Put the state of a checkpoint back: steps that were done, their history, and the loss of those since its last line."""
    if not path.is_file():
        return 0, [], 0.0
    kept = torch.load(path, map_location=device, weights_only=True)
    if kept["key"] != key:
        raise SettingsError(
            f"{path.parent}: a pretraining by other settings or on other slides was begun there. Choose another --out, or remove {path.name}."
        )
    for name, part in state.items():
        part.load_state_dict(kept[name])
    return int(kept["step"]), list(kept["history"]), float(kept["total"])
