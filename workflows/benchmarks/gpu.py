"""A GPU machine in one command: encoders alone and end to end, share of the GPU's peak, cores that feed it, and JPEG
decoded by the cores beside JPEG decoded by the GPU.

python workflows/benchmarks/gpu.py SLIDES --out FOLDER --peak-tflops 989 [--encoders vit_small swin_tiny ...] [--readers 2 4 8 16]

Runs `pathovit bench` on the slides with random weights (speed does not depend on them), once per encoder and number of
reading threads, and once with `--reader device` (extra [gpu]). --peak-tflops is the GPU's dense bf16 peak as its maker
states it. Writes gpu.json and gpu.md to FOLDER. `--device cpu` tries the script itself on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ENCODERS = ("vit_small", "swin_tiny", "vit_large_patch16_224", "vit_giant_patch14_224")


def flops_per_tile(name: str) -> float:
    """Of one forward pass, a multiplication and an addition counted as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pathovit.encoders import known_record, make_model, pool_tokens

    record = known_record(name)
    with torch.device("meta"):
        model = make_model(record, record.tile_px).eval()
        with FlopCounterMode(display=False) as counter:
            pool_tokens(model, torch.empty(1, 3, record.tile_px, record.tile_px), record.pool)
    return float(counter.get_total_flops())


def bench(slides: list[str], *more: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "pathovit", "bench", *slides, "--weights", "random", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    steps: list[dict[str, Any]] = json.loads(done.stdout)["steps"]
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peak-tflops", type=float, required=True)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--readers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    table = [
        "| encoder | JPEG by | reading threads | encoder alone, tiles/s | share of peak | end to end, tiles/s | of encoder alone | device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for encoder in options.encoders:
        flops = flops_per_tile(encoder)
        for reader, readers in [*(("auto", count) for count in options.readers), ("device", options.readers[0])]:
            more = ["--encoder", encoder, "--reader", reader, "--readers", str(readers), "--runs", str(options.runs)]
            more += ["--device", options.device, *(["--mpp", str(options.mpp)] if options.mpp else [])]
            steps = bench(options.slides, *more)
            step = {line["step"].strip(): line for line in steps}
            alone, whole = step["encode alone"]["rate"], step["end to end"]["rate"]
            share = alone * flops / (options.peak_tflops * 1e12)
            line = {"encoder": encoder, "reader": reader, "readers": readers, "gflop_per_tile": flops / 1e9}
            found.append({**line, "share_of_peak": share, "steps": steps})
            busy = step["device busy"]["remark"]
            table.append(
                f"| {encoder} | {reader} | {readers} | {alone:,.0f} | {share:.1%} | {whole:,.0f} | {whole / alone:.1%} | busy {busy} |"
            )
            print(table[-1], flush=True)
            (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
            (options.out / "gpu.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
