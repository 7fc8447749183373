"""The command line, as a user calls it: in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PATHOVIT = [sys.executable, "-c", "from pathovit.__main__ import main; main()"]


def pathovit(*arguments: object, timeout: float = 300, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PATHOVIT, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=cwd)
