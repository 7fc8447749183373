"""Encoders as ONNX graphs: the features of torch, operators that TensorRT takes, refusals."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pathovit import RESEARCH_USE
from pathovit.cli import app
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.encoders import load_encoder
from pathovit.errors import SettingsError

REFUSED = {  # by TensorRT's parser, of the operators that exporters and quantizers write. Source: onnx-tensorrt, docs/operators.md
    *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "SequenceAt", "SequenceConstruct"),
    *("SplitToSequence", "Unique", "OptionalGetElement", "StringNormalizer", "Compress"),
}


def tiles(folder: Path, side: int, count: int) -> np.ndarray:
    """Smooth patterns as pictures, and their pixels."""
    folder.mkdir()
    chance = np.random.default_rng(1)
    found = []
    for number in range(count):
        rough = Image.fromarray(chance.integers(60, 250, (6, 6, 3), np.uint8))
        picture = rough.resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03}.png")
        found.append(np.asarray(picture))
    return np.stack(found)


def exported(*words: object) -> str:
    done = CliRunner().invoke(app, ["encoders", "export", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def run(path: Path, pixels: np.ndarray) -> np.ndarray:
    from onnxruntime import InferenceSession

    return np.asarray(InferenceSession(path).run(["features"], {"tiles": pixels})[0])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(
    ("precision", "closest", "share"), [("fp32", 0.999999, 1.1), ("fp16", 0.9999, 0.55), ("int8", 0.8, 0.35)]
)
def test_the_graph_makes_the_features_of_torch(precision: str, closest: float, share: float, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pixels = tiles(tmp_path / "tiles", 96, 24)
    path = tmp_path / "there" / "reference.onnx"
    said = exported("reference", "--tiles", tmp_path / "tiles", "--precision", precision, "--out", path)
    encoder = load_encoder("reference", device="cpu", precision="fp32")
    exact = encoder.embed(pixels)
    for count in (1, 3, 24):
        found = run(path, pixels[:count])
        assert (found.shape, found.dtype) == ((count, 256), np.float32)
        assert cosines(found, exact[:count]).min() > closest
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    operators = Counter(node.op_type for node in graph.graph.node)
    assert not REFUSED & set(operators)
    assert graph.opset_import[0].version == 18
    weights = 4 * sum(p.numel() for p in encoder.model.parameters())
    assert path.stat().st_size < share * weights
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.graph.initializer}
    zeros = [constants[n.input[2]] for n in graph.graph.node if n.op_type == "QuantizeLinear" and len(n.input) > 2]
    assert (len(zeros) > 20) == (precision == "int8")
    assert not any(np.any(zero) for zero in zeros)
    about = json.loads(path.with_suffix(".json").read_text())
    assert (about["research_use"], about["mpp"], about["precision"]) == (RESEARCH_USE, 1.0, precision)
    assert about["checked"]["of"] == "pictures"
    assert about["checked"]["cosine_worst"] > closest
    assert sorted(one.name for one in path.parent.iterdir()) == ["reference.json", "reference.onnx"]
    assert ("these are other features" in said) == (about["checked"]["cosine_worst"] < 0.99)


def test_windows_and_variants_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    said = exported("swin_tiny:resample", "--weights", "random", "--tile-px", 64)
    assert "of noise: worst cosine 1.00000" in said
    pixels = np.random.default_rng(3).integers(0, 256, (3, 64, 64, 3), np.uint8)
    exact = load_encoder("swin_tiny:resample", "random", "cpu", "fp32", 64).embed(pixels)
    assert np.allclose(run(tmp_path / "swin_tiny-resample-fp32.onnx", pixels), exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reference", "--to", "tflite"], "--to 'tflite', expected onnx"),
        (["reference", "--precision", "int4"], "--precision 'int4', expected fp32, fp16, int8"),
        (["reference", "--precision", "int8"], "folder of 16 pictures or more with --tiles"),
        (["reference", "--tiles", "empty"], "there is no picture in it"),
        (["reference", "--tiles", "few", "--precision", "int8"], "folder of 16 pictures or more"),
        (["swin_tiny", "--weights", "random", "--tile-px", "128"], "add :resample to its name"),
    ],
)
def test_what_cannot_be_exported_is_refused(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    tiles(tmp_path / "few", 96, 3)
    with pytest.raises(SettingsError, match=re.escape(said)):
        exported(*words)
    assert not list(tmp_path.glob("*.onnx"))


def test_what_lies_beside_a_graph_and_is_of_something_else_stays(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "encoder.json").write_text('{"name": "mine"}')
    with pytest.raises(SettingsError, match="encoder.json: there is such a file, and not of a graph"):
        exported("reference", "--out", tmp_path / "encoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.json"]


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SettingsError, match=re.escape('pip install "pathovit[onnx]"')):
        exported("reference", "--out", tmp_path / "a.onnx")


def test_features_that_are_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a converter with a fault: nothing is left that could be taken for the encoder."""
    pytest.importorskip("onnx")
    from pathovit.encoders import onnx_graph

    honest = onnx_graph._run
    monkeypatch.setattr(onnx_graph, "_run", lambda path, seen: honest(path, seen) * 1.01)
    with pytest.raises(SettingsError, match=r"as ONNX in fp32 it makes other features \(by 1\.0%\)"):
        exported("reference", "--out", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
