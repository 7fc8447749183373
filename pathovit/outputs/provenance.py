"""Provenance: versions of everything that shapes a result."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

from pathovit import __version__

LIBRARIES = (
    "torch", "timm", "openslide-python", "openslide-bin", "tifffile", "simplejpeg", "imagecodecs", "opencv-python-headless", "pillow", "zarr", "dask",
    "scikit-image", "numpy", "openvino", "nncf", "nvidia-nvimgcodec-cu13",
)  # fmt: skip
# Raised when results change.
STEP_VERSIONS: dict[str, int] = {"tissue": 3, "tiling": 4, "embedding": 3, "aggregator": 2, "training": 3, "heatmap": 5}


def versions() -> dict[str, str]:
    """Versions of pathovit, Python and the libraries that shape a result."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"pathovit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
