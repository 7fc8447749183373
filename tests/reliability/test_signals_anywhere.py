"""Signals at any point of a run: the promised code within ten seconds, no traceback, a closed record; the same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from command import PATHOVIT

from pathovit.outputs.folder import OutFolder
from pathovit.outputs.verify import verify
from pathovit.signals import CODES

SOON_S = 10.0


def begin(slides: list[Path], out: Path) -> subprocess.Popen[str]:
    """With a folder for temporary files that is deeper than a socket's path may be."""
    command = [*PATHOVIT, "run", *map(str, slides), "--out", str(out)]
    temporary = out.parent / "temporary" / ("deep" * 25)
    temporary.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_signal_at_any_point_ends_a_run_as_promised(slides: list[Path], tmp_path: Path, everything: bool) -> None:
    begun = time.monotonic()
    assert begin(slides, tmp_path / "calm").wait() == 0
    lasts = time.monotonic() - begun
    chance, out = random.Random(0), tmp_path / "out"
    points = 40 if everything else 4
    for number in range(points):
        if number % 8 == 0:
            out = tmp_path / f"out-{number}"  # begin anew now and then: what is done is done soon
        sent = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1][number % 3]
        process = begin(slides, out)
        time.sleep(0.15 + chance.random() * lasts * 0.95)
        over = process.poll() is not None
        process.send_signal(sent)
        begun = time.monotonic()
        said = process.communicate(timeout=60)[0]
        assert time.monotonic() - begun < SOON_S, said
        assert process.returncode == CODES[sent] or ((over or "slides done in" in said) and process.returncode == 0), (sent, said)
        assert "Traceback" not in said, said
        assert "Warning" not in said, said
        if (out / "run.json").is_file():
            assert json.loads((out / "run.json").read_bytes())["exit_code"] in (0, *CODES.values()), said
    for folder in tmp_path.glob("out-*"):
        done = begin(slides, folder)
        said = done.communicate(timeout=120)[0]
        assert done.returncode == 0, said
        assert verify(OutFolder(folder)).faults == ()
