"""One field of tissue, three ways: tiles and a slide transformer, one input of a plain ViT, one input of a Swin. Time and memory of each.

python workflows/benchmarks/large_input.py --out FOLDER [--sides 1000 2000 4000] [--limit-s 1200]

Fields are squares of that many pixels, noise; networks have random weights, which change neither. Every line is a process of
its own: one pass in fp32 after a small one, seconds and the peak memory of the whole process. What takes longer than --limit-s is
stopped, and said. Sides are rounded to what a network can see. Writes large_input.json and large_input.md to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = ("tiles of 224 px, ViT-S/16, and the slide transformer", "one input, ViT-S/16", "one input, Swin-T")
TILE = 224


def measure(way: int, side: int) -> dict[str, Any]:
    """Run in a process of its own."""
    import numpy as np
    import torch

    from pathovit.encoders import load_encoder
    from pathovit.machine import keep_freed_memory
    from pathovit.model.baselines import make_aggregator
    from pathovit.settings import AggregatorConfig

    keep_freed_memory()
    chance = np.random.default_rng(0)
    if way == 0:
        encoder = load_encoder("vit_small", "random", "cpu", "fp32")
        across = side // TILE
        tiles = chance.integers(0, 256, (across * across, TILE, TILE, 3), np.uint8)
        network = make_aggregator(AggregatorConfig(encoder.dim, 1)).eval()
        place = torch.stack(torch.meshgrid(torch.arange(across), torch.arange(across), indexing="xy"), -1).reshape(-1, 2)
        encoder.embed(tiles[:8])
        begun = time.perf_counter()
        parts = [encoder.embed(tiles[at : at + encoder.batch_tiles]) for at in range(0, len(tiles), encoder.batch_tiles)]
        with torch.inference_mode():
            network(torch.from_numpy(np.concatenate(parts)), place.float() * TILE / 2, TILE / 2)
        seen, tokens = across * TILE, len(tiles) * (TILE // 16) ** 2
    else:
        step, name = ((16, "vit_small"), (TILE, "swin_tiny"))[way - 1]  # Swin: whole windows after three halvings
        seen = round(side / step) * step
        encoder = load_encoder(f"{name}:resample", "random", "cpu", "fp32", seen)
        field = chance.integers(0, 256, (1, seen, seen, 3), np.uint8)
        begun = time.perf_counter()
        encoder.embed(field)
        tokens = (seen // (16 if way == 1 else 4)) ** 2
    seconds = time.perf_counter() - begun
    return {
        "side": seen,
        "tokens": tokens,
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--limit-s", type=float, default=1200)
    parser.add_argument("--one", type=int, nargs=2, metavar=("WAY", "SIDE"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    table = ["| way | pixels | tokens | seconds | peak memory |", "|---|---|---|---|---|"]
    print("\n".join(table), flush=True)
    for side in options.sides:
        for way, said in enumerate(WAYS):
            call = [sys.executable, __file__, "--out", str(options.out), "--one", str(way), str(side)]
            try:
                done = subprocess.run(call, capture_output=True, text=True, timeout=options.limit_s)
            except subprocess.TimeoutExpired:
                line: dict[str, Any] = {"way": said, "side": side, "failed": f"more than {options.limit_s:.0f} s"}
            else:
                failed = f"ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
                line = {"way": said, **(json.loads(done.stdout) if done.returncode == 0 else {"side": side, "failed": failed})}
            found.append(line)
            figures = (
                f"{line['tokens']:,} | {line['seconds']:,.1f} | {line['peak_bytes'] / 2**30:.2f} GiB"
                if "tokens" in line
                else f" | {line['failed']} | "
            )
            table.append(f"| {said} | {line['side']:,} x {line['side']:,} | {figures} |")
            print(table[-1], flush=True)
    (options.out / "large_input.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "large_input.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
