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

from pathovit.errors import PathovitError
from pathovit.outputs.folder import OutFolder

SUGGESTED = 12
LAST_LINES = 8


@dataclass
class Lesson:
    """One process at a time. It is made ready while somebody paints, for what it needs takes seconds to load."""

    out: OutFolder
    model: Path
    ended: Callable[[dict[str, object]], None]  # what the model says of itself
    _process: subprocess.Popen[str] | None = None
    _told: bool = False
    _began: float = 0.0
    _seconds: float = 0.0
    _lines: list[str] = field(default_factory=list)
    _code: int | None = None
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> bool:
        return self._told and self._code is None

    def make_ready(self) -> None:
        """Start a process that waits, if there is none."""
        with self._lock:
            self._make_ready()

    def _make_ready(self) -> None:
        if self.running or self._stopped or (self._process is not None and self._process.poll() is None):
            return
        command = [sys.executable, "-m", "pathovit", "teach", str(self.out.path), str(self.out.path), "--model", str(self.model)]
        command += ["--suggest", str(SUGGESTED), "--json", "--when-told"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._told = False

    def start(self, regions: Path, positive: str | None) -> bool:
        """Begin; False where a lesson is going on. Raises OSError where its process died."""
        with self._lock:
            if self.running:
                return False
            self._make_ready()
            process = self._process
            assert process and process.stdin
            process.stdin.write(json.dumps({"regions": str(regions), "positive": positive}) + "\n")
            process.stdin.flush()
            self._lines, self._code, self._began, self._told = [], None, time.monotonic(), True
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()
            return True

    def _watch(self, process: subprocess.Popen[str]) -> None:
        reading = threading.Thread(target=self._read_lines, args=(process,), daemon=True)
        reading.start()
        assert process.stdout
        told = process.stdout.read()
        code = process.wait()
        reading.join()
        try:
            if code in (0, 3):
                self.ended(dict(json.loads(told)["taught"]))
        except (ValueError, KeyError, TypeError, PathovitError) as error:
            self._lines, code = [*self._lines, f"What it learned could not be noted: {error}"], 1
        with self._lock:
            self._code, self._seconds = code, time.monotonic() - self._began
            self._make_ready()  # for the next one
            self._told = True  # the last lesson is what is shown until then

    def _read_lines(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        for line in process.stderr:
            self._lines = [*self._lines, line.strip()][-LAST_LINES:]

    def to_json(self) -> dict[str, object]:
        seconds = time.monotonic() - self._began if self.running else self._seconds
        return {"running": self.running, "code": self._code, "seconds": round(seconds, 1), "lines": list(self._lines)}

    def stop(self) -> None:
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
