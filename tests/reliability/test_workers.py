"""Workers that hang, are stopped, or are killed: it is noticed and said, and no sound slide is blamed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from command import PATHOVIT, pathovit

from pathovit.run.watchdog import TOOK_TOO_LONG, Watchdog


def hang_for_ever(ended: threading.Event) -> None:
    ended.wait(20)


def be_busy(ended: threading.Event) -> None:
    while not ended.is_set():
        sum(range(1000))


@pytest.mark.parametrize(("work", "hangs"), [(hang_for_ever, True), (be_busy, False)])
def test_what_does_not_move_counts_as_hung_and_what_works_does_not(
    work: Callable[[threading.Event], None], hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr("pathovit.run.watchdog.os._exit", end)
    monkeypatch.setattr("pathovit.run.watchdog.POLL_S", 0.05)
    watchdog = Watchdog(60, "exit")
    threading.Timer(2.0, ended.set).start()
    with watchdog("a.svs", "planning it", idle_s=0.5):
        work(ended)
    watchdog.close()
    assert (codes[:1] == [TOOK_TOO_LONG]) == hangs


def test_what_is_busy_for_ever_has_a_limit_too() -> None:
    watchdog = Watchdog(0.2, "raise")
    with watchdog("a.svs", "planning it", idle_s=60):
        time.sleep(0.3)
        assert watchdog.overdue() == ("a.svs", "planning it took longer than 0.2 s")


def test_what_a_worker_died_of_is_known_where_it_died_at_once(slides: list[Path], tmp_path: Path) -> None:
    """Before the nanny has learned its worker's address, which it asks for from time to time: here every 4 s."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import distributed.nanny
from pathovit.run.folder import run_folder
from pathovit.settings import RunSettings, Settings
distributed.nanny.WorkerProcess._init_msg_interval = 4
done = run_folder({str(slides[0])!r}, {str(tmp_path / "out")!r}, settings=Settings(run=RunSettings(read_timeout_s=0.0001)))
print(*done.failures.values())
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert "reading it hung, twice" in done.stdout, done.stderr


def test_the_end_of_a_run_is_quiet_whatever_is_under_way(slides: list[Path], tmp_path: Path) -> None:
    """Its workers wait for the answer to a heartbeat, which here never comes."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import asyncio
from distributed import Scheduler
from pathovit.run.folder import run_folder

class Deaf(Scheduler):
    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.handlers["heartbeat_worker"] = self.wait

    async def wait(self, *given, **options):
        await asyncio.sleep(600)

import distributed
distributed.Scheduler = Deaf
print(len(run_folder({str(slides[0])!r}, {str(tmp_path / "out")!r}, progress=False).slides))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_run_clears_its_sockets_away(slides: list[Path], tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        command = [*PATHOVIT, "embed", slides[0], "--out", tmp_path / "out"]
        assert subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode == 0
        assert not list(Path(temporary).glob("pymp-*"))


def test_a_slide_may_take_so_long_and_no_longer(slides: list[Path], tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[run]\nslide_timeout_min = 0.0001\n")
    done = pathovit("embed", slides[0], "--out", tmp_path / "out", "--settings", tmp_path / "s.toml", "--json")
    assert done.returncode == 3, done.stderr
    (slide,) = json.loads(done.stdout)["slides"]
    assert slide["code"] == "timeout"
    assert "run.slide_timeout_min" in slide["reason"]


def workers_of(process: subprocess.Popen[str]) -> set[psutil.Process]:
    """Forked from a child of the command."""
    command = psutil.Process(process.pid)
    return set(command.children(recursive=True)) - set(command.children())


def begin(slides: list[Path], out: Path) -> subprocess.Popen[str]:
    (out.parent / "s.toml").write_text("[embed]\nbatch_tiles = 8\nchunk_tiles = 16\npart_tiles = 32\n")
    command = [*PATHOVIT, "embed", *map(str, slides), "--out", str(out), "--settings", str(out.parent / "s.toml")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_chunks(process: subprocess.Popen[str], out: Path, count: int) -> None:
    while len(list(out.glob("slides/*/features.zarr/features/c/*/0"))) < count:
        assert process.poll() is None
        time.sleep(0.02)


def test_a_worker_that_is_killed_again_and_again_costs_no_slide(slides: list[Path], tmp_path: Path, everything: bool) -> None:
    out = tmp_path / "out"
    process = begin(slides, out)
    chance = random.Random(0)
    for kill in range(3 if everything else 2):
        wait_for_chunks(process, out, 2 + 3 * kill + chance.randrange(2))
        for worker in workers_of(process):
            worker.kill()
        time.sleep(1.0)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert said.count("a worker was killed from outside (SIGKILL); the worker is replaced") >= 2


def test_a_worker_that_is_stopped_is_noticed_within_two_minutes(slides: list[Path], tmp_path: Path, everything: bool) -> None:
    if not everything:
        pytest.skip("takes a minute: make reliability")
    out = tmp_path / "out"
    process = begin(slides, out)
    wait_for_chunks(process, out, 2)
    for worker in workers_of(process):
        os.kill(worker.pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert process.stdout
    for line in process.stdout:
        if "did not answer" in line:
            break
    assert time.monotonic() - begun < 120
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
