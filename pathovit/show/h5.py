"""Features in the layouts of TRIDENT and CLAM, for tools that read those; each file whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

from pathovit.files import write_atomically
from pathovit.outputs.features import SlideFeatures


def write_trident(folder: Path, stored: SlideFeatures) -> Path:
    """`features_<encoder>/<slide_id>.h5`: features (N, D), coords (N, 2) level-0 with attributes on both."""
    encoder, spec = stored.recipe.encoder["encoder"], stored.grid.spec
    assert spec.tile_px and spec.mpp and spec.stride_px, "of a grid that was laid"
    path = folder / f"features_{encoder}" / f"{stored.slide_id}.h5"
    ok = stored.ok
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        features = file.create_dataset("features", data=stored.features[ok].astype(np.float32))
        features.attrs.update({"name": stored.slide_id, "savetodir": "", "encoder": encoder, "trial": stored.trial})
        coords = file.create_dataset("coords", data=stored.xy[ok])
        coords.attrs.update(
            {
                "patch_size": spec.tile_px,
                "patch_size_level0": round(stored.tile_l0[0]),
                "level0_magnification": nominal_magnification(stored.mpp[0]),
                "target_magnification": nominal_magnification(spec.mpp),
                "overlap": spec.tile_px - spec.stride_px,
                "name": stored.slide_id,
                "savetodir": "",
                "level0_width": stored.attributes.level0_size[0],
                "level0_height": stored.attributes.level0_size[1],
                "mpp_x": stored.mpp[0],  # the exact sizes, beside the magnification those tools expect
                "mpp_y": stored.mpp[1],
                "target_mpp": spec.mpp,
            }
        )
    write_atomically(path, buffer.getvalue())
    return path


def write_clam(folder: Path, stored: SlideFeatures) -> Path:
    """`h5_files/<slide_id>.h5`: features float32 (N, D), coords int32 (N, 2)."""
    path = folder / "h5_files" / f"{stored.slide_id}.h5"
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("features", data=stored.features[stored.ok].astype(np.float32))
        coords = file.create_dataset("coords", data=stored.xy[stored.ok].astype(np.int32))
        coords.attrs.update({"patch_size": round(stored.tile_l0[0]), "patch_level": 0, "name": stored.slide_id})
    write_atomically(path, buffer.getvalue())
    return path


def nominal_magnification(mpp: float) -> int:
    """The objective that those tools would name for a pixel size; only ever written for them."""
    for limit, power in ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5)):
        if mpp < limit:
            return power
    return 1
