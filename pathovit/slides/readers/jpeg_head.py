"""What stands before the JPEG tiles and strips of a TIFF file, which leave out what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tifffile

# Says whether the three components are RGB or YCbCr; many scanners leave it to TIFF's photometric tag.
ADOBE = {2: b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00", 6: b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"}


def jpeg_head(page: tifffile.TiffPage) -> bytes:
    """What stands before a tile's or strip's own bytes, less its start-of-image: shared tables and colour transform."""
    return (page.jpegtables or b"\xff\xd8\xff\xd9")[:-2] + ADOBE[page.photometric]
