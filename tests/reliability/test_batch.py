"""Sound slides among broken ones, in any order: each sound one comes out as it would alone, each broken one has its code."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import tifffile
from command import pathovit
from made_runs import rows_of
from PIL import Image

from pathovit import load_features

GREY = np.random.default_rng(0).integers(0, 256, (600, 600), np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (600, 600, 3), np.uint8)


def break_slides(folder: Path, sound: Path) -> dict[str, str]:
    """Broken slides in a folder, and the code of each."""
    content = sound.read_bytes()
    expected: dict[str, str] = {}

    def add(name: str, raw: bytes, code: str) -> None:
        (folder / name).write_bytes(raw)
        expected[name] = code

    for share in (1, 5, 20, 50, 80, 95, 99):
        add(f"cut{share}.svs", content[: len(content) * share // 100], "truncated")
    add("empty.svs", b"", "empty")
    add("zeros.svs", bytes(5000), "truncated")
    add("text.svs", b"not a slide at all\n" * 50, "not_a_slide")
    add("page.svs", b"<!doctype html><html>log in</html>", "not_a_slide")
    add("pointer.ndpi", b"version https://git-lfs.github.com/spec/v1\n", "not_a_slide")
    add("packed.tiff", gzip.compress(content), "not_a_slide")
    add("archive.svs", b"PK\x03\x04" + content[:500], "not_a_slide")
    add("paper.svs", b"%PDF-1.7\n", "not_a_slide")
    add("numbers.svs", b"\x89HDF\r\n\x1a\n", "not_a_slide")
    for name, options, pixels, code in (
        ("grey.tif", {"tile": (256, 256)}, GREY, "unsupported"),
        ("deep.tif", {"tile": (256, 256), "photometric": "rgb"}, RGB.astype(np.uint16), "unsupported"),
        ("no_mpp.tif", {"tile": (256, 256), "photometric": "rgb"}, RGB, "no_mpp"),
        (
            "coarse.tif",
            {"tile": (256, 256), "photometric": "rgb", "resolution": (1000, 1000), "resolutionunit": 3},
            RGB,
            "too_coarse",
        ),
        (
            "white.tif",
            {"tile": (256, 256), "photometric": "rgb", "resolution": (20000, 20000), "resolutionunit": 3},
            np.full_like(RGB, 245),
            "no_tissue",
        ),
    ):
        tifffile.imwrite(folder / name, pixels, **options)
        expected[name] = code
    Image.fromarray(RGB).save(folder / "flat.png")
    expected["flat.png"] = "no_mpp"
    for number in range(40 - len(expected)):
        chance = random.Random(number)
        raw = bytearray(content)
        at = chance.randrange(8, 64)
        raw[4:8] = (len(raw) - at).to_bytes(4, "little")  # its first directory is said to be where there is none
        add(f"directory{number}.svs", bytes(raw), "damaged")
    return expected


def test_sound_slides_among_broken_ones_come_out_as_they_would_alone(maker: ModuleType, tmp_path: Path, everything: bool) -> None:
    goods, orders = (200, 5) if everything else (6, 1)
    base = maker.make_slide(tmp_path, maker.SampleSpec(name="base", seed=1, size=(700, 700), tumour_fraction=0.3))
    sound = tmp_path / "sound"
    sound.mkdir()
    for number in range(goods):
        (sound / f"good{number:03d}.svs").write_bytes(base.read_bytes() + number.to_bytes(8, "little"))
    assert pathovit("embed", sound, "--out", tmp_path / "calm", timeout=3600).returncode == 0
    broken = tmp_path / "broken"
    broken.mkdir()
    expected = break_slides(broken, base)
    assert len(expected) == 40
    for order in range(orders):
        given = [*sound.iterdir(), *broken.iterdir()]
        random.Random(order).shuffle(given)
        out = tmp_path / f"out{order}"
        done = pathovit("embed", *given, "--out", out, timeout=3600)
        assert done.returncode == 3, done.stderr
        rows = {row["file"]: row for row in rows_of(out)}
        assert {name: rows[name]["code"] for name in expected} == expected
        assert all(rows[path.name]["verdict"] == "ok" for path in sound.iterdir())
        calms = list((tmp_path / "calm").glob("slides/*/features.json"))
        assert len(calms) == len(list(sound.iterdir()))
        for calm in calms:
            features, alone = (load_features(seal.parent).features for seal in (out / calm.relative_to(tmp_path / "calm"), calm))
            assert np.allclose(features.astype(np.float32), alone.astype(np.float32), rtol=2e-3, atol=2e-3, equal_nan=True)
            before, after = (json.loads(path.read_bytes())["files"] for path in (calm, out / calm.relative_to(tmp_path / "calm")))
            assert {name: digest for name, digest in after.items() if not name.startswith("features/c")} == {
                name: digest for name, digest in before.items() if not name.startswith("features/c")
            }
        shutil.rmtree(out)
