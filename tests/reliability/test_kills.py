"""`kill -9` of a whole run at any moment: it goes on to what it would have been, and nothing is left over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import zarr
from command import PATHOVIT

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.verify import verify


def begin(slides: list[Path], out: Path) -> subprocess.Popen[bytes]:
    command = [*PATHOVIT, "run", *map(str, slides), "--out", str(out), "--settings", str(out.parent / "s.toml")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def features_of(out: Path) -> dict[str, np.ndarray]:
    groups = {path.parent.name: zarr.open_group(path, mode="r") for path in out.glob("slides/*/features.zarr")}
    return {
        f"{name}/{array}": np.asarray(group[array][:])
        for name, group in groups.items()
        for array in ("features", "xy", "coverage", "verdict")
    }


def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same(slides: list[Path], tmp_path: Path, everything: bool) -> None:
    (tmp_path / "s.toml").write_text("[embed]\nbatch_tiles = 8\nchunk_tiles = 16\npart_tiles = 32\n")
    begun = time.monotonic()
    assert begin(slides, tmp_path / "calm").wait() == 0
    lasts = time.monotonic() - begun
    expected = features_of(tmp_path / "calm")
    chance, out = random.Random(0), tmp_path / "out-0"
    killed = 0
    for kill in range(kills := 50 if everything else 2):
        if kill % 5 == 4 or not everything:
            out = tmp_path / f"out-{kill}"
        process = begin(slides, out)
        time.sleep(chance.uniform(min(2, lasts / 2), lasts))
        killed += process.poll() is None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            assert process.poll() == 0
        process.wait()
    assert killed >= kills // 2
    for folder in sorted(tmp_path.glob("out-*")):
        assert begin(slides, folder).wait(timeout=300) == 0
        found = features_of(folder)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            if name.endswith("/features"):  # whose last bits depend on the process on some processors
                assert np.allclose(
                    found[name].astype(np.float32), values.astype(np.float32), rtol=2e-3, atol=2e-3, equal_nan=True
                ), name
            else:
                assert np.array_equal(found[name], values), name
        assert verify(OutFolder(folder)).faults == ()
        assert not list(folder.rglob("*.partial"))
    time.sleep(2)
    mine = str(tmp_path)
    assert not [
        process.pid for process in psutil.process_iter(["cmdline"]) if any(mine in word for word in process.info["cmdline"] or ())
    ]
