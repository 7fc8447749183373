"""Time and memory of an aggregator over the number of tiles: forward pass and training step.

python workflows/benchmarks/aggregator_cost.py --out FOLDER [--tiles 1000 5000 20000 50000 150000] [--device cuda]

Each measurement is a process of its own: median of the runs after the first, and the peak memory of the whole process,
on a GPU that of its own. What takes more than --limit-s for one run is not measured at larger sizes. Writes cost.json and cost.png to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("slide_transformer", "transmil", "transformer", "abmil")
TILES = (1000, 5000, 20_000, 50_000, 150_000)
DIM, PITCH_UM, RUNS = 256, 96.0, 3
SAID = {"slide_transformer": "slide transformer", "transmil": "TransMIL", "transformer": "full attention", "abmil": "ABMIL"}


def measure(kind: str, tiles: int, training: bool, device: str) -> dict[str, float]:
    """Run in a process of its own."""
    import torch

    from pathovit.machine import keep_freed_memory
    from pathovit.model.baselines import make_aggregator
    from pathovit.settings import AggregatorConfig

    keep_freed_memory()
    torch.manual_seed(0)
    side = int(np.ceil(np.sqrt(tiles / 0.6)))  # six of ten places are tissue
    place = torch.randperm(side * side)[:tiles].sort().values
    xy_um = (torch.stack([place % side, place // side], -1).float() * PITCH_UM).to(device)
    features = torch.randn(tiles, DIM).half().to(device)
    network = make_aggregator(AggregatorConfig(DIM, 1, kind=kind)).to(device).train(training)
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        if training:
            network(features.float(), xy_um, PITCH_UM).logits.sum().backward()
            network.zero_grad()
        elif kind == "transmil":
            with torch.inference_mode():  # its answer alone: the attention it can show is an N x N matrix
                network.model(network.standardise(features)[None])
        else:
            with torch.inference_mode():
                network(features.float(), xy_um, PITCH_UM)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        if seconds[-1] > 60:
            break
    on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = on_host if device == "cpu" else torch.cuda.max_memory_allocated()
    return {"seconds": statistics.median(seconds[1:] or seconds), "peak_bytes": peak}


def slope(points: list[tuple[int, float]]) -> float:
    """Of the line through the points of 5,000 tiles and more, both axes logarithmic."""
    known = [(n, s) for n, s in points if n >= 5000]
    if len(known) < 2:
        return float("nan")
    return float(np.polyfit(np.log([n for n, _ in known]), np.log([s for _, s in known]), 1)[0])


def draw(path: Path, found: list[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    wanted = (("forward", "seconds", 1), ("training step", "seconds", 1), ("training step", "peak_bytes", 2**30))
    for axes, (what, key, unit) in zip(panels, wanted, strict=True):
        for kind in KINDS:
            points = [(f["tiles"], f[key] / unit) for f in found if f["kind"] == kind and f["what"] == what]
            if points:
                known = key == "seconds" and np.isfinite(slope(points))
                label = f"{SAID[kind]}, slope {slope(points):.2f}" if known else SAID[kind]
                axes.loglog(*zip(*points, strict=True), marker="o", label=label)
        axes.set(xlabel="tiles", ylabel="seconds" if key == "seconds" else "peak memory, GiB", title=what)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiles", type=int, nargs="+", default=list(TILES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--limit-s", type=float, default=120)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # kind, tiles, training: this very process measures
    options = parser.parse_args()
    if options.one:
        kind, tiles, training = options.one
        print(json.dumps(measure(kind, int(tiles), training == "1", options.device)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for kind in options.kinds:
        for training in (False, True):
            for tiles in options.tiles:
                command = [sys.executable, __file__, "--out", str(options.out), "--device", options.device]
                command += ["--one", kind, str(tiles), str(int(training))]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit_s * RUNS)
                except subprocess.TimeoutExpired:
                    print(f"{kind}, {tiles} tiles: more than {options.limit_s * RUNS:.0f} s", flush=True)
                    break
                if done.returncode:
                    print(f"{kind}, {tiles} tiles: stopped ({done.stderr.strip().splitlines()[-1:]})", flush=True)
                    break
                line = {
                    "kind": kind,
                    "what": "training step" if training else "forward",
                    "tiles": tiles,
                    **json.loads(done.stdout),
                }
                found.append(line)
                print(
                    f"{line['kind']:18} {line['what']:14} {tiles:7,} tiles  {line['seconds']:8.3f} s  {line['peak_bytes'] / 2**30:6.2f} GiB",
                    flush=True,
                )
                if line["seconds"] > options.limit_s:
                    break
    (options.out / "cost.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(options.out / "cost.png", found)


if __name__ == "__main__":
    main()
