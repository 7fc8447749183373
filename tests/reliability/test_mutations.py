"""Slide files with bytes changed anywhere: read, or refused with a code; never a crash, a hang, or four gigabytes."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import tifffile
from PIL import Image

from pathovit.errors import SlideError
from pathovit.settings import TissueSettings
from pathovit.slides.slide import open_slide
from pathovit.slides.tissue import find_tissue

MOST_BYTES, MOST_S = 4 * 2**30, 60
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "vendor"


def originals(folder: Path, maker: ModuleType) -> list[Path]:
    made = [maker.make_slide(folder, maker.SampleSpec(name="made", seed=1, size=(700, 700), tumour_fraction=0.3))]
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    for name, options in {
        "deflate.tif": {"compression": "zlib"},
        "lzw.tif": {"compression": "lzw", "predictor": True},
        "jpeg.tif": {"compression": "jpeg"},
    }.items():
        tifffile.imwrite(folder / name, pixels, tile=(256, 256), photometric="rgb", **options)
        made.append(folder / name)
    tifffile.imwrite(folder / "strips.tif", pixels, rowsperstrip=50, photometric="rgb", compression="zlib")
    Image.fromarray(pixels).save(folder / "flat.png")
    Image.fromarray(pixels).save(folder / "flat.jpg")
    found = [*made, folder / "strips.tif", folder / "flat.png", folder / "flat.jpg"]
    if SAMPLE.is_dir():
        found += [
            path
            for path in SAMPLE.rglob("*")
            if path.suffix in (".svs", ".tiff", ".tif", ".dcm") and path.stat().st_size < 3_000_000
        ]
    return found


def mutate(raw: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, set to zero, doubled or left out; half of the time near the beginning or the end, where directories lie."""
    changed = bytearray(raw)
    for _ in range(chance.choice([1, 1, 3, 10, 50])):
        near = chance.choice([len(changed), 512, -4096])
        at = (
            chance.randrange(max(1, min(near, len(changed))))
            if near > 0
            else chance.randrange(max(0, len(changed) + near), len(changed))
        )
        kind = chance.randrange(4)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + chance.randrange(1, 64)] = bytes(chance.randrange(1, 64))
        elif kind == 2:
            changed[at:at] = changed[at : at + 16]
        else:
            changed[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00", bytes(4)])
    return bytes(changed)


def read_all(path: Path) -> str:
    """What a worker does with a slide before it embeds it."""
    try:
        with open_slide(path, 0.5) as slide:
            find_tissue(slide, TissueSettings())
            for level in slide.levels:
                slide.read(level, 0, 0, 256, 256)
    except SlideError as error:
        return error.code
    except MemoryError:
        return "out_of_memory"  # a worker makes a SlideError of it
    return "read"


def try_all(given: list[Path], numbers: range) -> None:
    """Each file in a child of its own, forked from a process that has no threads; what came of it, as lines."""
    for number in numbers:
        original = given[number % len(given)]
        path = given[0].parent / f"changed{original.suffix}"
        path.write_bytes(mutate(original.read_bytes(), random.Random(number)))
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            signal.alarm(MOST_S)
            code = read_all(path)  # what it raises ends the child with a traceback
            print(number, original.name, code, flush=True)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended:
            print(number, original.name, f"FAULT: ended by {ended}", flush=True)


def test_a_changed_byte_anywhere_crashes_nothing(maker: ModuleType, tmp_path: Path, everything: bool) -> None:
    count = 2000 if everything else 60
    command = [sys.executable, __file__, str(count), *map(str, originals(tmp_path, maker))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert len(found) == count
    assert not [line for line in found if line[2].startswith("FAULT")], done.stderr
    codes = {line[2] for line in found}
    assert "read" in codes
    assert len(codes) > 3


if __name__ == "__main__":
    try_all([Path(name) for name in sys.argv[2:]], range(int(sys.argv[1])))
