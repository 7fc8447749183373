"""Runs that are interrupted, killed, or find others at work: nothing is lost, nobody is blamed."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import zarr
from command import PATHOVIT, pathovit
from made_runs import stored_bytes

from pathovit.cli import commands as _registered  # noqa: F401


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed_while_workers_start(slides: list[Path], tmp_path: Path, number: signal.Signals) -> None:
    command = [*PATHOVIT, "embed", str(slides[0]), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    said = ""
    while "starting workers" not in said and (line := process.stdout.readline()):
        said += line
    assert "starting workers" in said
    process.send_signal(number)
    begun = time.monotonic()
    said += process.communicate(timeout=30)[0]
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert time.monotonic() - begun < 20
    assert "Traceback" not in said
    assert "The same command goes on where it stopped" in said


def test_a_worker_that_is_killed_from_outside_costs_no_slide(slides: list[Path], tmp_path: Path) -> None:
    small_chunks(tmp_path)
    command = [*PATHOVIT, "embed", *map(str, slides[:1]), "--out", str(tmp_path / "out"), "--settings", str(tmp_path / "s.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list((tmp_path / "out").glob("slides/*/journal/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    command = psutil.Process(process.pid)
    workers = set(command.children(recursive=True)) - set(command.children())  # forked from a child of the command
    assert workers
    for worker in workers:
        worker.kill()
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "a worker was killed from outside (SIGKILL); the worker is replaced" in said


def start(slides: list[Path], out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [*PATHOVIT, "embed", *map(str, slides), "--out", str(out), "--settings", str(out.parent / "s.toml"), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def small_chunks(folder: Path) -> None:
    (folder / "s.toml").write_text("[embed]\nbatch_tiles = 8\nchunk_tiles = 16\npart_tiles = 32\n")


def embed_undisturbed(slides: list[Path], folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    small_chunks(folder)
    process = start(slides, folder / "out")
    assert process.wait(timeout=300) == 0
    return stored_bytes(folder / "out")


def require_same(calm: Path, out: Path, expected: dict[str, bytes]) -> None:
    """The same bytes; on CPUs whose products of single precision are rounded otherwise in every process, features that are that near."""
    found = stored_bytes(out)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert found == expected
        return
    assert found.keys() == expected.keys()
    for store in (calm / "slides").glob("*/features.zarr"):
        before, after = (zarr.open_group(base / "slides" / store.parent.name / "features.zarr", mode="r") for base in (calm, out))
        for name in ("xy", "coverage", "verdict"):
            assert np.array_equal(before[name][:], after[name][:]), name
        assert np.allclose(
            before["features"][:].astype(np.float32), after["features"][:].astype(np.float32), rtol=2e-3, atol=2e-3
        )


def test_a_run_killed_at_any_point_goes_on_to_the_same_bytes(slides: list[Path], tmp_path: Path) -> None:
    expected = embed_undisturbed(slides, tmp_path / "calm")
    chance = random.Random(0)
    (tmp_path / "wild").mkdir()
    small_chunks(tmp_path / "wild")
    out = tmp_path / "wild" / "out"
    for kill in range(3):
        process = start(slides, out)
        chunks = 2 + 6 * kill + chance.randrange(4)  # of the 40 or so there are
        while process.poll() is None and len(list(out.glob("slides/*/features.zarr/features/c/*/0"))) < chunks:
            time.sleep(0.01)
        assert process.poll() is None, "the run was over before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for half in (out / ".report.html.12345678.partial", out / ".fingerprints/.a.json.12345678.partial"):
        half.write_bytes(b"half")
    process = start(slides, out)
    assert process.wait(timeout=300) == 0
    require_same(tmp_path / "calm" / "out", out, expected)
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_soon_and_leaves_it_resumable(
    slides: list[Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    small_chunks(tmp_path)
    process = start(slides, tmp_path / "out")
    give_up = time.monotonic() + 120
    while not list((tmp_path / "out").glob("slides/*/journal/*.json")):  # until something is stored
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    record: dict[str, Any] = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["exit_code"] == code


def test_two_runs_do_not_share_a_folder(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = pathovit("embed", slides[0], "--out", out)
    assert done.returncode == 5
    assert "another run is writing here" in done.stderr


def test_nothing_listens_beyond_this_machine(slides: list[Path], tmp_path: Path) -> None:
    small_chunks(tmp_path)
    process = start(slides, tmp_path / "out")
    try:
        seen: set[str] = set()
        until = time.monotonic() + 120
        while (
            not list((tmp_path / "out").glob("slides/*/journal/*.json")) and process.poll() is None and time.monotonic() < until
        ):
            time.sleep(0.25)
            seen |= listening_addresses(process.pid)
        assert seen, "looked at until the first features were there"
        assert seen <= {"0100007F"}  # 127.0.0.1, as the kernel writes it
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listening_addresses(session: int) -> set[str]:
    """Addresses on which processes of a session listen, from /proc."""
    sockets: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                sockets |= {os.readlink(handle) for handle in (folder / "fd").iterdir() if os.path.islink(handle)}
        except OSError:
            continue  # ended meanwhile
    inodes = {name[8:-1] for name in sockets if name.startswith("socket:[")}
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}
