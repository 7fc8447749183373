"""Imports every command, which registers it."""

from pathovit.cli import bench, encoders, export, info, maintenance, predict, run, teach, train  # noqa: F401
