"""One run at a time writes to a folder, whoever begins when; the owner's death gives it free at once."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pathovit.errors import OutputInUseError
from pathovit.outputs.lease import LOCK, lease

PROCESSES = 4


RACER = """
import sys
from pathlib import Path
from pathovit.errors import OutputInUseError
from pathovit.outputs.lease import lease
for line in sys.stdin:
    try:
        with lease(Path(line.strip())):
            print("owner", flush=True)
            sys.stdin.readline()  # until all have tried
    except OutputInUseError:
        print("refused", flush=True)
        sys.stdin.readline()
"""


def test_of_several_that_begin_at_once_one_owns_the_folder(tmp_path: Path, everything: bool) -> None:
    pipe = subprocess.PIPE
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER], stdin=pipe, stdout=pipe, text=True, bufsize=1) for _ in range(PROCESSES)
    ]
    for race in range(100 if everything else 8):
        tell(racers, str(tmp_path / str(race)))
        said = sorted(racer.stdout.readline().strip() for racer in racers if racer.stdout)
        tell(racers, "all have tried")
        assert said == ["owner"] + ["refused"] * (PROCESSES - 1)
    for racer in racers:
        racer.communicate(timeout=60)


def tell(racers: list[subprocess.Popen[str]], line: str) -> None:
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(f"{line}\n")


def test_the_death_of_its_owner_gives_a_folder_free_at_once(tmp_path: Path) -> None:
    code = f"from pathlib import Path\nfrom pathovit.outputs.lease import lease\nimport time\nwith lease(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(OutputInUseError, match=rf'"process": {owner.pid}'), lease(tmp_path):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    begun = time.monotonic()
    with lease(tmp_path):
        assert time.monotonic() - begun < 3
    assert (tmp_path / LOCK).read_bytes() == b""


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_lock_is_as_open_as_the_users_mask_says(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with lease(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / LOCK).stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be a colleague")
def test_a_colleagues_lock_is_held_and_respected(tmp_path: Path) -> None:
    """Of one group: the folder is theirs together, and the lock was made by the other."""
    out = tmp_path / "out"
    with lease(out):
        pass
    for folder in (out, tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o777 if folder == out else 0o755)
    code = f"from pathlib import Path\nfrom pathovit.outputs.lease import lease\nimport fcntl, os\nos.setuid(65534)\nwith lease(Path({str(out)!r})):\n    print('held')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "held\n", done.stderr
    with lease(out):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another run is writing here" in done.stderr
