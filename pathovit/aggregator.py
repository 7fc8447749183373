"""SlideTransformer: features (N, D) and tile positions to a slide's answer; cost linear in N.

    tile -> region -> slide

Blocks of attention within windows of 16 x 16 tiles, shifted by half a window every other block, as Swin does over
patches; empty windows are skipped. After each block every window is summed up in a region token, region tokens
attend to each other over the whole slide, and what they learn goes back to their tiles. Positions enter only as
differences, in micrometres, and windows are anchored at the tissue, so neither the slide's origin nor the order of
the tiles matters, and a model trained at one tile size reads another.

The head is additive (Javed et al., "Additive MIL", NeurIPS 2022): logit_c = bias_c + sum_i attention_i * evidence_ic.
The evidence plus bias of a tile is thus on the scale of the slide's logit: what the slide would score if it were made
of that tile alone. That is what the heatmap shows; a benign slide stays cold because nothing stretches its scale.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pathovit.encoders.weights import file_sha256, read_safetensors
from pathovit.errors import SettingsError, WeightsError
from pathovit.features import SlideFeatures
from pathovit.model_card import read_card

WINDOW = 16  # tiles on a side
SLOTS = WINDOW * WINDOW
WINDOWS_AT_ONCE = 32  # bounds the memory of attention
UM_PER_UNIT = 100.0  # positions enter the network in tenths of a millimetre


@dataclass(frozen=True)
class AggregatorConfig:
    """The shape of a slide model, and what it answers."""

    feature_dim: int
    classes: tuple[str, ...]  # names; for a binary target (negative, positive)
    task: str  # binary, multiclass or multilabel
    width: int = 128
    depth: int = 2  # pairs of a plain and a shifted block
    heads: int = 4
    kind: str = "slide_transformer"  # or mean, abmil

    @property
    def logits(self) -> int:
        """A binary target has one logit, of its positive class."""
        return 1 if self.task == "binary" else len(self.classes)


@dataclass(frozen=True)
class TileEvidence:
    """What the head makes of a bag of N tiles."""

    logits: Tensor  # (C,)
    evidence: Tensor  # (N, C), before attention and bias
    attention: Tensor  # (N,), sums to 1
    bias: Tensor  # (C,)


@dataclass(frozen=True)
class SlidePrediction:
    """The answer for a slide. Tile rows are in grid order; rows that were not read hold NaN."""

    slide_id: str
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]  # (len(classes),)
    tile_scores: NDArray[np.float32]  # (N, C') in [0, 1]; C' is 1 for a binary target (its positive class)
    attention: NDArray[np.float32]  # (N,), sums to 1 over the tiles that were read
    contributions: NDArray[np.float32]  # (N, C'), attention x evidence; their sum plus the bias is the logit
    logits: NDArray[np.float32]  # (C',)
    bias: NDArray[np.float32]  # (C',)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Classes that `tile_scores` has columns for."""
        return self.classes[-1:] if self.tile_scores.shape[1] == 1 else self.classes


class WindowLayout:
    """Where every tile sits: its window and its slot within, for one partition of the lattice."""

    def __init__(self, column: Tensor, row: Tensor, shift: int) -> None:
        column, row = column + shift, row + shift
        wide = int(column.max()) // WINDOW + 1
        key = (row // WINDOW) * wide + column // WINDOW
        self.windows, self.window = torch.unique(key, return_inverse=True)  # (W,), (N,): empty windows do not appear
        self.slot = (row % WINDOW) * WINDOW + column % WINDOW  # (N,)
        self.count = len(self.windows)
        self.filled = torch.zeros(self.count, SLOTS, dtype=torch.bool, device=column.device)
        self.filled[self.window, self.slot] = True

    def gather(self, tokens: Tensor) -> Tensor:
        """(N, d) -> (W, 256, d), zeros where there is no tile."""
        dense = tokens.new_zeros(self.count, SLOTS, tokens.shape[-1])
        dense[self.window, self.slot] = tokens
        return dense

    def scatter(self, dense: Tensor) -> Tensor:
        """(W, 256, d) -> (N, d)."""
        return dense[self.window, self.slot]


class WindowAttention(nn.Module):
    """Attention within windows, with a bias made from the distance between tiles in micrometres (as SwinV2 does)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, heads, bias=False))
        side = torch.arange(WINDOW)
        y, x = torch.meshgrid(side, side, indexing="ij")
        place = torch.stack([x.flatten(), y.flatten()], -1)
        offset = place[:, None] - place[None]  # (256, 256, 2)
        index = (offset[..., 1] + WINDOW - 1) * (2 * WINDOW - 1) + offset[..., 0] + WINDOW - 1
        self.register_buffer("offset_index", index, persistent=False)

    def position_bias(self, pitch_um: float) -> Tensor:
        """(heads, 256, 256) for tiles `pitch_um` apart."""
        steps = torch.arange(-WINDOW + 1, WINDOW, device=self.qkv.weight.device) * (pitch_um / UM_PER_UNIT)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        offsets = torch.stack([x, y], -1).flatten(0, 1)  # (31 * 31, 2)
        table = self.bias(offsets.sign() * offsets.abs().log1p())
        index = self.offset_index
        assert isinstance(index, Tensor)
        bias: Tensor = table[index.flatten()].view(SLOTS, SLOTS, self.heads).permute(2, 0, 1)
        return bias

    def forward(self, tokens: Tensor, layout: WindowLayout, pitch_um: float) -> Tensor:
        qkv = layout.gather(self.qkv(self.norm(tokens)))  # (N, 3d) -> (W, 256, 3d)
        bias = self.position_bias(pitch_um)
        mixed = []
        for first in range(0, layout.count, WINDOWS_AT_ONCE):
            part = slice(first, first + WINDOWS_AT_ONCE)
            q, k, v = split_heads(qkv[part], self.heads).permute(2, 0, 3, 1, 4)  # each (w, heads, 256, d/heads)
            empty = torch.zeros_like(layout.filled[part], dtype=bias.dtype).masked_fill(~layout.filled[part], -1e4)
            mask = bias[None] + empty[:, None, None, :]  # (w, heads, 256, 256)
            mixed.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        out: Tensor = self.out(layout.scatter(torch.cat(mixed)))
        return out


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """(..., 3d) -> (..., 3, heads, d / heads)."""
    return qkv.reshape(*qkv.shape[:-1], 3, heads, -1)


class RegionAttention(nn.Module):
    """Windows summed up in region tokens that attend to each other over the slide; nearer regions weigh more."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, 1, bias=False)  # a bias would cancel
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.slope = nn.Parameter(torch.linspace(-3, 1, heads))

    def forward(self, tokens: Tensor, layout: WindowLayout, xy_um: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        weight = torch.exp(self.pool(tokens).clamp(-8, 8))  # (N, 1)
        window = layout.window[:, None]
        total = _sum_by(weight, layout)
        region = _sum_by(weight * tokens, layout) / total  # (W, d)
        centre = _sum_by(torch.cat([xy_um, torch.ones_like(xy_um[:, :1])], -1), layout)
        place = centre[:, :2] / centre[:, 2:] / (UM_PER_UNIT * WINDOW)
        distance = torch.cdist(place, place).log1p()  # (W, W)
        bias = -functional.softplus(self.slope)[:, None, None] * distance
        q, k, v = split_heads(self.qkv(region), self.heads).permute(1, 2, 0, 3)  # each (heads, W, d/heads)
        mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None].to(q.dtype))[0]
        back: Tensor = self.out(mixed.transpose(0, 1).flatten(1))  # (W, d)
        return back[window[:, 0]]


def _sum_by(values: Tensor, layout: WindowLayout) -> Tensor:
    """(N, d) summed within windows: (W, d)."""
    return values.new_zeros(layout.count, values.shape[-1]).index_add_(0, layout.window, values)


class Block(nn.Module):
    """Window attention, region attention, feed-forward; residual, each branch scaled from a small start."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.window = WindowAttention(width, heads)
        self.region = RegionAttention(width, heads)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.ParameterList(nn.Parameter(torch.full((width,), 0.1)) for _ in range(3))

    def forward(self, tokens: Tensor, layouts: dict[int, WindowLayout], xy_um: Tensor, pitch_um: float) -> Tensor:
        layout = layouts[self.shift]
        tokens = tokens + self.scale[0] * self.window(tokens, layout, pitch_um)
        tokens = tokens + self.scale[1] * self.region(tokens, layout, xy_um)
        fed: Tensor = tokens + self.scale[2] * self.feed(tokens)
        return fed


class AdditiveHead(nn.Module):
    """Gated attention (Ilse et al., 2018) times evidence, summed: the tile parts add up to the logit exactly."""

    def __init__(self, width: int, logits: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, width // 2), nn.Linear(width, width // 2)
        self.weight = nn.Linear(width // 2, 1, bias=False)  # a softmax ignores it
        self.evidence = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, logits))
        self.bias = nn.Parameter(torch.zeros(logits))

    def forward(self, tokens: Tensor) -> TileEvidence:
        strength = self.weight(torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens)))[:, 0]
        attention = torch.softmax(strength.float(), 0)
        evidence = self.evidence(tokens).float()  # (N, C)
        return TileEvidence((attention[:, None] * evidence).sum(0) + self.bias, evidence, attention, self.bias)


class SlideTransformer(nn.Module):
    """The aggregator. `kind` "mean" and "abmil" leave out the transformer, as yardsticks on the same interface."""

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_scale", torch.ones(config.feature_dim))
        self.embed = nn.Sequential(nn.Linear(config.feature_dim, config.width), nn.GELU(), nn.LayerNorm(config.width))
        depth = config.depth if config.kind == "slide_transformer" else 0
        shifts = [0, WINDOW // 2] * depth
        self.blocks = nn.ModuleList(Block(config.width, config.heads, shift) for shift in shifts)
        self.head = AdditiveHead(config.width, config.logits)
        self.dropout = nn.Dropout(0.25)

    def forward(self, features: Tensor, xy_um: Tensor, pitch_um: float) -> TileEvidence:
        """Evidence of a bag of tiles.

        Parameters
        ----------
        features : (N, D) float
        xy_um : (N, 2) tile centres in micrometres
        pitch_um : distance of neighbouring tiles
        """
        tokens = self.dropout(self.embed((features - self.feature_mean) / self.feature_scale))
        if len(self.blocks):
            place = torch.round((xy_um - xy_um.min(0).values) / pitch_um).long()
            layouts = {shift: WindowLayout(place[:, 0], place[:, 1], shift) for shift in (0, WINDOW // 2)}
            near = (xy_um - xy_um.min(0).values).to(tokens.dtype)
            for block in self.blocks:
                tokens = block(tokens, layouts, near, pitch_um)
        if self.config.kind == "mean":
            evidence = self.head.evidence(tokens).float()
            even = torch.full((len(tokens),), 1 / len(tokens), device=tokens.device)
            return TileEvidence((even[:, None] * evidence).sum(0) + self.head.bias, evidence, even, self.head.bias)
        result: TileEvidence = self.head(tokens)
        return result

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) logits to probabilities of all classes."""
        if self.config.task == "binary":
            positive = torch.sigmoid(logits)
            return torch.cat([1 - positive, positive], -1)
        return torch.sigmoid(logits) if self.config.task == "multilabel" else torch.softmax(logits, -1)

    def predict(self, slide: SlideFeatures) -> SlidePrediction:
        """The slide's answer and every tile's share in it."""
        ok = slide.ok
        if not ok.any():
            raise SettingsError(f"{slide.slide_id}: not one of its tiles could be read.")
        with torch.inference_mode():
            found = self(
                torch.from_numpy(slide.features[ok].astype(np.float32)),
                torch.from_numpy(slide.centres_um()[ok]),
                slide.pitch_um,
            )
            probabilities = self.probabilities(found.logits).numpy()
            scores = self.probabilities(found.evidence + found.bias)
            scores = scores[:, 1:] if self.config.task == "binary" else scores
            return SlidePrediction(
                slide.slide_id,
                self.config.classes,
                probabilities.astype(np.float32),
                _spread(scores, ok),
                _spread(found.attention[:, None], ok)[:, 0],
                _spread(found.attention[:, None] * found.evidence, ok),
                found.logits.numpy(),
                found.bias.numpy(),
            )


def _spread(values: Tensor, ok: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(n, C) of the read tiles to (N, C) of all, NaN elsewhere."""
    full = np.full((len(ok), values.shape[1]), np.nan, np.float32)
    full[ok] = values.numpy()
    return full


@dataclass(frozen=True)
class SlideModel:
    """A trained slide model with its card: what it was made for, from what, and how well it does."""

    network: SlideTransformer
    card: dict[str, Any]
    sha256: str
    name: str = field(default="")

    @property
    def encoder(self) -> dict[str, Any]:
        return dict(self.card["encoder"])

    def predict(self, slide: SlideFeatures) -> SlidePrediction:
        """The answer for a slide.

        Raises
        ------
        SettingsError : the features come from another encoder, other weights, or other tiles than the model was trained on
        """
        self.check(slide.attributes["recipe"])
        return self.network.predict(slide)

    def check(self, recipe: dict[str, Any]) -> None:
        """Refuse features of another recipe than the model was trained on; before they are made, best of all."""
        check_recipe(self.encoder, recipe, self.name)


def check_recipe(trained: dict[str, Any], recipe: dict[str, Any], model: str) -> None:
    """Refuse features the model was not trained on, naming both."""
    found = {**recipe["encoder"], "mpp": recipe["tiles"]["mpp"]}
    for key in ("encoder", "weights_sha256", "dim", "tile_px", "mpp"):
        if trained[key] != found[key]:
            raise SettingsError(
                f"Model {model!r} was trained on features with {key} = {trained[key]}, and these have {found[key]}. "
                f"Embed the slides with --encoder {trained['encoder']}, or train a model on these features."
            )


def load_model(folder: str | Path) -> SlideModel:
    """A slide model from its folder (model.safetensors, model.json); "reference" is the bundled one."""
    path, card = read_card(folder)
    weights_path = path / "model.safetensors"
    try:
        config = AggregatorConfig(**{**card["config"], "classes": tuple(card["config"]["classes"])})
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{path / 'model.json'}: of another version ({error}). Train the model again.") from error
    network = SlideTransformer(config)
    tensors = read_safetensors(weights_path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{weights_path}: does not fit model.json ({str(error).splitlines()[0]}).") from error
    digest = file_sha256(weights_path)
    if digest != card["weights_sha256"]:
        raise WeightsError(
            f"{weights_path}: its SHA-256 is not the one in model.json; one of the two was changed. Train the model again."
        )
    return SlideModel(network.eval(), card, digest, path.name)


def save_model(folder: Path, network: SlideTransformer, card: dict[str, Any]) -> None:
    """Write model.safetensors and model.json; the card gets the configuration and the weights' digest."""
    from safetensors.torch import save

    from pathovit.store import to_json, write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    write_atomically(weights, save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}))
    write_atomically(
        folder / "model.json", to_json({"config": asdict(network.config), "weights_sha256": file_sha256(weights), **card})
    )
