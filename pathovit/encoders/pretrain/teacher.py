"""What another encoder says of tiles: asked once of each tile, and kept beside the training, as it is slower than the pupil.

Its features vary most along a few directions, those of colour and kind of tissue. What is to be predicted is turned to
directions of its own and the large ones are made smaller: a direction has the square root of the spread it had.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathovit.encoders.encoder import Encoder
from pathovit.encoders.pool import by_place, has_places, pooled, tokens_of
from pathovit.encoders.pretrain.tiles import Batch, Draw, TileStream, fresh
from pathovit.files import write_atomically
from pathovit.slides.readers import RGB

LOOK_TILES, LOOK_PLACES = 512, 32_768  # from which directions are learned, at most
WHOLE_DIM, PLACE_DIM = 256, 64  # directions that are kept, of a tile and of a place in it
TOLD_TILES = 16_384  # that a teacher is asked of, at most; then they come again, altered in another way
FAR = 1_000_003  # a step that no training reaches: of tiles to look at first


class Teacher(nn.Module):
    """An encoder, and the directions of what it says: state, to be kept with a training.

    `dims` : numbers said of a tile, and of a place in it (0: its features are of the tile alone)
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        whole, places = said_by(encoder, np.zeros((1, encoder.tile_px, encoder.tile_px, 3), np.uint8))
        self.grid = places.shape[2:]
        self.whole = Evened(whole.shape[1], WHOLE_DIM)
        self.places = Evened(places.shape[1], PLACE_DIM)

    @property
    def dims(self) -> tuple[int, int]:
        return self.whole.dim, self.places.dim

    def look(self, pixels: RGB) -> None:
        """Learn the directions from tiles (B, side, side, 3)."""
        whole, places = said_by(self.encoder, pixels)
        self.whole.learn(whole)
        if self.places.dim:
            places = places.movedim(1, -1).flatten(0, -2)
            self.places.learn(places[:: 1 + len(places) // LOOK_PLACES])

    def forward(self, pixels: RGB) -> tuple[Tensor, Tensor]:
        """Of tiles (B, side, side, 3): (B, T), and of places in them (B, P, h, w)."""
        whole, places = said_by(self.encoder, pixels)
        return self.whole(whole), self.places(places.movedim(1, -1)).movedim(-1, 1)


class Evened(nn.Module):
    """Features (N, T) to their main directions (N, dim), none of which drowns the others."""

    def __init__(self, told: int, most: int) -> None:
        super().__init__()
        self.dim = min(told, most)
        self.register_buffer("centre", torch.zeros(told))
        self.register_buffer("directions", torch.eye(told)[:, : self.dim])

    def learn(self, features: Tensor) -> None:
        centre = features.double().mean(0)
        spread, along = torch.linalg.eigh(torch.cov((features.double() - centre).T))
        spread, along = spread[-self.dim :].clamp_min(1e-8 * float(spread[-1])), along[:, -self.dim :]
        self.get_buffer("centre").copy_(centre)
        self.get_buffer("directions").copy_(along * spread**-0.25 / spread.sqrt().mean().sqrt())

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.get_buffer("centre")) @ self.get_buffer("directions")


@torch.no_grad()
def said_by(encoder: Encoder, pixels: RGB) -> tuple[Tensor, Tensor]:
    """An encoder's features of tiles (B, T), and of places in them (B, P, h, w), or (B, 0, 1, 1), of one pass."""
    parts = []
    for at in range(0, len(pixels), encoder.batch_tiles):
        some, pool = pixels[at : at + encoder.batch_tiles], encoder.record.pool
        if encoder.compiled is not None or not has_places(encoder.model, pool):
            parts.append((torch.from_numpy(encoder.embed(some)).float(), torch.empty(len(some), 0, 1, 1)))
            continue
        tokens = tokens_of(encoder.model, encoder.seen(torch.from_numpy(some).to(encoder.device)))
        parts.append((pooled(encoder.model, tokens, pool).float().cpu(), by_place(encoder.model, tokens).float().cpu()))
    return torch.cat([whole for whole, _ in parts]), torch.cat([places for _, places in parts])


class Lessons:
    """Which tiles a step has, and what the teacher said of them.

    It is asked of the tiles of a step together, once: the last bits of what it says depend on their company. After
    TOLD_TILES the same ones come again, in another order.
    """

    def __init__(
        self, teacher: Teacher, stream: TileStream, folder: Path, steps: int, batch_tiles: int, rank: int, ranks: int, seed: int
    ) -> None:
        self._teacher, self._stream, self._folder = teacher, stream, folder
        self._batch, self._rank, self._seed = batch_tiles, rank, [seed, rank]
        self._groups = max(1, min(steps, TOLD_TILES // (batch_tiles * ranks)))  # that are asked of together

    def draws(self, step: int) -> list[Draw]:
        """The tiles of a step."""
        again, at = divmod(step, self._groups)
        order = np.arange(self._groups * self._batch)
        if again:
            order = np.random.default_rng([*self._seed, again]).permutation(order)
        return [
            (int(one) // self._batch, self._rank * self._batch + int(one) % self._batch)
            for one in order[at * self._batch : (at + 1) * self._batch]
        ]

    def said(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the tiles of a step: (B, T), and of places in them (B, P, h, w)."""
        draws = self.draws(batch.step)
        if batch.step < self._groups:
            rows = self._group(batch.step, batch.pixels)
        else:
            rows = np.stack([self._group(group, None)[place - self._rank * self._batch] for group, place in draws])
        found, (whole, places) = torch.from_numpy(rows.astype(np.float32)), self._teacher.dims
        return found[:, :whole], found[:, whole:].reshape(len(found), places, *self._teacher.grid)

    def _group(self, group: int, pixels: RGB | None) -> NDArray[np.float16]:
        """What was said of a group, a row each; it is asked now if that is not there."""
        kept = self._folder / f"{self._rank}-{group}.npy"
        if not kept.is_file():
            if pixels is None:
                pixels = self._stream.batch(group, fresh(group, self._batch, self._rank)).pixels
            whole, places = self._teacher(pixels)
            buffer = io.BytesIO()
            np.save(buffer, torch.cat([whole, places.flatten(1)], 1).half().numpy())
            self._folder.mkdir(exist_ok=True)
            write_atomically(kept, buffer.getvalue())
        rows: NDArray[np.float16] = np.load(kept, mmap_mode="r")
        return rows
