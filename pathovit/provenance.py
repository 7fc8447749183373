"""RunRecord: versions, settings, weights, inputs, times; what a result was made by."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from pathovit import RESEARCH_USE, __version__

LIBRARIES = (
    "torch", "timm", "openslide-python", "openslide-bin", "tifffile", "simplejpeg", "imagecodecs", "opencv-python-headless", "pillow", "zarr", "dask",
    "scikit-image", "numpy", "openvino", "nncf", "nvidia-nvimgcodec-cu13",
)  # fmt: skip
STEP_VERSIONS = {"tissue": 3, "tiling": 4, "embedding": 3, "aggregator": 2, "heatmap": 3}  # raised when results change


def versions() -> dict[str, str]:
    """Versions of pathovit, Python and the libraries that shape a result."""
    found = {"pathovit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def run_record(**parts: Any) -> dict[str, Any]:
    """The record written as run.json."""
    return {"research_use": RESEARCH_USE, "versions": versions(), "step_versions": STEP_VERSIONS, **parts}
