"""A signal at any moment: the promised exit code, a line, and no traceback."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pathovit.signals import CODES

# Sends a signal to its own process when a module is asked for, which is more exact than any clock.
CHILD = """
import os, signal, sys
at, number, *call = sys.argv[1:]
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            os.kill(os.getpid(), signal.Signals[number])
from pathovit.__main__ import main
sys.meta_path.insert(0, Hook())
sys.argv = ["pathovit", *call]
main()
"""


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    "module", ["typer", "pathovit.cli.run", "pathovit.run.folder", "numpy", "distributed", "pathovit.show.report"]
)
def test_a_signal_while_something_is_imported_ends_with_its_code(
    squares: Path, tmp_path: Path, number: signal.Signals, module: str
) -> None:
    call = [sys.executable, "-c", CHILD, module, number.name, "run", str(squares), "--out", str(tmp_path / "out")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == CODES[number], done.stderr
    assert "Traceback" not in done.stderr
    assert "stop" in done.stderr


def test_a_second_signal_ends_at_once_what_takes_long_to_close() -> None:
    child = (
        "import os, signal, time; from pathovit.signals import end_by_signals; end_by_signals()\n"
        "try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "finally:\n os.kill(os.getpid(), signal.SIGINT)\n time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=30)
    assert done.returncode == CODES[signal.SIGINT]
    assert done.stderr == "\npathovit: stopped.\n"
