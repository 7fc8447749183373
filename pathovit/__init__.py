"""pathovit: whole-slide images to slide-level answers and cancer heatmaps. Research use only."""

import lazy_loader

__version__ = "0.1.0"
RESEARCH_USE = "For research use only. Not for use in diagnostic procedures."

# The line a slide travels, by name, as __init__.pyi has it; imported when first used, so that `import pathovit` does no work.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*__all__, "RESEARCH_USE", "__version__"]
