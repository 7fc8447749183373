"""Features in the layouts of TRIDENT and CLAM, for tools that read those; each file whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

from pathovit.files import write_atomically
from pathovit.outputs.features import SlideFeatures


def write_trident(folder: Path, slide: SlideFeatures) -> Path:
    """`features_<encoder>/<slide_id>.h5`: features (N, D), coords (N, 2) level-0 with attributes on both."""
    encoder, spec = slide.recipe.encoder["encoder"], slide.grid.spec
    assert spec.tile_px and spec.mpp and spec.stride_px, "of a grid that was laid"
    path = folder / f"features_{encoder}" / f"{slide.slide_id}.h5"
    ok = slide.ok
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        features = file.create_dataset("features", data=slide.features[ok].astype(np.float32))
        features.attrs.update({"name": slide.slide_id, "savetodir": "", "encoder": encoder, "trial": slide.trial})
        coords = file.create_dataset("coords", data=slide.xy[ok])
        coords.attrs.update(
            {
                "patch_size": spec.tile_px,
                "patch_size_level0": round(slide.tile_l0[0]),
                "level0_magnification": nominal_magnification(slide.mpp[0]),
                "target_magnification": nominal_magnification(spec.mpp),
                "overlap": spec.tile_px - spec.stride_px,
                "name": slide.slide_id,
                "savetodir": "",
                "level0_width": slide.attributes.level0_size[0],
                "level0_height": slide.attributes.level0_size[1],
                "mpp_x": slide.mpp[0],  # the exact sizes, beside the magnification those tools expect
                "mpp_y": slide.mpp[1],
                "target_mpp": spec.mpp,
            }
        )
    write_atomically(path, buffer.getvalue())
    return path


def write_clam(folder: Path, slide: SlideFeatures) -> Path:
    """`h5_files/<slide_id>.h5`: features float32 (N, D), coords int32 (N, 2)."""
    path = folder / "h5_files" / f"{slide.slide_id}.h5"
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("features", data=slide.features[slide.ok].astype(np.float32))
        coords = file.create_dataset("coords", data=slide.xy[slide.ok].astype(np.int32))
        coords.attrs.update({"patch_size": round(slide.tile_l0[0]), "patch_level": 0, "name": slide.slide_id})
    write_atomically(path, buffer.getvalue())
    return path


def nominal_magnification(mpp: float) -> int:
    """The objective that those tools would name for a pixel size; only ever written for them."""
    for limit, power in ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5)):
        if mpp < limit:
            return power
    return 1
