"""Encoders where there is no GPU: tiles a second on one core and on two, size on disk, and how far features move, by engine and precision.

python workflows/benchmarks/edge.py SLIDE --out FOLDER [--encoders vit_base swin_tiny dinov2_small=FILE ...] [--cores 1 2] [--tiles 64] [--runs 3] [--without torch-bf16]

Every line is a process of its own, bound to its cores. Cosines are between features of the same real tiles, beside torch in
fp32; with random weights they say that the arithmetic is right, and little about trained ones. Calibrated (int8 of ONNX) on
other tiles of the slide. Writes edge.json and edge.md to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from encoders import cosines, embed, read_tiles, tiles_per_second
from numpy.typing import NDArray

from pathovit.encoders import Encoder, load_encoder
from pathovit.encoders.onnx_graph import FEWEST_TILES, export_onnx
from pathovit.machine import keep_freed_memory, use_threads

Pixels = NDArray[np.uint8]
WAYS = [
    *(("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")),
    *(("onnxruntime", "fp32"), ("onnxruntime", "int8")),
]


def of_onnx(plain: Encoder, graph: Path, cores: int) -> Encoder:
    """The encoder, run by ONNX Runtime."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = cores
    session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return replace(plain, engine="onnxruntime", cores=1, compiled=lambda tiles: session.run(None, {"tiles": tiles})[0])


def one(
    name: str, weights: str | None, way: tuple[str, str], cores: int, graph: Path, seen: Pixels, runs: int
) -> tuple[float, Any]:
    """Tiles a second, and features of `seen`, in a process that has so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    keep_freed_memory()
    use_threads(cores)
    engine, precision = way
    if engine == "onnxruntime":
        encoder = of_onnx(load_encoder(name, weights, "cpu", "fp32"), graph, cores)
    else:
        encoder = load_encoder(name, weights, "cpu", precision, engine=engine, cores=cores)
    return tiles_per_second(encoder, runs), embed(encoder, seen)


def measure(given: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    name, _, file = given.partition("=")
    weights = file or ("random" if name != "reference" else None)
    exact = load_encoder(name, weights, "cpu", "fp32")
    pixels, _ = read_tiles(options.slide, options.mpp, exact, options.tiles + FEWEST_TILES * 4, scaled=False)
    seen, shown = pixels[: options.tiles], pixels[options.tiles :]
    wanted = embed(exact, seen)
    for engine, precision in WAYS:
        if f"{engine}-{precision}" in options.without:
            continue
        graph = options.out / f"{name}-{precision}.onnx"
        size = sum(tensor.nbytes for tensor in exact.model.state_dict().values()) / (2 if precision == "bf16" else 1)
        if engine == "onnxruntime":
            export_onnx(exact, graph, precision, shown)
            size = graph.stat().st_size
        elif precision == "int8":
            size = float("nan")  # made in memory
        line = {
            "encoder": name,
            "weights": file or ("random" if weights else "bundled"),
            "way": f"{engine} {precision}",
            "megabytes": size / 1e6,
        }
        for cores in options.cores:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                speed, found = alone.submit(one, name, weights, (engine, precision), cores, graph, seen, options.runs).result()
            line |= {f"tiles_s_{cores}": speed, **cosines(found, wanted)}
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", default=["vit_base", "swin_tiny", "efficientnet_b0", "reference"])
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--without", nargs="*", default=[], help="ways that take hours here, as torch-bf16 on a CPU without such arithmetic"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    heads = [f"tiles/s on {cores} core{'s' if cores > 1 else ''}" for cores in options.cores]
    table = [
        f"| encoder | weights | way | {' | '.join(heads)} | MB | cosine, mean | worst tile |",
        f"|{'---|' * (6 + len(heads))}",
    ]
    print("\n".join(table), flush=True)
    for given in options.encoders:
        for line in measure(given, options):
            found.append(line)
            speeds = " | ".join(f"{line[f'tiles_s_{cores}']:,.1f}" for cores in options.cores)
            size = "in memory" if np.isnan(line["megabytes"]) else f"{line['megabytes']:,.1f}"
            near = f"{line['cosine_mean']:.4f} | {line['cosine_worst']:.4f}"
            table.append(f"| {line['encoder']} | {Path(line['weights']).name} | {line['way']} | {speeds} | {size} | {near} |")
            print(table[-1], flush=True)
            (options.out / "edge.json").write_text(
                json.dumps(
                    [{**line, "megabytes": None if np.isnan(line["megabytes"]) else line["megabytes"]} for line in found],
                    indent=1,
                )
                + "\n"
            )
            (options.out / "edge.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
