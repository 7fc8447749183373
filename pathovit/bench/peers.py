"""The same tiles, read by other packages; and the limits of the machine itself."""

from __future__ import annotations

import statistics
import subprocess
import sys

from pathovit.bench.timing import Measured, median_s
from pathovit.errors import SettingsError
from pathovit.machine import allowed_cores, pick_precision, use_threads
from pathovit.slides.slide import Slide
from pathovit.slides.tiling import TileGrid

PEERS = {  # what reads one tile, for each package: given path, (N, 2) level-0 corners, level, its pixels, and the tile's
    "lazyslide": """
from wsidata import open_wsi
reader = open_wsi(path).reader
read = lambda x, y: reader.get_region(int(x), int(y), *read_px, level=level)
""",
    "tiatoolbox": """
from tiatoolbox.wsicore.wsireader import WSIReader
reader = WSIReader.open(path)
read = lambda x, y: reader.read_rect((int(x), int(y)), (tile_px, tile_px), resolution=mpp, units="mpp")
""",
}


def measure_peer(package: str, slide: Slide, grid: TileGrid, runs: int) -> list[Measured]:
    """The same tiles, read by another package, in a process of its own."""
    if package not in PEERS:
        raise SettingsError(f"--against {package}: expected one of {', '.join(PEERS)}.")
    first = len(grid) // 4
    corners = grid.xy[first : first + 100].tolist()
    script = f"""
import time
path, corners, level, read_px = {str(slide.path)!r}, {corners!r}, {grid.read_level}, {grid.read_px!r}
tile_px, mpp = {grid.spec.tile_px}, {grid.spec.mpp}
{PEERS[package]}
read(*corners[0])
for _ in range({runs}):
    began = time.perf_counter()
    for x, y in corners:
        read(x, y)
    print("seconds", time.perf_counter() - began)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SettingsError(f"--against {package}: it could not read these tiles ({last}). Is it installed here?")
    seconds = statistics.median(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds"))
    return [Measured(f"  beside it: {package}", len(corners) / seconds, seconds, "the same tiles, 1 thread, its own reader")]


def measure_machine(runs: int) -> list[Measured]:
    import torch  # late: the encoder is timed with its own loading of it

    lines = []
    use_threads(allowed_cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 2048
    fast = pick_precision("auto", torch.device(device))  # where nothing computes in bfloat16, a product takes minutes
    for dtype in dict.fromkeys((torch.float32, fast)):
        matrix = torch.ones((side, side), dtype=dtype, device=device)

        def multiply(matrix: torch.Tensor = matrix) -> int:
            for _ in range(4):
                matrix @ matrix
            if device == "cuda":
                torch.cuda.synchronize()
            return 4

        multiply()
        seconds, count = median_s(multiply, runs)
        remark = f"{2 * side**3 * count / seconds / 1e9:,.0f} GFLOP/s, {str(dtype).removeprefix('torch.')}, {device}"
        lines.append(Measured("  limit: matrix product", float("nan"), seconds, remark))
    return lines
