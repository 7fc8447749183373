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

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pathovit.settings import AggregatorConfig

WINDOW = 16  # tiles on a side
WINDOWS_AT_ONCE = 32  # bounds the memory of attention
ROWS_AT_ONCE = 4096  # tiles that a layer takes at once where nothing is learned
UM_PER_UNIT = 100.0  # positions enter the network in tenths of a millimetre


@dataclass(frozen=True)
class TileEvidence:
    """What an aggregator makes of a bag of N tiles: logits = sum(attention * evidence) + bias, where there is evidence."""

    logits: Tensor  # (C,)
    evidence: Tensor  # (N, C), before attention and bias; NaN for an aggregator whose answer is no sum over tiles
    attention: Tensor  # (N,), sums to 1
    bias: Tensor  # (C,)


class WindowLayout:
    """Which tiles share a window, for one partition of the lattice; empty places and empty windows take no room."""

    def __init__(self, column: Tensor, row: Tensor, shift: int) -> None:
        column, row = column + shift, row + shift
        wide = int(column.max()) // WINDOW + 1
        key = (row // WINDOW) * wide + column // WINDOW
        _, self.window, tiles = torch.unique(key, return_inverse=True, return_counts=True)  # (N,), (W,)
        self.count = len(tiles)
        order = torch.argsort(self.window)  # tiles, window by window
        starts = torch.cumsum(tiles, 0) - tiles
        self.filled, places = [], []  # windows of like size share a part: (w, K), the windows and their places
        for windows in _of_like_size(tiles):
            slot = torch.arange(int(tiles[windows].max()), device=tiles.device)
            self.filled.append(slot < tiles[windows, None])
            places.append(order[starts[windows, None] + torch.where(self.filled[-1], slot, 0)].flatten())
        self.places = torch.cat(places)  # (P,) the tile at each place; places that are not filled repeat a tile
        held = torch.cat([filled.flatten() for filled in self.filled]).nonzero()[:, 0]
        self.back = held[torch.argsort(self.places[held])]  # (N,) the place of each tile

    def spread(self, values: Tensor) -> Iterator[Tensor]:
        """(N, d) of the tiles, part by part: each (w, K, d)."""
        return (
            values[places].reshape(*filled.shape, -1) for places, filled in zip(self.split_places(), self.filled, strict=True)
        )

    def gather(self, parts: Iterable[Tensor]) -> Tensor:
        """The other way: (N, d). Where nothing is learned no more than one part is kept beside it."""
        if torch.is_grad_enabled():
            return torch.cat([part.flatten(0, 1) for part in parts])[self.back]
        found: Tensor | None = None
        for places, filled, part in zip(self.split_places(), self.filled, parts, strict=True):
            if found is None:
                found = part.new_empty(len(self.window), part.shape[-1])
            found[places[filled.flatten()]] = part[filled]
        assert found is not None
        return found

    def split_places(self) -> tuple[Tensor, ...]:
        """The tiles at the places of each part."""
        return torch.split(self.places, [filled.numel() for filled in self.filled])


def _of_like_size(tiles: Tensor) -> list[Tensor]:
    """Windows in groups that are attended to together, little of which is padding."""
    fullest = torch.argsort(tiles, descending=True, stable=True)
    sizes = tiles[fullest].tolist()
    groups, first = [], 0
    for place, size in enumerate(sizes):
        if place - first == WINDOWS_AT_ONCE or size < 0.7 * sizes[first]:
            groups.append(fullest[first:place])
            first = place
    return [*groups, fullest[first:]]


class WindowAttention(nn.Module):
    """Attention within windows. Each head sees as far as it has learned to: exp(-distance^2 / 2 reach^2), in micrometres.

    |a - b|^2 = |a|^2 - 2ab + |b|^2, and what depends on the query alone cancels in the softmax. So the distance is three
    more entries of query and key, no mask is needed, and the fastest attention kernels serve.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.log_reach = nn.Parameter(torch.linspace(0.0, 3.0, heads))  # of 100 um to 2 mm, at the start
        # At the start each head is a mean over its neighbourhood: what surrounds a tile need not be discovered.
        with torch.no_grad():
            self.qkv.weight[2 * width :] = torch.eye(width)
            self.out.weight.copy_(torch.eye(width))

    def forward(self, tokens: Tensor, layout: WindowLayout, xy_um: Tensor) -> Tensor:
        parts = zip(layout.spread(tokens), layout.spread(xy_um), layout.filled, strict=True)
        mixed: Iterable[Tensor]
        if torch.is_grad_enabled() and layout.count > WINDOWS_AT_ONCE:  # computed twice rather than kept
            mixed = [checkpoint(self.attend, *part, use_reentrant=False) for part in parts]
        else:
            mixed = (self.attend(*part) for part in parts)
        mixed = layout.gather(mixed)
        return by_rows(self.out, mixed, into=mixed)

    def attend(self, tokens: Tensor, xy_um: Tensor, filled: Tensor) -> Tensor:
        """Attention within w windows of up to K tiles: (w, K, d), (w, K, 2), (w, K) -> (w, K, d)."""
        qkv = self.qkv(self.norm(tokens)).float()  # (w, K, 3d)
        q, k, v = split_heads(qkv, self.heads).permute(2, 0, 3, 1, 4)  # each (w, heads, K, d/heads)
        place = (xy_um - xy_um[:, :1]) / UM_PER_UNIT  # (w, K, 2), from the window's first tile
        place = place[:, None] * torch.exp(-self.log_reach)[:, None, None]  # (w, heads, K, 2), in units of the reach
        near = -place.square().sum(-1, keepdim=True) / 2
        near = torch.where(filled[:, None, :, None], near, near.new_tensor(-1e4))
        size = q.shape[-1] ** 0.5  # the kernel divides by the root of a longer vector than ours
        nothing = q.new_zeros(*q.shape[:-1], -(q.shape[-1] + 3) % 8)
        q = torch.cat([q / size, place, torch.ones_like(near), nothing], -1)
        k = torch.cat([k, place, near, nothing], -1)
        v = torch.cat([v, place * 0, near * 0, nothing], -1)
        with torch.autocast(qkv.device.type, enabled=False):  # squares of positions need all their digits
            mixed = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        return mixed[..., : qkv.shape[-1] // (3 * self.heads)].transpose(1, 2).flatten(2)


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
        region = _sum_by(self.weighed, tokens, layout)  # (W, d + 1)
        region = region[:, :-1] / region[:, -1:]  # (W, d)
        centre = _sum_by(lambda xy: torch.cat([xy, torch.ones_like(xy[:, :1])], -1), xy_um, layout)
        place = centre[:, :2] / centre[:, 2:] / (UM_PER_UNIT * WINDOW)
        distance = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist").log1p()  # (W, W)
        bias = -functional.softplus(self.slope)[:, None, None] * distance
        q, k, v = split_heads(self.qkv(region), self.heads).permute(1, 2, 0, 3)  # each (heads, W, d/heads)
        mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None].to(q.dtype))[0]
        back: Tensor = self.out(mixed.transpose(0, 1).flatten(1))  # (W, d)
        return back[layout.window]

    def weighed(self, tokens: Tensor) -> Tensor:
        """(n, d) tiles by their weight in their window; and the weight, last: (n, d + 1)."""
        tokens = self.norm(tokens)
        weight = torch.exp(self.pool(tokens).clamp(-8, 8))  # (n, 1)
        return torch.cat([weight * tokens, weight], -1)


def _sum_by(layer: Callable[[Tensor], Tensor], rows: Tensor, layout: WindowLayout) -> Tensor:
    """What a layer makes of rows (N, d), summed within windows: (W, e)."""
    total: Tensor | None = None
    for part, window in zip(_in_parts(rows), _in_parts(layout.window), strict=True):
        values = layer(part)
        total = values.new_zeros(layout.count, values.shape[-1]) if total is None else total
        total.index_add_(0, window, values)
    assert total is not None
    return total


class Block(nn.Module):
    """Window attention, region attention, feed-forward; residual, the last two scaled from a small start."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.window = WindowAttention(width, heads)
        self.region = RegionAttention(width, heads)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.ParameterList(nn.Parameter(torch.full((width,), start)) for start in (1.0, 0.1, 0.1))

    def forward(self, tokens: Tensor, layouts: dict[int, WindowLayout], xy_um: Tensor) -> Tensor:
        layout = layouts[self.shift]
        tokens = _added(tokens, self.scale[0], self.window(tokens, layout, xy_um))
        tokens = _added(tokens, self.scale[1], self.region(tokens, layout, xy_um))
        return _added(tokens, self.scale[2], by_rows(self.feed, tokens))


def by_rows(layer: Callable[[Tensor], Tensor], rows: Tensor, into: Tensor | None = None) -> Tensor:
    """What a layer makes of rows (N, d), a part at a time where nothing is learned: what lies between takes no room then.

    Parameters
    ----------
    into : (N, e) that may be written over; else there is room made for what is found
    """
    parts = _in_parts(rows)
    if len(parts) == 1:
        return layer(rows)
    for place, part in enumerate(parts):
        found = layer(part)
        into = found.new_empty(len(rows), *found.shape[1:]) if into is None else into
        into[place * ROWS_AT_ONCE :][: len(part)] = found
    assert into is not None
    return into


def _in_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """(N, ...) all at once where something is learned."""
    return (rows,) if torch.is_grad_enabled() else torch.split(rows, ROWS_AT_ONCE)


def _added(tokens: Tensor, scale: Tensor, more: Tensor) -> Tensor:
    """tokens + scale * more; in the room of what was added, where nothing is learned and that is as precise."""
    if torch.is_grad_enabled() or more.dtype != torch.result_type(tokens, scale):
        return tokens + scale * more
    return more.mul_(scale).add_(tokens)


class AdditiveHead(nn.Module):
    """Gated attention (Ilse et al., 2018) times evidence, summed: the tile parts add up to the logit exactly."""

    def __init__(self, width: int, logits: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, width // 2), nn.Linear(width, width // 2)
        self.weight = nn.Linear(width // 2, 1, bias=False)  # a softmax ignores it
        self.evidence = nn.Linear(width, logits)
        self.bias = nn.Parameter(torch.zeros(logits))
        self.pull = nn.Parameter(torch.ones(()))  # of evidence on attention: a small tumour must not drown in its surroundings

    def forward(self, tokens: Tensor) -> TileEvidence:
        evidence = by_rows(self.evidence, tokens).float()  # (N, C)
        strength = by_rows(self.strength, tokens)[:, 0]
        attention = torch.softmax(strength.float() + self.pull * evidence.max(1).values, 0)
        return TileEvidence((attention[:, None] * evidence).sum(0) + self.bias, evidence, attention, self.bias)

    def strength(self, tokens: Tensor) -> Tensor:
        """(n, 1) before the softmax."""
        strength: Tensor = self.weight(torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens)))
        return strength


class Aggregator(nn.Module):
    """What all aggregators share: `forward` makes a `TileEvidence` of a bag; features are standardised first."""

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_scale", torch.ones(config.feature_dim))

    def standardise(self, features: Tensor) -> Tensor:
        """(N, D) to mean 0 and spread 1 of the training part."""
        return (features.float() - self.feature_mean) / self.feature_scale

    def extra_loss(self, features: Tensor, truth: Tensor) -> Tensor:
        """What an aggregator adds to the loss of a bag in training; nothing, for most."""
        return self.feature_mean.new_zeros(())


class SlideTransformer(Aggregator):
    """Tile -> region -> slide, with an additive head.

    Examples
    --------
    >>> from pathovit.settings import AggregatorConfig
    >>> network = pathovit.SlideTransformer(AggregatorConfig(feature_dim=256, outputs=1))
    >>> network(torch.zeros(5, 256), torch.arange(10.0).reshape(5, 2), 96.0).logits.shape
    torch.Size([1])
    """

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__(config)
        self.embed = nn.Sequential(nn.Linear(config.feature_dim, config.width), nn.LayerNorm(config.width))
        shifts = [0, WINDOW // 2] * config.depth
        self.blocks = nn.ModuleList(Block(config.width, config.heads, shift) for shift in shifts)
        self.head = AdditiveHead(config.width, config.outputs)
        self.dropout = nn.Dropout(0.25)

    def forward(self, features: Tensor, xy_um: Tensor, pitch_um: float) -> TileEvidence:
        """Evidence of a bag of tiles.

        Parameters
        ----------
        features : (N, D) float
        xy_um : (N, 2) tile centres in micrometres
        pitch_um : distance of neighbouring tiles
        """
        tokens = self.dropout(by_rows(lambda part: self.embed(self.standardise(part)), features))
        place = torch.round((xy_um - xy_um.min(0).values) / pitch_um).long()
        layouts = {shift: WindowLayout(place[:, 0], place[:, 1], shift) for shift in (0, WINDOW // 2)}
        near = (xy_um - xy_um.min(0).values).float()
        for block in self.blocks:
            tokens = block(tokens, layouts, near)
        result: TileEvidence = self.head(tokens)
        return result
