"""pathovit pretrain: an encoder of one's own slides, without labels."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathovit import RESEARCH_USE
from pathovit.cli import options
from pathovit.cli.app import app
from pathovit.errors import SettingsError

if TYPE_CHECKING:
    from torch import nn

    from pathovit.encoders.pretrain.backbone import Backbone
    from pathovit.encoders.record import EncoderRecord


@app.command()
@options.takes_slides("reader", "device", "precision")
def pretrain(
    asked: options.Asked,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the encoder: use it with --encoder FOLDER.")] = Path(
        "encoder"
    ),
    method: Annotated[
        str, typer.Option("--method", help="distil, from another encoder; dino or mae, from tiles alone.")
    ] = "distil",
    architecture: Annotated[
        str, typer.Option("--architecture", help="The bundled one, or an encoder or timm name.")
    ] = "reference",
    start: Annotated[
        str, typer.Option("--start", help="First weights: a .safetensors file, fetched (as `fetched`), or random.")
    ] = "random",
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="Encoder to learn from; NAME=FILE.safetensors for other weights.")
    ] = None,
    tile_px: Annotated[int | None, typer.Option("--tile-px", help="Tile side.  \\[default: the architecture's own]")] = None,
    tile_mpp: Annotated[
        list[float] | None, typer.Option("--tile-mpp", help="Resolutions of tiles.  \\[default: the architecture's own]")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Of learning.")] = 2000,
    batch_tiles: Annotated[int, typer.Option("--batch-tiles", help="Tiles in a step, on each device.")] = 32,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="At its height.  \\[default: 0.001; of dino 0.0005]")
    ] = None,
    probe: Annotated[
        Path | None, typer.Option("--probe", help="Labelled tiles, as of `pathovit probe`, to follow how good it is.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Train an encoder on tiles of slides, without labels. The same command goes on after an interruption, to the same weights.

    On several GPUs: torchrun --nproc-per-node 4 -m pathovit pretrain slides/ ...
    """
    from pathovit.encoders import known_record, load_encoder, write_encoder
    from pathovit.encoders.adapt import load_strictly
    from pathovit.encoders.build import for_side
    from pathovit.encoders.cache import require_unchanged
    from pathovit.encoders.names import with_weights
    from pathovit.encoders.pretrain.fit import LEARNING_RATES, PretrainSettings, claim_device, forget
    from pathovit.encoders.pretrain.fit import pretrain as fit
    from pathovit.encoders.pretrain.teacher import LOOK_TILES, TOLD_TILES
    from pathovit.encoders.pretrain.tiles import TileStream
    from pathovit.encoders.weights import find_weights, read_safetensors
    from pathovit.files import file_sha256, storage_errors, to_json, write_atomically
    from pathovit.machine import allowed_cores
    from pathovit.outputs.lease import lease
    from pathovit.study.figures import pretraining_picture

    sys.stderr.write(f"pathovit: {RESEARCH_USE}\n")
    if method == "distil" and not teacher:
        raise SettingsError("--method distil learns from another encoder: name it with --teacher.")
    if method != "distil" and teacher is not None:
        raise SettingsError(f"--teacher goes with --method distil: {method} learns from no other encoder.")
    settings = asked.settings()
    how = PretrainSettings(
        method,
        steps,
        batch_tiles,
        LEARNING_RATES.get(method) if learning_rate is None else learning_rate,
        seed=seed,
        device=settings.run.device,
        precision=settings.embed.precision,
    )
    record = known_record(architecture)
    side, mpps = tile_px or settings.tiles.tile_px or record.tile_px, tile_mpp or [settings.tiles.mpp or record.mpp]
    weights = None if start == "random" else find_weights(record, None if start == "fetched" else start)
    tensors = read_safetensors(weights) if weights else None
    if weights is not None:
        require_unchanged(record, weights, file_sha256(weights))
    claim_device()
    name, file = with_weights(teacher or "")
    taught_by = load_encoder(name, file, how.device, how.precision, side) if teacher else None
    made = replace(
        for_side(record, side), name=_name_of(out), mpp=mpps[0], mpps=tuple(mpps) if len(mpps) > 1 else (), hub="", files=(), revision="", sha256=None,
        gated=False, note=f"pretrained by {method}", licence=_licence(record, weights is not None, taught_by.record if taught_by else None),
    )  # fmt: skip
    jobs, scored = asked.jobs(), _scorer(probe, side, mpps[0])
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes, under torchrun, one writes
    with lease(out, "--out") if first else nullcontext():
        if (out / "encoder.json").exists():
            raise SettingsError(f"{out}: there is an encoder here already. Choose another --out.")
        stream = TileStream(jobs, side, mpps, settings, max(2, allowed_cores()), seed, options.note)
        options.note(
            f"{stream.tiles:,} tiles of {side} px on {stream.slides} slides; {steps * batch_tiles:,} views of them will be learned from"
            + (
                f"; the teacher is asked of {LOOK_TILES} tiles first, and then of {min(TOLD_TILES, steps * batch_tiles):,}"
                if taught_by
                else ""
            )
        )
        others = [stream.digest, taught_by.recipe() if taught_by else None, file_sha256(weights) if weights else None]
        known = hashlib.sha256(json.dumps(others).encode()).hexdigest()

        def begin(network: nn.Module) -> None:
            if tensors is not None and weights is not None:
                load_strictly(network, tensors, weights.name)

        checkpoint = out / ".pretrain.pt"
        try:
            found = fit(record, side, begin, stream, taught_by, how, known, checkpoint, _say, scored)
        finally:
            stream.close()
        if not first:
            return
        about = {
            "research_use": RESEARCH_USE,
            "settings": asdict(how),
            "slides": stream.slides,
            "tiles": stream.tiles,
            "history": found.history,
        }
        write_atomically(out / "pretrain.json", to_json(about))
        pretraining_picture(out / "pretrain.png", found.history, f"{method}, {architecture}: {stream.slides} slides")
        write_encoder(out, made, dict(found.backbone.network.state_dict()))
        forget(checkpoint)
    sys.stderr.write(f"Encoder: {out}   (use it with: pathovit embed SLIDES --encoder {out})\nPicture: {out / 'pretrain.png'}\n")


def _say(line: dict[str, float]) -> None:
    nearest = f", 20 nearest {line['nearest']:.3f}" if "nearest" in line else ""
    sys.stderr.write(f"step {line['step']:,}: loss {line['loss']:.4f}{nearest}, {line['tiles_per_s']:.0f} tiles/s\n")
    sys.stderr.flush()


def _scorer(table: Path | None, side: int, mpp: float) -> Callable[[Backbone], float | None] | None:
    """How well nearest neighbours of labelled tiles have their class; None where there are none."""
    if table is None:
        return None
    import torch

    from pathovit.encoders.pretrain.augment import to_images
    from pathovit.study.labelled_tiles import find_tiles
    from pathovit.study.probe import folds_of, nearest_score

    tiles = find_tiles(table, "label", options.note)
    folds_of(tiles, 0)  # before hours of work
    pixels = tiles.pixels(side, mpp)

    def score(backbone: Backbone) -> float | None:
        device = next(backbone.parameters()).device
        with torch.inference_mode():
            found = [
                backbone(to_images(torch.from_numpy(pixels[at : at + 32]).to(device))).float().cpu()
                for at in range(0, len(pixels), 32)
            ]
        return nearest_score(torch.cat(found).numpy(), tiles)

    return score


def _name_of(folder: Path) -> str:
    """A name that an encoder may have, after its folder's."""
    return re.sub(r"[^a-z0-9_.-]+", "-", folder.resolve().name.lower()).strip("-_.") or "encoder"


def _licence(record: EncoderRecord, started: bool, teacher: EncoderRecord | None) -> str:
    """Whose licences the weights come from."""
    parts = ["one's own"]
    if started:
        parts.append(f"begun with {record.name} ({record.licence})")
    if teacher is not None:
        parts.append(f"taught by {teacher.name} ({teacher.licence})")
    return ", ".join(parts)
