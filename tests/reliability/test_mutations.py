"""Slide files with bytes changed anywhere: read, or refused with a code; never a crash, a hang, or four gigabytes."""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

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


def in_a_child(path: Path, told: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.alarm(MOST_S)
    told.put(read_all(path))


def test_a_changed_byte_anywhere_crashes_nothing(maker: ModuleType, tmp_path: Path, everything: bool) -> None:
    context = multiprocessing.get_context("fork")
    given = originals(tmp_path, maker)
    codes: dict[str, int] = {}
    for number in range(2000 if everything else 60):
        chance = random.Random(number)
        original = given[number % len(given)]
        path = tmp_path / f"changed{original.suffix}"
        path.write_bytes(mutate(original.read_bytes(), chance))
        told = context.Queue()
        child = context.Process(target=in_a_child, args=(path, told))
        child.start()
        child.join()
        assert child.exitcode == 0, f"{original.name}, number {number}: ended by {child.exitcode}"
        code = told.get(timeout=5)
        codes[code] = codes.get(code, 0) + 1
    assert codes["read"] > 0
    assert len(codes) > 3
    print(codes)
