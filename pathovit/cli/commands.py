"""Imports every command, which registers it."""

from pathovit.cli import audit, bench, encoders, export, info, maintenance, predict, review, robustness, run, teach, tissue, train  # noqa: F401
