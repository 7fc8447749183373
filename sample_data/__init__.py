"""Write made whole-slide images: Aperio-style SVS files of invented H&E tissue, with the tumour outlines beside them.

A slide is painted in three steps:

    library   a few square, seamless patches of tissue (stroma, glands, tumour ...), drawn cell by cell at level 0
    fields    coarse maps in micrometres, positive inside: where the tissue, each kind of tissue and each flaw lies
    tiles     every tile of every level reads its patch of library and fields, and is encoded as it comes

No level is ever held in memory, so the slide may be as large as the disk. The same spec gives the same bytes.
"""

from .spec import SampleSpec, demo_specs, large_spec
from .write import make_slide

__all__ = ["SampleSpec", "demo_specs", "large_spec", "make_slide"]
