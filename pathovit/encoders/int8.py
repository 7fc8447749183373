"""Graphs in 8 bits. The one door to NNCF, which is an extra.

`weights_in_int8` needs no tiles: what flows into a layer is rounded as it comes. `all_in_int8` fixes its ranges beforehand, on
tiles, as hardware wants that has no time to look: channels that are far wider than the others are made narrower first, and the
weights behind them wider (SmoothQuant, Xiao et al., ICML 2023); without that, features of a ViT keep a cosine of 0.33 at worst
(docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from pathovit.errors import SettingsError
from pathovit.slides.readers import RGB


def weights_in_int8(graph: Any) -> Any:
    """A graph of OpenVINO with the weights of its linear layers in 8 bits.

    Convolutions stay as they are: OpenVINO 2026.4 makes other numbers of those in 8 bits as soon as it runs two streams side by side.

    Raises
    ------
    SettingsError : NNCF is not installed
    """
    with quiet():
        nncf = _nncf("openvino")
        convolutions = nncf.IgnoredScope(types=["Convolution", "GroupConvolution"], validate=False)
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=convolutions)


def all_in_int8(graph: Any, tiles: RGB) -> Any:
    """A graph of ONNX with weights and what flows into them in 8 bits, in ranges seen on tiles (N, side, side, 3). Zero points are zero.

    Raises
    ------
    SettingsError : NNCF is not installed
    """
    with quiet():
        nncf = _nncf("onnx")
        shown = nncf.Dataset(list(tiles), lambda tile: {"tiles": tile[None]})  # one by one: all between layers is held at a time
        return nncf.quantize(
            graph,
            shown,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(tiles),
            ignored_scope=nncf.IgnoredScope(names=_by_channel(graph)),
        )


def _by_channel(graph: Any) -> list[str]:
    """Convolutions by channel stay as they are: each channel has a range of its own, and one scale for all of them loses the narrow ones."""
    return [
        node.name
        for node in graph.graph.node
        if node.op_type == "Conv" and any(one.name == "group" and one.i > 1 for one in node.attribute)
    ]


def _nncf(extra: str) -> Any:
    try:
        import nncf
    except ImportError as error:
        raise SettingsError(f'--precision int8: NNCF is not installed. pip install "pathovit[{extra}]"') from error
    return nncf


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters talk to their makers: progress bars, every layer that is left as it is, what could be faster."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
