"""Lessons: `pathovit teach` on what was painted, as a process of its own that the page starts and watches."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pathovit.outputs.folder import OutFolder

SUGGESTED = 12
LAST_LINES = 8


@dataclass
class Lesson:
    """One process at a time."""

    out: OutFolder
    model: Path
    ended: Callable[[dict[str, object]], None]  # what the model says of itself
    _process: subprocess.Popen[str] | None = None
    _began: float = 0.0
    _seconds: float = 0.0
    _lines: list[str] = field(default_factory=list)
    _code: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> bool:
        return self._process is not None and self._code is None

    def start(self, sources: list[Path], positive: str | None) -> bool:
        """Begin; False where one is going on."""
        with self._lock:
            if self.running:
                return False
            command = [
                sys.executable,
                "-m",
                "pathovit",
                "teach",
                str(self.out.path),
                *map(str, sources),
                "--model",
                str(self.model),
            ]
            command += ["--suggest", str(SUGGESTED), "--json", *(["--positive", positive] if positive else [])]
            self._lines, self._code, self._began = [], None, time.monotonic()
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
            )
            threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()
            return True

    def _watch(self, process: subprocess.Popen[str]) -> None:
        reading = threading.Thread(target=self._read_lines, args=(process,), daemon=True)
        reading.start()
        assert process.stdout
        told = process.stdout.read()
        code = process.wait()
        reading.join()
        taught: dict[str, object] = {}
        if code in (0, 3):
            taught = dict(json.loads(told)["taught"])
            self.ended(taught)
        with self._lock:
            self._code, self._seconds = code, time.monotonic() - self._began

    def _read_lines(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        for line in process.stderr:
            self._lines = [*self._lines, line.strip()][-LAST_LINES:]

    def to_json(self) -> dict[str, object]:
        seconds = time.monotonic() - self._began if self.running else self._seconds
        return {"running": self.running, "code": self._code, "seconds": round(seconds, 1), "lines": list(self._lines)}

    def stop(self) -> None:
        if self._process is not None and self._code is None:
            self._process.terminate()
