"""The same tiles, read by other packages; and the limits of the machine itself."""

from __future__ import annotations

import statistics
import subprocess
import sys

from pathovit.bench.timing import NAN, Measured, Taken, median
from pathovit.errors import SettingsError
from pathovit.machine import allowed_cores, pick_precision, use_threads
from pathovit.slides.slide import Slide
from pathovit.slides.tiling import TileGrid

# What reads a tile, for each package: given path, level, read_px of it, the tile's pixels and um, and corners (N, 2) of level 0.
# A package that reads in threads of its own says how it reads `all_tiles` instead.
PEERS = {
    "fastslide": """
from fastslide import FastSlide
slide = FastSlide.from_file_path(path)
read = lambda x, y: slide.read_region(slide.convert_level0_to_level_native(x, y, level), level, read_px).numpy()
""",
    "lazyslide": """
from wsidata import open_wsi
reader = open_wsi(path).reader
read = lambda x, y: reader.get_region(int(x), int(y), *read_px, level=level)
""",
    "microtome-wsi": """
import microtome
slide = microtome.open(path)
about = slide.levels[level]
def under(x, y):
    first = [int(at / about["downsample"] // about[side]) for at, side in ((x, "tile_width"), (y, "tile_height"))]
    last = [
        int((at / about["downsample"] + px - 1) // about[side]) for at, px, side in ((x, read_px[0], "tile_width"), (y, read_px[1], "tile_height"))
    ]
    return [row * about["tiles_across"] + column for row in range(first[1], last[1] + 1) for column in range(first[0], last[0] + 1)]
def all_tiles(threads):
    slide.read_batch(level, sorted({index for x, y in corners for index in under(x, y)}), threads)
""",
    "tiatoolbox": """
from tiatoolbox.wsicore.wsireader import WSIReader
reader = WSIReader.open(path)
read = lambda x, y: reader.read_rect((int(x), int(y)), (tile_px, tile_px), resolution=mpp, units="mpp")
""",
}
REMARKS = {"microtome-wsi": "stored tiles under the same tiles, as they lie in the file: it reads no other rectangles"}
PEER_TILES = 100


def measure_peer(package: str, slide: Slide, grid: TileGrid, threads: int, runs: int) -> list[Measured]:
    """The same tiles, read by another package, in a process of its own; by one thread, and by as many as ours."""
    if package not in PEERS:
        raise SettingsError(f"--against {package}: expected one of {', '.join(PEERS)}.")
    first = len(grid) // 4
    corners = grid.xy[first : first + PEER_TILES].tolist()
    script = f"""
import time
from concurrent.futures import ThreadPoolExecutor
path, corners, level, read_px = {str(slide.path)!r}, {corners!r}, {grid.read_level}, {grid.read_px!r}
tile_px, mpp = {grid.spec.tile_px}, {grid.spec.mpp}
def all_tiles(threads):
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda at: read(*at), corners))
{PEERS[package]}
for threads in {sorted({1, threads})}:
    all_tiles(threads)
    for _ in range({runs}):
        began, used = time.perf_counter(), time.process_time()
        all_tiles(threads)
        print("taken", threads, time.perf_counter() - began, time.process_time() - used)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SettingsError(f"--against {package}: it could not read these tiles ({last}). Is it installed here?")
    found: dict[int, list[tuple[float, float]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("taken"):
            _, number, *taken = line.split()
            found.setdefault(int(number), []).append((float(taken[0]), float(taken[1])))
    remark, lines = REMARKS.get(package, "the same tiles, its own reader"), []
    for count, times in found.items():
        seconds, core_s = (statistics.median(column) for column in zip(*times, strict=True))
        said = f"{remark}; {count} thread{'s' * (count > 1)}"
        lines.append(Taken(seconds, core_s, len(corners)).line(f"  beside it: {package}", said))
    return lines


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
        taken = median(multiply, runs)
        remark = f"{2 * side**3 * taken.rate / 1e9:,.0f} GFLOP/s, {str(dtype).removeprefix('torch.')}, {device}"
        lines.append(taken.line("  limit: matrix product", remark, NAN))
    return lines
