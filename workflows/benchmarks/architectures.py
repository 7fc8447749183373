"""Small networks from scratch on labelled tiles: positions learned or of sines, a hybrid beside pure transformers, Swin beside ViT at the same cost.

python workflows/benchmarks/architectures.py --train TABLE... --test TABLE --out FOLDER [--tiles 150 600 1500] [--seeds 3] [--views 9600]

Every network is trained on so many tiles of TRAIN, drawn by seed, for the same number of views (other stains, light, focus and
turns of them), and judged on TEST: AUROC, mean and range over seeds, beside milliseconds of a training step for each tile. ViT
and Swin are as wide as makes a step of theirs take as long as the other's (a step of the hybrid is said, not matched). Writes
architectures.json and architectures.md to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from sklearn.metrics import roc_auc_score
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from pathovit.encoders.build import make_model
from pathovit.encoders.names import known_record
from pathovit.encoders.pretrain.augment import altered, to_images, views
from pathovit.encoders.pretrain.fit import rate
from pathovit.machine import keep_freed_memory
from pathovit.study.labelled_tiles import find_tiles

SIDE, PATCH, BATCH, LEARNING_RATE = 96, 8, 32, 5e-4


def vit(positions: str) -> nn.Module:
    """A ViT over patches of 8 px, with its positions learned, fixed sines of both axes, or none."""
    network: Any = timm.models.vision_transformer.VisionTransformer(
        SIDE, PATCH, num_classes=1, embed_dim=144, depth=6, num_heads=3, pos_embed="none" if positions == "none" else "learn"
    )
    if positions == "sine":
        across = SIDE // PATCH
        sines = build_sincos2d_pos_embed([across, across], 144)
        network.pos_embed.data.copy_(torch.cat([torch.zeros(1, 144), sines])[None] * 0.5)
        network.pos_embed.requires_grad_(False)
    made: nn.Module = network
    return made


def swin() -> nn.Module:
    """A Swin over patches of 4 px in windows of 6."""
    made: nn.Module = timm.models.swin_transformer.SwinTransformer(
        SIDE, 4, num_classes=1, embed_dim=64, depths=(2, 2, 2), num_heads=(2, 4, 8), window_size=6
    )
    return made


def hybrid() -> nn.Module:
    """The bundled architecture: convolutions to stride 16, then transformer blocks."""
    record = known_record("reference")
    return nn.Sequential(make_model(record, SIDE), nn.Linear(record.dim, 1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ViT, positions learned": lambda: vit("learned"),
    "ViT, 2-D sines": lambda: vit("sine"),
    "ViT, no positions": lambda: vit("none"),
    "Swin": swin,
    "hybrid": hybrid,
}


def train(network: nn.Module, pixels: Tensor, truth: Tensor, seen: int) -> float:
    """Train for so many views; seconds of it."""
    groups = [{"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.05}, {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE)
    steps = seen // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    network.train()
    begun = time.perf_counter()
    for _ in range(steps):
        some = torch.randint(len(pixels), (BATCH,))
        images = views(altered(to_images(pixels[some])), SIDE, (0.7, 1.0)) * 2 - 1
        loss: Any = functional.binary_cross_entropy_with_logits(network(images)[:, 0], truth[some])
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return time.perf_counter() - begun


def judge(network: nn.Module, pixels: Tensor, truth: Tensor) -> float:
    with torch.inference_mode():
        logits = torch.cat([network.eval()(to_images(pixels[at : at + 64]) * 2 - 1)[:, 0] for at in range(0, len(pixels), 64)])
    return float(roc_auc_score(truth.numpy(), logits.numpy()))


def read(tables: list[Path]) -> tuple[Tensor, Tensor]:
    found = [find_tiles(table, "label", print) for table in tables]
    pixels = np.concatenate([tiles.pixels(SIDE, 1.0) for tiles in found])
    return torch.from_numpy(pixels), torch.from_numpy(np.concatenate([tiles.truth for tiles in found])).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiles", type=int, nargs="+", default=[150, 600, 1500])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", type=int, default=9600)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    pixels, truth = read(options.train)
    others, wanted = read(options.test)
    found: list[dict[str, Any]] = []
    heads = " | ".join(f"{count:,} tiles" for count in options.tiles)
    table = [f"| network | M parameters | ms a tile | {heads} |", f"|{'---|' * (3 + len(options.tiles))}"]
    print("\n".join(table), flush=True)
    for name in options.networks:
        cells, spent = [], []
        for count in options.tiles:
            scores = []
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                some = torch.from_numpy(np.random.default_rng(seed).permutation(len(pixels))[:count])
                network = NETWORKS[name]()
                spent.append(train(network, pixels[some], truth[some], options.views) / options.views)
                scores.append(judge(network, others, wanted))
                found.append(
                    {"network": name, "tiles": len(some), "seed": seed, "auroc": scores[-1], "seconds_a_tile": spent[-1]}
                )
            cells.append(f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})")
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        table.append(f"| {name} | {millions:.1f} | {1000 * np.median(spent):.1f} | {' | '.join(cells)} |")
        print(table[-1], flush=True)
        (options.out / "architectures.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "architectures.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
