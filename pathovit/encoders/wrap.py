"""A network or a function in Python as an `Encoder`."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.encoder import Encoder
from pathovit.encoders.own import digest_of
from pathovit.encoders.record import HALF, Colour, EncoderRecord
from pathovit.errors import SettingsError
from pathovit.machine import allowed_cores, pick_device

if TYPE_CHECKING:
    from torch import nn

Function = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def own_encoder(
    network: nn.Module | Function,
    name: str,
    *,
    mpp: float,
    tile_px: int,
    mean: Colour = HALF,
    std: Colour = HALF,
    device: str = "auto",
    version: str = "",
    licence: str = "one's own",
) -> Encoder:
    """A network or a function as an encoder, for `analyse_slide` and the like.

    Parameters
    ----------
    network : a torch network, (B, 3, H, W) float to (B, D), of colours less `mean`, by `std`; or any function from tiles
        (B, tile_px, tile_px, 3) uint8 to features (B, D)
    mpp : um per pixel of the tiles that it wants
    version : of a function, whose features are known by it; a network is known by its tensors

    Raises
    ------
    SettingsError : a function without a version, or what gives no features (B, D)

    Examples
    --------
    >>> mean = pathovit.own_encoder(lambda tiles: tiles.mean((1, 2)) / 255, "mean_colour", mpp=2.0, tile_px=64, version="1")
    >>> mean.embed(np.full((1, 64, 64, 3), 255, np.uint8)).tolist()
    [[1.0, 1.0, 1.0]]
    """
    import torch

    of_torch = isinstance(network, torch.nn.Module)
    if not of_torch and not version:
        raise SettingsError(f"Encoder {name!r}: give `version`, by which the features of this function are known.")
    blank = np.zeros((2, tile_px, tile_px, 3), np.uint8)
    digest = digest_of(network) if isinstance(network, torch.nn.Module) else hashlib.sha256(version.encode()).hexdigest()
    millions = sum(p.numel() for p in network.parameters()) / 1e6 if isinstance(network, torch.nn.Module) else 0.0
    record = EncoderRecord(
        name,
        "own",
        1,
        round(millions, 1),
        licence,
        "",
        tile_px=tile_px,
        mpp=mpp,
        mean=mean,
        std=std,
        pool="direct",
        multiple_px=1,
    )
    target = pick_device(device) if of_torch else torch.device("cpu")
    own = copy.deepcopy(network) if isinstance(network, torch.nn.Module) else torch.nn.Identity()  # which may be trained on
    model = own.eval().requires_grad_(False).to(target)
    compiled: Any = None if of_torch else lambda tiles: np.asarray(network(tiles), np.float32)
    engine = "torch" if of_torch else "python"
    made = Encoder(record, model, target, "float32", tile_px, tile_px, digest, allowed_cores(), engine, compiled)
    features = np.asarray(made.embed(blank))
    if features.ndim != 2 or len(features) != 2:
        raise SettingsError(f"Encoder {name!r}: it makes {features.shape} of two tiles, expected (2, D).")
    return dataclasses.replace(made, record=dataclasses.replace(record, dim=features.shape[1]))
