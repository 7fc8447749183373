"""pathovit: whole-slide images to slide-level answers and cancer heatmaps. Research use only."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
RESEARCH_USE = "For research use only. Not for use in diagnostic procedures."

# The line a slide travels, by name; imported when first used, so that `import pathovit` does no work.
_HOMES = {
    "open_slide": "slide", "Slide": "slide", "Level": "slide",
    "find_tissue": "tissue", "TissueMask": "tissue",
    "lay_grid": "tiling", "fill_spec": "tiling", "TileGrid": "tiling", "read_tile": "tiling",
    "Settings": "settings", "TissueSettings": "settings", "TileSpec": "settings", "load_settings": "settings",
    "Encoder": "encoders", "load_encoder": "encoders",
    "Embedder": "embedding",
    "SlideFeatures": "features", "Verdict": "features",
    "FeatureStore": "store",
    "SlideTransformer": "aggregator", "SlideModel": "slide_model", "SlidePrediction": "slide_model", "load_model": "slide_model",
    "Heatmap": "heatmap",
    "analyse_slide": "pipeline",
    "PathovitError": "errors", "SlideError": "errors", "SettingsError": "errors",
}  # fmt: skip
__all__ = ["RESEARCH_USE", "__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pathovit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pathovit.{_HOMES[name]}"), name)
