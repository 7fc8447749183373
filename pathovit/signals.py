"""Signals that end a command, and with which exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}  # of a terminal, and of batch systems


def end_by_signals() -> None:
    """From here on a signal ends this process with its code and a line, not with a traceback; commands that can do better say so."""
    for number in CODES:
        signal.signal(number, _ended)


def _ended(number: int, frame: FrameType | None) -> None:
    for other in CODES:
        signal.signal(other, _ended_at_once)  # what is open is closed, unless that takes too long for whoever waits
    sys.stderr.write("\npathovit: stopped.\n")
    raise SystemExit(CODES[signal.Signals(number)])


def _ended_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(CODES[signal.Signals(number)])
