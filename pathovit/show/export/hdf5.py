"""HDF5 files as TRIDENT, CLAM and STAMP write them; each whole or not at all. Rows are the tiles that were read, in grid order.

Their readers check: TRIDENT `patch_size`, `level0_magnification` and `target_magnification` of coords (trident/wsi_objects/WSI.py);
CLAM `patch_size` and `patch_level` (dataset_modules/dataset_h5.py); STAMP `unit` and `tile_size_um`, that `stamp_version` is none
that it does not know yet, and `extractor` (stamp/modeling/data.py).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from pathovit import __version__
from pathovit.encoders.elsewhere import IN_STAMP, IN_TRIDENT, OURS
from pathovit.errors import StorageError
from pathovit.files import put_whole, write_atomically
from pathovit.outputs.features import SlideFeatures
from pathovit.show.export.slides import ExportedSlide, encoder_name

BLOCK_TILES = 4096  # that are held as float32
STAMP_VERSION = "2.1.0"  # the first that knows these attributes: later ones read it, earlier ones say why they do not


def write_trident(folder: Path, slide: ExportedSlide) -> None:
    """`<mag>x_<px>px_<overlap>px_overlap/`: `features_<encoder>/NAME.h5`, and `patches/NAME_patches.h5` for other encoders on our tiles."""
    stored, encoder = slide.features, encoder_name(slide.features, IN_TRIDENT)
    spec = stored.grid.spec
    assert spec.tile_px and spec.mpp and spec.stride_px, "of a grid that was laid"
    overlap = spec.tile_px - spec.stride_px
    about = {
        "patch_size": spec.tile_px,
        "patch_size_level0": round(stored.tile_l0[0]),
        "level0_magnification": nominal_magnification(stored.mpp[0]),
        "target_magnification": nominal_magnification(spec.mpp),
        "overlap": overlap,
        "name": slide.name,
        "savetodir": "",
        "level0_width": stored.attributes.level0_size[0],
        "level0_height": stored.attributes.level0_size[1],
        "mpp_x": stored.mpp[0],  # the exact sizes, beside the magnification those tools expect
        "mpp_y": stored.mpp[1],
        "target_mpp": spec.mpp,
        "mpp_source": stored.attributes.mpp_source,
    }
    here = folder / f"{about['target_magnification']}x_{spec.tile_px}px_{overlap}px_overlap"
    with _hdf5(here / "patches" / f"{slide.name}_patches.h5") as file:
        _put_coords(file, stored, "int64").attrs.update(about)
    with _hdf5(here / f"features_{encoder}" / f"{slide.name}.h5") as file:
        features = _put_features(file, "features", stored, "float32")
        features.attrs.update({"name": slide.name, "savetodir": "", "encoder": encoder, "trial": stored.trial, **_ours(stored)})
        _put_coords(file, stored, "int64").attrs.update(about)


def write_clam(folder: Path, slide: ExportedSlide) -> None:
    """`h5_files/NAME.h5`: features float32 (N, D), coords int32 (N, 2) in level-0 pixels; `pt_files/NAME.pt`: the features as a tensor."""
    import torch

    stored, width_height = slide.features, np.asarray(slide.features.attributes.level0_size)
    with _hdf5(folder / "h5_files" / f"{slide.name}.h5") as file:
        _put_features(file, "features", stored, "float32").attrs.update({"trial": stored.trial, **_ours(stored)})
        _put_coords(file, stored, "int32").attrs.update(
            {
                "patch_size": round(stored.tile_l0[0]),
                "patch_level": 0,
                "downsample": np.ones(2),
                "level_dim": width_height,
                "downsampled_level_dim": width_height,
                "name": slide.name,
                "wsi_name": slide.name,
                "mpp_x": stored.mpp[0],
                "mpp_y": stored.mpp[1],
                "target_mpp": stored.grid.spec.mpp,
                "target_px": stored.grid.spec.tile_px,
            }
        )
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(stored.features[stored.ok].astype(np.float32)), buffer)
    write_atomically(folder / "pt_files" / f"{slide.name}.pt", buffer.getvalue())


def write_stamp(folder: Path, slide: ExportedSlide) -> None:
    """`NAME.h5`: feats (N, D) and coords float32 (N, 2), top-left corners in micrometres."""
    stored, spec = slide.features, slide.features.grid.spec
    assert spec.tile_px and spec.mpp, "of a grid that was laid"
    with _hdf5(folder / f"{slide.name}.h5") as file:
        _put_features(file, "feats", stored, str(stored.features.dtype))
        file.create_dataset("coords", data=(stored.xy[stored.ok] * np.asarray(stored.mpp)).astype(np.float32))
        file.attrs.update(
            {
                "stamp_version": STAMP_VERSION,
                "extractor": encoder_name(stored, IN_STAMP),
                "unit": "um",
                "tile_size_um": stored.tile_l0[0] * stored.mpp[0],
                "tile_size_px": spec.tile_px,
                "target_mpp": spec.mpp,
                "code_hash": f"pathovit-{__version__}",
                "feat_type": "tile",
                "trial": stored.trial,
                **_ours(stored),
            }
        )


def nominal_magnification(mpp: float) -> int:
    """The objective that those tools would name for a pixel size; only ever written for them."""
    for limit, power in ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5)):
        if mpp < limit:
            return power
    return 1


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    with put_whole(path) as place:
        try:
            with h5py.File(place, "w") as file:
                yield file
        except (OSError, RuntimeError) as error:  # h5py's own, which have no number of the system
            raise StorageError(f"{path}: it cannot be written ({error}). Free some space, or choose another --folder.") from error


def _ours(stored: SlideFeatures) -> Mapping[str, str]:
    return {OURS: str(stored.recipe.encoder["encoder"])}


def _put_features(file: h5py.File, name: str, stored: SlideFeatures, dtype: str) -> h5py.Dataset:
    rows = np.flatnonzero(stored.ok)
    made = file.create_dataset(name, (len(rows), stored.features.shape[1]), dtype)
    for at in range(0, len(rows), BLOCK_TILES):
        made[at : at + BLOCK_TILES] = stored.features[rows[at : at + BLOCK_TILES]]
    return made


def _put_coords(file: h5py.File, stored: SlideFeatures, dtype: str) -> h5py.Dataset:
    return file.create_dataset("coords", data=stored.xy[stored.ok].astype(dtype))
