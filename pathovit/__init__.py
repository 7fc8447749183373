"""pathovit: whole-slide images to slide-level answers and cancer heatmaps. Research use only."""

__version__ = "0.1.0"
