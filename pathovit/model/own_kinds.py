"""Aggregators of one's own: what a program registers, and what another package brings. Needs no torch until one is made.

A package brings them by an entry point of the group "pathovit.aggregators": a class on the interface of `Aggregator`, under the
name that `--kind` takes. Workers and later sessions then know it, too; what `register_aggregator` is given lives as long as the program.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pathovit.errors import SettingsError
from pathovit.settings import AggregatorConfig

if TYPE_CHECKING:
    from pathovit.model.aggregator import Aggregator

GROUP = "pathovit.aggregators"
TAUGHT = "taught"  # kind of a model that was taught on painted tiles
NETWORKS = ("slide_transformer", "mean", "abmil", "clam_sb", "transformer", "transmil", TAUGHT)
Make = Callable[[AggregatorConfig], "Aggregator"]
_REGISTERED: dict[str, Make] = {}


def register_aggregator(name: str, make: Make) -> None:
    """Have `name` stand for an aggregator of one's own: for `train(kind=name)`, and for models that were trained with it.

    Parameters
    ----------
    make : a subclass of `pathovit.model.aggregator.Aggregator`, or any function from an `AggregatorConfig` to one. Its forward pass takes
        features (N, D), tile centres in micrometres from the first one's edge (N, 2), both float32, and the tiles' pitch, and returns `TileEvidence`: logits (C,), evidence (N, C),
        attention (N,) that sums to 1, and bias (C,), so that logits = sum(attention * evidence) + bias

    Raises
    ------
    SettingsError : the name is taken

    Examples
    --------
    >>> from pathovit.model.baselines import MeanPool
    >>> pathovit.register_aggregator("my_mean", MeanPool)
    """
    if name in NETWORKS:
        raise SettingsError(f"{name!r} is the name of an aggregator of pathovit. Choose another.")
    _REGISTERED[name] = make


def kinds_of_ones_own() -> list[str]:
    """Names that were registered, or that other packages bring."""
    return sorted({*_REGISTERED, *(entry.name for entry in entry_points(group=GROUP))})


def made_by(name: str) -> Make | None:
    """What makes the aggregator of a name; None where nobody knows it.

    Raises
    ------
    SettingsError : the package that brings it cannot be loaded
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            try:
                made: Make = entry.load()
            except (ImportError, AttributeError) as error:
                raise SettingsError(f"Aggregator {name!r}, which {entry.value} brings, cannot be loaded: {error!r}.") from error
            return made
    return None
