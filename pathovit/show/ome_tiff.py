"""heatmap.ome.tiff: float32 layers with a pyramid, pixel size in micrometres, NaN where nothing was read."""

from __future__ import annotations

import hashlib
import io
import uuid
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.errors import StoreError
from pathovit.files import open_patiently, write_atomically
from pathovit.show.heatmap import Heatmap
from pathovit.text import plain

TILE_PX = 256
SMALLEST_PX = 32  # the pyramid ends when the longer side is below twice this


def write_ome_tiff(path: Path, heatmap: Heatmap, trial: str = "") -> None:
    """Write a heatmap; `trial` says so if it is one. Its first pixel begins at the corner of the scanned bounds, where QuPath's view begins."""
    import tifffile

    names = [*heatmap.names, "unread"]
    pyramid = [np.concatenate([heatmap.layers, heatmap.unread[None].astype(np.float32)])]
    while max(pyramid[-1].shape[1:]) >= 2 * SMALLEST_PX:
        pyramid.append(halve(pyramid[-1]))
    width_um, height_um = heatmap.cell_um
    layers = len(names)
    metadata = {
        "axes": "CYX",
        "UUID": f"urn:uuid:{_identity(pyramid[0])}",
        "Name": "pathovit heatmap",
        "Description": f"{RESEARCH_USE} {trial and f'This is {trial}. '}Level-0 origin {heatmap.origin}, cell {heatmap.cell_l0} level-0 pixels.",
        "PhysicalSizeX": width_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": height_um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": [plain(name) for name in names]},  # XML takes no control characters
        "Plane": {
            "PositionX": [heatmap.origin[0] * heatmap.mpp[0]] * layers,
            "PositionXUnit": ["µm"] * layers,
            "PositionY": [heatmap.origin[1] * heatmap.mpp[1]] * layers,
            "PositionYUnit": ["µm"] * layers,
        },
    }
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True, bigtiff=False) as tiff:
        options = {"tile": (TILE_PX, TILE_PX), "compression": "zlib", "photometric": "minisblack"}
        for index, image in enumerate(pyramid):
            scale = 2**index
            tiff.write(
                image,
                subifds=len(pyramid) - 1 if index == 0 else 0,
                subfiletype=0 if index == 0 else 1,
                metadata=metadata if index == 0 else None,
                resolution=(1e4 / (width_um * scale), 1e4 / (height_um * scale)),
                resolutionunit="CENTIMETER",
                **options,
            )
    write_atomically(path, buffer.getvalue())


def _identity(layers: NDArray[np.float32]) -> uuid.UUID:
    """The same for the same heatmap, so that its file has the same bytes whenever it is written."""
    return uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(layers.tobytes()).hexdigest())


def read_ome_tiff(path: Path) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and values (L, rows, columns) of a heatmap that was written, "unread" last.

    Raises
    ------
    StoreError : it is missing or damaged
    """
    import tifffile

    try:
        with open_patiently(path) as file, tifffile.TiffFile(file) as tiff:
            layers = np.asarray(tiff.series[0].asarray(), np.float32)
            channels = ElementTree.fromstring(tiff.ome_metadata or "").iterfind(".//{*}Channel")
    except (OSError, ValueError, IndexError, RuntimeError, ElementTree.ParseError) as error:  # decoders raise RuntimeError
        raise StoreError(path.parent, f"its {path.name} is missing or damaged. Draw it again: pathovit heatmap.") from error
    names = tuple(channel.attrib.get("Name", "") for channel in channels)
    layers = layers.reshape(-1, *layers.shape[-2:])
    if len(names) != len(layers):
        raise StoreError(
            path.parent, f"its {path.name} names {len(names)} layers and holds {len(layers)}. Draw it again: pathovit heatmap."
        )
    return names, layers


def halve(layers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(L, H, W) -> (L, ceil(H/2), ceil(W/2)): the mean of what is known in each 2 x 2 block."""
    height, width = layers.shape[1] + layers.shape[1] % 2, layers.shape[2] + layers.shape[2] % 2
    padded = np.full((len(layers), height, width), np.nan, np.float32)
    padded[:, : layers.shape[1], : layers.shape[2]] = layers
    blocks = padded.reshape(len(layers), height // 2, 2, width // 2, 2)
    known = np.isfinite(blocks)
    count = known.sum((2, 4))
    total = np.where(known, blocks, 0).sum((2, 4))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
