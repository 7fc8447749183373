"""A disk that fills up while a run writes to it: one line, exit 6, nothing lost; with more room the same command goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PATHOVIT

from pathovit.outputs.folder import OutFolder, Refused
from pathovit.outputs.verify import verify


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own. `mount -o remount,size=...` changes its size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = (
        os.geteuid() == 0
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode == 0
    )
    if not made:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


def run(slides: list[Path], out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PATHOVIT, "run", *map(str, slides), "--out", str(out)], capture_output=True, text=True, timeout=300)


def test_a_disk_that_fills_up_costs_nothing(slides: list[Path], small_disk: Path, everything: bool) -> None:
    needed, filled = 24_000, 0
    for number, kilobytes in enumerate(range(40, needed, needed // (20 if everything else 2))):
        out = small_disk / f"out-{number}"
        resize(small_disk, kilobytes)
        done = run(slides, out)
        full = [line for line in done.stderr.splitlines() if "the output cannot be written" in line]
        assert done.returncode == 6 or (done.returncode == 0 and not full), (kilobytes, done.stderr)
        if full:
            filled += 1
            assert len(full) == 1
            assert "the same command then goes on where it stopped" in full[0]
        assert "Traceback" not in done.stderr, done.stderr
        assert not [folder for folder in OutFolder(out).slides() if isinstance(folder.read(), Refused)]  # no torn record
        resize(small_disk, 200_000)
        again = run(slides, out)
        assert again.returncode == 0, again.stderr
        assert verify(OutFolder(out)).faults == ()
        subprocess.run(["rm", "-rf", str(out)], check=True)
    assert filled
