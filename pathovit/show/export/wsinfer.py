"""Encoder and map as one network, which WSInfer and QuPath run on tiles without pathovit.

Our maps read the tiles of a slide together; there each tile is seen alone. So a linear head is fitted to the map that was drawn, on the
features that lie here: what a tile by itself says of its score. How much of the map that carries is measured on slides that were left
out, is said, and lies beside the network in README.md.

Their reader checks config.json (wsinfer-zoo, model-config.schema.json) and runs a softmax over what the network returns.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.encoders.own import is_folder
from pathovit.errors import SettingsError, SlideError
from pathovit.files import to_json, write_atomically
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.recipe import Values
from pathovit.outputs.runs import RUN, last_run
from pathovit.settings import settings_from_dict
from pathovit.show.export.slides import ExportedSlide
from pathovit.show.heatmap import SCORE

if TYPE_CHECKING:
    from torch import nn

    from pathovit.encoders.encoder import Encoder

MOST_TILES = 40_000  # that the head is fitted to, of all slides
EDGE = 0.01  # scores nearer to 0 and 1 than this are taken for it: their logits are endless
RIDGE = 1e-2  # of the mean square of standardised features
FOLDS = 5
LEAST = 0.5  # rank correlation to the map on slides left out, below which nothing is written
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """Logits of classes, linear in features: features @ weight + bias."""

    classes: tuple[str, ...]
    weight: Floats  # (D, C)
    bias: Floats  # (C,)
    alike: float  # rank correlation to the map, on slides left out, of the class that is hardest
    tiles: int
    slides: int
    made_by: Values  # encoder, tiles and model of all slides


def write_wsinfer(folder: Path, slides: Sequence[ExportedSlide]) -> tuple[list[str], list[SlideError]]:
    """`torchscript_model.pt`, `config.json` and README.md; returns what must be said of them, and slides that are damaged.

    Raises
    ------
    SettingsError : slides without a map, of several encoders or models, weights that are not here, or a map that a tile alone says too little of
    """
    import torch

    head, failed = fit_head(slides)
    recipe = head.made_by["encoder"]
    encoder = _load(slides[0].out, recipe)
    if encoder.weights_sha256 != recipe["weights_sha256"]:
        raise SettingsError(
            f"--to wsinfer: the features were made by other weights of {encoder.name!r} than those that are here "
            f"({recipe['weights_sha256'][:12]} there, {encoder.weights_sha256[:12]} here)."
        )
    if encoder.tile_px != encoder.model_px and encoder.record.input == "crop":
        raise SettingsError(
            f"--to wsinfer: {encoder.name!r} crops tiles of {encoder.tile_px} px, and WSInfer can resize them alone."
        )
    network = _joined(encoder.model, encoder.record.pool, head).eval()
    record = encoder.record
    example = torch.rand(2, 3, encoder.model_px, encoder.model_px)
    trace: Any = torch.jit.trace
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # the tracer's, of sizes that are the same for every batch
        traced = torch.jit.freeze(trace(network, example, check_trace=False))
        for count in (1, 3):
            tiles = torch.rand(count, 3, encoder.model_px, encoder.model_px)
            if not torch.allclose(traced(tiles), network(tiles), atol=1e-3):
                raise SettingsError(
                    f"--to wsinfer: {encoder.name!r} cannot be traced: {count} tiles give other numbers than one by one."
                )
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    config = {
        "spec_version": "1.0",
        "architecture": f"pathovit: {record.name}, linear head",
        "num_classes": len(head.classes),
        "patch_size_pixels": encoder.tile_px,
        "spacing_um_px": head.made_by["tiles"]["mpp"],
        "class_names": list(head.classes),
        "transform": [
            {"name": "Resize", "arguments": {"size": encoder.model_px}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(record.mean), "std": list(record.std)}},
        ],
    }
    said = (
        f"each tile is seen alone: on slides left out its rank correlation to our map is {head.alike:.2f} "
        f"({head.tiles:,} tiles of {head.slides} slides). Encoder {record.name}, licence {record.licence}"
    )
    write_atomically(folder / "torchscript_model.pt", buffer.getvalue())
    write_atomically(
        folder / "README.md",
        f"# {record.name}, with a map of pathovit\n\n{RESEARCH_USE}\n\n{said[0].upper()}{said[1:]}.\n".encode(),
    )
    write_atomically(folder / "config.json", to_json(config))
    return [said], failed


def _load(out: OutFolder, recipe: Values) -> Encoder:
    """The encoder that made the features; one of somebody's own from where the last run had it."""
    from pathovit.encoders.load import load_encoder

    run = last_run(out).with_names(out.names())
    asked = settings_from_dict(dict(run.settings), str(out.path / RUN)).embed
    name = asked.encoder if is_folder(asked.encoder) else str(recipe["encoder"])
    return load_encoder(name, asked.weights, "cpu", "fp32", int(recipe["tile_px"]))


def fit_head(slides: Sequence[ExportedSlide]) -> tuple[Head, list[SlideError]]:
    """A head that says of a tile what the map does; and slides that it was not fitted to, for they are damaged."""
    each = max(1, MOST_TILES // max(1, len(slides)))
    features: list[Floats] = []
    wanted: list[Floats] = []
    failed: list[SlideError] = []
    made_by: Values = {}
    for known in slides:
        slide = replace(known)
        if slide.is_outside:
            failed.append(
                SlideError(
                    slide.out.called(slide.record), "it is outside what the model was made for: nothing is learned from its map."
                )
            )
            continue
        try:
            scores = {name.removeprefix(SCORE): values for name, values in slide.measured.items() if name.startswith(SCORE)}
        except SlideError as error:
            failed.append(error)
            continue
        recipe, answer = slide.features.recipe, slide.record.prediction
        mine = {
            "encoder": recipe.encoder,
            "tiles": recipe.tiles,
            "model": answer and answer.model,
            "classes": _classes(slide, tuple(scores)),
        }
        if made_by and (differing := [name for name, value in mine.items() if value != made_by[name]]):
            raise SettingsError(
                f"--to wsinfer: {slide.slide_id} has another {' and '.join(differing)} than the slides before it."
            )
        made_by = mine
        read = np.flatnonzero(slide.features.ok)
        read = read[np.linspace(0, len(read) - 1, min(each, len(read))).astype(int)]
        features.append(slide.features.features[read].astype(np.float64))
        wanted.append(_logits(np.stack([values[read] for values in scores.values()], 1)))
    classes = made_by.get("classes", ())
    if not features:
        raise SettingsError(
            "--to wsinfer: no slide here has a map of a model that was made for it. Make one with: pathovit run SLIDES, or pathovit teach"
        )
    groups = np.repeat(np.arange(len(features)), [len(part) for part in features])
    if len(features) == 1:
        groups = np.arange(len(features[0])) * FOLDS // len(features[0])  # of one slide: bands of rows, apart from each other
    x, y = np.concatenate(features), np.concatenate(wanted)
    left_out = np.zeros_like(y)
    for fold in range(FOLDS):
        judged = groups % FOLDS == fold
        if judged.any() and not judged.all():
            weight, bias = _ridge(x[~judged], y[~judged])
            left_out[judged] = x[judged] @ weight + bias
    alike = min(_rank_correlation(left_out[:, place], y[:, place]) for place in range(y.shape[1]))
    if not alike >= LEAST:  # of a map that is the same everywhere it is no number
        raise SettingsError(
            f"--to wsinfer: a tile by itself says too little of this map (rank correlation {alike:.2f} on slides left out, at least {LEAST} is asked). "
            "Teach a model on regions (pathovit teach), whose maps are of single tiles."
        )
    weight, bias = _ridge(x, y)
    return Head(classes, weight, bias, alike, len(x), len(features), made_by), failed


def _classes(slide: ExportedSlide, scored: tuple[str, ...]) -> tuple[str, ...]:
    """Of a map with one layer, the other class comes first."""
    if len(scored) > 1:
        return scored
    answer = slide.record.prediction
    others = [name for name in (answer.classes if answer else ()) if name != scored[0]]
    return (others[0] if others else f"not {scored[0]}", scored[0])


def _logits(scores: NDArray[np.floating]) -> Floats:
    """Of which a softmax makes the scores again. Raises SettingsError for scores of which none can: of classes that are each judged alone."""
    if scores.shape[1] > 1 and float(np.abs(scores.sum(1) - 1).max()) > 0.01:
        raise SettingsError(
            "--to wsinfer: this model scores each class by itself, so that a tile can be like none, and WSInfer shares every tile out "
            "between classes. Teach a model on regions (pathovit teach), or train one for two classes."
        )
    inside = np.clip(scores.astype(np.float64), EDGE, 1 - EDGE)
    if inside.shape[1] == 1:
        logit = np.log(inside / (1 - inside))
        return np.concatenate([-logit / 2, logit / 2], 1)
    return np.log(inside)


def _ridge(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    centre, spread, middle = x.mean(0), x.std(0), y.mean(0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    scaled = (x - centre) / spread
    gram = scaled.T @ scaled + RIDGE * len(x) * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, scaled.T @ (y - middle)) / spread[:, None]
    return weight, middle - centre @ weight


def _rank_correlation(a: Floats, b: Floats) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def _joined(model: nn.Module, pool: str, head: Head) -> nn.Module:
    import torch
    from torch import nn

    from pathovit.encoders.pool import pool_tokens

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.head = nn.Linear(*head.weight.shape)
            self.head.weight.data = torch.from_numpy(head.weight.T.astype(np.float32))
            self.head.bias.data = torch.from_numpy(head.bias.astype(np.float32))

        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            """(B, C) logits of tiles (B, 3, H, W), with colours scaled as config.json says."""
            found: torch.Tensor = self.head(pool_tokens(self.model, tiles, pool).float())
            return found

    return Joined()
