"""pathovit: whole-slide images to slide-level answers and cancer heatmaps. Research use only."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
RESEARCH_USE = "For research use only. Not for use in diagnostic procedures."

# The line a slide travels, by name; imported when first used, so that `import pathovit` does no work.
_HOMES = {
    "open_slide": "slides.slide", "Slide": "slides.slide", "Level": "slides.levels",
    "find_tissue": "slides.tissue", "TissueMask": "slides.tissue",
    "lay_grid": "slides.tiling", "fill_spec": "settings", "TileGrid": "slides.tiling", "read_tile": "slides.tiling",
    "Settings": "settings", "TissueSettings": "settings", "TileSpec": "settings", "load_settings": "settings",
    "Encoder": "encoders", "EncoderRecord": "encoders", "load_encoder": "encoders", "own_encoder": "encoders", "write_encoder": "encoders",
    "Embedder": "run.embedder",
    "SlideFeatures": "outputs.features", "TileVerdict": "outputs.features",
    "FeatureStore": "outputs.store", "OutFolder": "outputs.folder", "SlideRecord": "outputs.records", "RunRecord": "outputs.runs",
    "SlideTransformer": "model.aggregator", "SlideModel": "model.slide_model", "SlidePrediction": "model.prediction",
    "load_model": "model.slide_model",
    "Heatmap": "show.heatmap", "teach": "study.teach",
    "analyse_slide": "run.single", "run_folder": "run.folder",
    "PathovitError": "errors", "SlideError": "errors", "SettingsError": "errors",
}  # fmt: skip
_FORMER = {"Verdict": "TileVerdict"}  # names of before
__all__ = ["RESEARCH_USE", "__version__", *_HOMES, *_FORMER]


def __getattr__(name: str) -> Any:
    known = _FORMER.get(name, name)
    if known not in _HOMES:
        raise AttributeError(f"module 'pathovit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pathovit.{_HOMES[known]}"), known)


def __dir__() -> list[str]:
    return sorted(__all__)
