"""An encoder compiled for the CPU by OpenVINO. The one door to OpenVINO, which is an extra.

bf16 rounds as torch does. int8 stores the weights of linear layers in 8 bits and rounds what flows into them to 8 bits
as it comes, row by row, so that no tiles are needed to calibrate it and features do not depend on any.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathovit.encoders.int8 import weights_in_int8
from pathovit.errors import SettingsError
from pathovit.machine import pick_precision

if TYPE_CHECKING:
    from pathovit.encoders.encoder import Encoder

LEAST_ALIKE = 0.9  # cosine to torch's features, of noise
INT8_GROUP = "384"  # neighbouring values that share one scale


def compile_encoder(encoder: Encoder, precision: str) -> Encoder:
    """The same encoder, on OpenVINO.

    Parameters
    ----------
    encoder : in float32 on the CPU
    precision : auto, fp32, bf16 or int8

    Raises
    ------
    SettingsError : OpenVINO is not installed, or cannot take this architecture
    """
    import torch

    try:
        import openvino
    except ImportError as error:
        raise SettingsError('--engine openvino: OpenVINO is not installed. pip install "pathovit[openvino]"') from error

    example = torch.zeros((2, encoder.tile_px, encoder.tile_px, 3), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(action="ignore"):  # the tracer's, of sizes that are the same for every batch
            sides = [-1, encoder.tile_px, encoder.tile_px, 3]
            graph = openvino.convert_model(encoder.network(), example_input=example, input=sides)
    except Exception as error:  # the converter raises what it likes; the encoder is refused with its reason
        raise SettingsError(f"--engine openvino: it cannot take {encoder.name!r} ({error}). Use --engine torch.") from error
    options: dict[str, Any] = {"NUM_STREAMS": encoder.lanes, "INFERENCE_NUM_THREADS": encoder.cores}
    if precision == "int8":
        graph = weights_in_int8(graph)
        options |= {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": INT8_GROUP}
        said = "int8"
    else:
        dtype = pick_precision(precision, torch.device("cpu"))
        options["INFERENCE_PRECISION_HINT"] = "bf16" if dtype == torch.bfloat16 else "f32"
        said = str(dtype).removeprefix("torch.")
    compiled = openvino.compile_model(graph, "CPU", options)
    of_thread = threading.local()  # a request serves one thread at a time

    def run(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        return np.array(of_thread.request.infer([tiles])[0], np.float32)

    made = replace(encoder, precision=said, engine="openvino", compiled=run)
    _require_alike(encoder, made)
    return made


def _require_alike(plain: Encoder, made: Encoder) -> None:
    """Raises SettingsError where a graph that was compiled makes other features than torch: such faults depend on the machine and its cores."""
    tiles = np.random.default_rng(0).integers(0, 256, (2, plain.tile_px, plain.tile_px, 3), np.uint8)
    wanted, found = (one.embed(tiles).astype(np.float64) for one in (plain, made))
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    alike = (
        float(((wanted * found).sum(1) / np.maximum(lengths, 1e-30)).min())
        if lengths.all()
        else float(np.allclose(wanted, found))
    )
    if not alike >= LEAST_ALIKE:
        raise SettingsError(
            f"--engine openvino: on this machine it makes other features of {plain.name!r} in {made.precision} than torch does (cosine {alike:.3f}). "
            "Use --engine torch, or another --precision."
        )
