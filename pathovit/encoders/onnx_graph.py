"""An encoder as an ONNX graph, for machines without torch. The one door to ONNX and ONNX Runtime, which are an extra.

The graph takes what `Encoder.embed` takes, uint8 pixels (N, side, side, 3): colours are scaled inside, so that no program
that runs it can scale them otherwise. Its operators are those that TensorRT's parser takes.

fp16   weights and sums in 16 bits; pixels and features as before
int8   weights and what flows into them in 8 bits (QuantizeLinear, DequantizeLinear; zero points are zero, as TensorRT
       wants), in ranges that were seen on tiles which are given
"""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.encoders.encoder import Encoder
from pathovit.encoders.int8 import all_in_int8, quiet
from pathovit.errors import SettingsError
from pathovit.files import fsync, read_bytes, storage_errors, to_json, write_atomically
from pathovit.slides.readers import RGB

OPSET = 18  # TensorRT 10 and 11, OpenVINO, ONNX Runtime
PRECISIONS = ("fp32", "fp16", "int8")
FILE_LIMIT = 2**31 - 2**24  # bytes; protobuf holds no more, and weights go to a file beside
CHECK_TILES, FEWEST_TILES, MOST_TILES = 8, 16, 72
ALIKE = 0.99  # cosine, from which features can stand for each other
FAR = 1e-3  # difference of features in fp32, by the largest of them, that no rounding explains


@dataclass(frozen=True)
class Checked:
    """How far features of the graph are from torch's in float32, on the same tiles."""

    tiles: int
    of: str  # pictures, noise
    cosine_worst: float
    difference: float  # largest, by the largest feature


def export_onnx(encoder: Encoder, out: Path, precision: str, tiles: RGB | None) -> Checked:
    """Write an encoder as OUT.onnx, checked against torch, and what must be known of it as OUT.json.

    Parameters
    ----------
    encoder : in float32 on the CPU
    precision : fp32, fp16 or int8
    tiles : (N, side, side, 3); it is checked on the last eight, and int8 takes its ranges from those before. None for noise, and no int8

    Raises
    ------
    SettingsError : ONNX is not installed, or cannot hold this encoder so, or the graph makes other features
    StorageError : the file cannot be written
    """
    if out.suffix != ".onnx":
        raise SettingsError(f"--out {out}: a graph is called .onnx; what is said of it lies beside it as .json.")
    onnx, about = _require(encoder, precision, tiles), out.with_suffix(".json")
    if about.is_file() and b'"opset"' not in read_bytes(about):
        raise SettingsError(
            f"{about}: there is such a file, and not of a graph; what is said of {out.name} would take its place. Choose another --out."
        )
    judged = tiles[-CHECK_TILES:] if tiles is not None else _noise(encoder.tile_px)
    with storage_errors(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=_made(out.parent)) as folder:
        written = Path(folder) / out.name
        with quiet():
            if precision == "fp16":
                _write(replace(encoder, model=copy.deepcopy(encoder.model).half()), written)
            else:
                _write(encoder, written)
            if precision == "int8":
                assert tiles is not None
                onnx.save(all_in_int8(onnx.load(written), tiles[:-CHECK_TILES]), written)
            found = _run(written, judged)
        checked = _compare(found, encoder.embed(judged), "noise" if tiles is None else "pictures")
        if not checked.difference < (FAR if precision == "fp32" else np.inf):
            raise SettingsError(
                f"Encoder {encoder.name!r}: as ONNX in {precision} it makes other features (by {checked.difference:.1%})."
            )
        about.unlink(missing_ok=True)  # of an earlier graph
        for part in sorted(Path(folder).iterdir(), reverse=True):  # weights beside it before the graph that names them
            fsync(part)
            os.replace(part, out.with_name(part.name))
    write_atomically(about, to_json(_about(encoder, precision, checked)))
    return checked


def _require(encoder: Encoder, precision: str, tiles: RGB | None) -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SettingsError(f'--to onnx: {error.name} is not installed. pip install "pathovit[onnx]"') from error
    if precision not in PRECISIONS:
        raise SettingsError(f"--precision {precision!r}, expected {', '.join(PRECISIONS)}.")
    if precision == "int8" and (tiles is None or len(tiles) < FEWEST_TILES):
        raise SettingsError(
            f"--precision int8 takes its ranges from tiles: name a folder of {FEWEST_TILES} pictures or more with --tiles."
        )
    if precision == "int8" and _bytes(encoder) > FILE_LIMIT:
        raise SettingsError(f"Encoder {encoder.name!r} is too large for --precision int8: a file of 2 GB is the most. Use fp16.")
    if encoder.tile_px != encoder.model_px:
        raise SettingsError(
            f"Encoder {encoder.name!r} resizes tiles of {encoder.tile_px} px to {encoder.model_px} px, which ONNX does otherwise. "
            f"Leave --tile-px out and give it tiles of {encoder.model_px} px, or add :resample to its name."
        )
    return onnx


def _write(encoder: Encoder, path: Path) -> None:
    import torch

    example = torch.zeros((2, encoder.tile_px, encoder.tile_px, 3), dtype=torch.uint8)
    count = torch.export.Dim("N", min=1, max=4096)
    try:
        program = torch.onnx.export(
            encoder.network(), (example,), dynamo=True, opset_version=OPSET, input_names=["tiles"], output_names=["features"],
            dynamic_shapes={"tiles": {0: count}}, verbose=False,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise SettingsError(f"Encoder {encoder.name!r}: ONNX cannot hold it ({str(error).strip().splitlines()[0]}).") from error
    assert program is not None
    program.save(path, external_data=_bytes(encoder) > FILE_LIMIT)


def _bytes(encoder: Encoder) -> int:
    return sum(tensor.nbytes for tensor in encoder.model.state_dict().values())


def _run(path: Path, tiles: RGB) -> NDArray[np.float32]:
    from onnxruntime import InferenceSession

    found: NDArray[np.float32] = InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"tiles": tiles})[0]
    return found


def _compare(found: NDArray[np.float32], wanted: NDArray[np.float32], of: str) -> Checked:
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    return Checked(len(found), of, float(cosines.min()), float(np.abs(found - wanted).max() / np.abs(wanted).max()))


def _about(encoder: Encoder, precision: str, checked: Checked) -> dict[str, object]:
    side = encoder.tile_px
    return {
        "research_use": RESEARCH_USE,
        "encoder": encoder.name,
        "licence": encoder.record.licence,
        "weights_sha256": encoder.weights_sha256,
        "input": {"name": "tiles", "type": "uint8", "shape": ["N", side, side, 3], "colours": "RGB, 0 to 255; scaled inside"},
        "output": {"name": "features", "type": "float32", "shape": ["N", encoder.dim]},
        "mpp": encoder.mpp,
        "precision": precision,
        "opset": OPSET,
        "checked": asdict(checked),
    }


def _noise(side: int) -> RGB:
    return np.random.default_rng(0).integers(0, 256, (CHECK_TILES, side, side, 3), np.uint8)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
