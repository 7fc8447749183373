"""How fast an encoder is alone, by engine and precision, and how far its features move from those of fp32.

python workflows/benchmarks/encoders.py SLIDE --out FOLDER [--encoders vit_small swin_tiny ...] [--weights FILE] [--tiles 96] [--runs 5]

Cosines are between features of the same real tiles: fp32 torch on averaged pixels against every other way. The row
"decoded smaller" differs in the pixels alone: JPEG decoded at half, quarter or eighth size. Random weights do for speed,
but cosines mean something with real ones only. Writes encoders.json and encoders.md to FOLDER.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.bench.steps import encode_alone
from pathovit.encoders import Encoder, load_encoder
from pathovit.machine import keep_freed_memory
from pathovit.settings import TileSpec, TissueSettings, fill_spec
from pathovit.slides.slide import open_slide
from pathovit.slides.tiling import lay_grid, read_tile
from pathovit.slides.tissue import find_tissue

ENCODERS = ["vit_small", "swin_tiny", "convnext_tiny", "vit_base"]


def read_tiles(path: Path, mpp: float | None, encoder: Encoder, count: int, scaled: bool) -> tuple[NDArray[np.uint8], int]:
    """Tiles spread over the tissue, (N, tile_px, tile_px, 3), and the scale they were decoded at."""
    with open_slide(path, mpp, sha256="0" * 64) as slide:
        spec = fill_spec(TileSpec(), encoder.tile_px, encoder.mpp)
        grid = lay_grid(slide, find_tissue(slide, TissueSettings()), spec, None, scaled)
        some = np.linspace(0, len(grid) - 1, count).astype(int)
        tiles = [tile for index in some if (tile := read_tile(slide, grid, int(index))) is not None]
    return np.stack(tiles), grid.read_scale


def embed(encoder: Encoder, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    size = encoder.batch_tiles
    return np.concatenate([encoder.embed(tiles[first : first + size]) for first in range(0, len(tiles), size)])


def tiles_per_second(encoder: Encoder, runs: int) -> float:
    side = encoder.tile_px
    return encode_alone(
        encoder, np.random.default_rng(0).integers(0, 256, (encoder.batch_tiles, side, side, 3), np.uint8), runs
    ).rate


def cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> dict[str, float]:
    both = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return {"cosine_mean": float(both.mean()), "cosine_worst": float(both.min())}


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    exact = load_encoder(name, options.weights, options.device, "fp32")
    whole, _ = read_tiles(options.slide, options.mpp, exact, options.tiles, scaled=False)
    smaller, scale = read_tiles(options.slide, options.mpp, exact, options.tiles, scaled=True)
    wanted = embed(exact, whole)
    lines = [{"encoder": name, "way": "torch fp32", "tiles_s": tiles_per_second(exact, options.runs)}]
    if scale > 1:
        lines.append({"encoder": name, "way": f"decoded smaller, 1/{scale}", **cosines(embed(exact, smaller), wanted)})
    ways = [("torch", "bf16")]
    if importlib.util.find_spec("openvino") and options.device == "cpu":
        ways += [("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]
    for engine, precision in ways:
        encoder = load_encoder(name, options.weights, options.device, precision, engine=engine)
        speed = tiles_per_second(encoder, options.runs)
        lines.append(
            {"encoder": name, "way": f"{engine} {precision}", "tiles_s": speed, **cosines(embed(encoder, whole), wanted)}
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--tiles", type=int, default=96)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    found: list[dict[str, Any]] = []
    table = ["| encoder | way | tiles/s | cosine to fp32, mean | worst tile |", "|---|---|---|---|---|"]
    for name in options.encoders:
        for line in measure(name, options):
            found.append(line)
            speed = f"{line['tiles_s']:,.1f}" if "tiles_s" in line else ""
            near = f"{line['cosine_mean']:.5f} | {line['cosine_worst']:.4f}" if "cosine_mean" in line else "1 | 1"
            table.append(f"| {name} | {line['way']} | {speed} | {near} |")
            print(table[-1], flush=True)
        (options.out / "encoders.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "encoders.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
