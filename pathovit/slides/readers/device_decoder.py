"""DeviceDecoder: JPEG tiles decoded by the encoder's device. The one door to nvImageCodec.

Compressed bytes go up, and tiles come out where the encoder wants them: a GPU with few cores beside it need not wait for
them. Its decoder rounds in its own way, so pixels differ a little from OpenSlide's, and the choice is part of the recipe.
On a CPU the same library uses libjpeg-turbo, which gives OpenSlide's pixels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathovit.errors import SettingsError, SlideError, TileReadError
from pathovit.machine import allowed_cores
from pathovit.reasons import Code
from pathovit.slides.identity import FileState, file_state
from pathovit.slides.readers import RGB
from pathovit.slides.readers.compressed import CodedTile, CompressedTiles, Piece

if TYPE_CHECKING:
    import torch

KEPT_BYTES = 512 * 2**20  # of decoded pieces, on the device: neighbouring tiles share them
TOGETHER = 32  # tiles that are decoded and averaged at once: their pixels are many, and averaged in fp32
DEVIATION = 2.0  # grey levels, in the mean, that a decoder may differ from libjpeg; wrong colours differ by more
Key = tuple[Path, int, int]  # slide, level, index


class DeviceDecoder:
    """Decodes on one device; safe from several threads."""

    def __init__(self, device: torch.device) -> None:
        """Raises SettingsError where nvImageCodec is not installed, or does not know the device."""
        import torch

        codec = load_codec(device.type)
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._device = device
        self._decoder = codec.Decoder(
            device_id=(device.index or 0) if self._on_gpu else codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=max(1, allowed_cores() - 1),
            backends=None if self._on_gpu else [codec.Backend(codec.BackendKind.CPU_ONLY)],
            options=":fancy_upsampling=1",  # of chroma, as libjpeg does it
        )
        self._as_rgb = codec.DecodeParams(
            apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB, sample_format=codec.SampleFormat.I_RGB
        )
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, torch.Tensor] = OrderedDict()
        self._kept_bytes = 0
        self._states: dict[Path, FileState] = {}  # of the slides that pieces are kept of

    def read(
        self,
        path: Path,
        tiles: Sequence[CodedTile | RGB],
        read_px: tuple[int, int],
        tile_px: int,
        instead: Callable[[int], RGB | None],
    ) -> torch.Tensor:
        """Tiles of a slide on the device, averaged to the side asked for: uint8 (B, tile_px, tile_px, 3).

        Parameters
        ----------
        tiles : as they lie in the file; or read already, uint8 (tile_px, tile_px, 3)
        read_px : width and height of a tile before it is averaged
        instead : given the place of a tile that cannot be decoded, reads it; where it returns None the tile is left out
        """
        import torch

        parts = []
        with self._lock, self._own_stream():
            for first in range(0, len(tiles), TOGETHER):
                places = range(first, min(first + TOGETHER, len(tiles)))
                some = [(place, tile) for place in places if isinstance(tile := tiles[place], CodedTile)]
                whole = torch.empty((len(some), read_px[1], read_px[0], 3), dtype=torch.uint8, device=self._device)
                decoded = self._decode(path, [piece for _, tile in some for piece in tile.pieces])
                laid = {place: row for row, (place, tile) in enumerate(some) if _lay(whole[row], tile, path, decoded)}
                small = shrink(whole, tile_px) if some else whole
                for place in places:
                    tile = tiles[place]
                    if place in laid:
                        parts.append(small[laid[place]])
                    elif (read := instead(place) if isinstance(tile, CodedTile) else tile) is not None:
                        parts.append(torch.from_numpy(read).to(self._device))
            return torch.stack(parts) if parts else torch.empty((0, tile_px, tile_px, 3), dtype=torch.uint8)

    def check(self, path: Path, compressed: CompressedTiles, level: int) -> None:
        """Before a slide is read: raises SlideError where the device's decoder sees other pixels than libjpeg in the level's most detailed tile."""
        state = file_state(path)
        if self._states.setdefault(path, state) != state:  # another file lies there now
            self.forget()
            self._states[path] = state
        tiled = compressed.levels.get(level)
        if tiled is None or not tiled.is_jpeg:
            return
        index = int(np.argmax(tiled.lengths))
        try:
            ours, coded = compressed.decode(tiled, index, 1), compressed.bytes_of(tiled, index)
        except TileReadError:
            return  # damaged: its verdict is the reader's to find
        if ours is None or coded is None:
            return
        with self._lock, self._own_stream():
            theirs = self._decode(path, [Piece(level, index, coded, 0, 0)]).get((path, level, index))
            difference = None if theirs is None else np.abs(theirs.cpu().numpy().astype(int) - ours).mean()
        if difference is None:
            raise SlideError(path, "the device cannot decode its JPEG tiles. Use --reader auto.", Code.DEVICE)
        if difference > DEVIATION:
            raise SlideError(path, "the device decodes its JPEG tiles otherwise than libjpeg. Use --reader auto.", Code.DEVICE)

    def forget(self) -> None:
        """Drop the decoded pieces that are kept."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0

    def _decode(self, path: Path, pieces: Sequence[Piece]) -> dict[Key, torch.Tensor]:
        """The pieces that can be decoded, uint8 (h, w, 3), each once; those kept from before are not decoded again."""
        found: dict[Key, torch.Tensor] = {}
        new: dict[Key, bytes] = {}
        for piece in pieces:
            key = (path, piece.level, piece.index)
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                found[key] = kept
            else:
                new[key] = piece.coded
        if new:
            on = self._stream.cuda_stream if self._on_gpu else 0
            for key, image in zip(
                new, self._decoder.decode(list(new.values()), params=self._as_rgb, cuda_stream=on), strict=True
            ):
                if image is not None:
                    found[key] = self._kept[key] = self._tensor(image)
                    self._kept_bytes += found[key].nbytes
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _tensor(self, image: Any) -> torch.Tensor:
        import torch
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(image) if self._on_gpu else torch.from_numpy(np.asarray(image))

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Work, and take memory, beside the encoder's stream, and be done at the end."""
        import torch

        if not self._on_gpu:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()


def load_codec(device: str) -> Any:
    """nvImageCodec for a type of device. Raises SettingsError where it is not installed or does not know the device."""
    if device not in ("cuda", "cpu"):
        raise SettingsError(f"--reader device: nothing decodes JPEG on {device}. Use --reader auto.")
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise SettingsError(
            f'--reader device needs nvImageCodec ({error}). Install it with: pip install "pathovit[gpu]", or use --reader auto.'
        ) from error
    return nvimgcodec


def shrink(whole: torch.Tensor, tile_px: int) -> torch.Tensor:
    """uint8 (B, H, W, 3) to (B, tile_px, tile_px, 3), as tiles read on the CPU are: by averaging for whole factors."""
    from torch.nn import functional

    height, width = whole.shape[1:3]
    if (height, width) == (tile_px, tile_px):
        return whole
    images = whole.permute(0, 3, 1, 2).float()
    if height % tile_px == 0 and width % tile_px == 0:
        images = functional.avg_pool2d(images, (height // tile_px, width // tile_px))
    else:
        images = functional.interpolate(images, (tile_px, tile_px), mode="bilinear", antialias=True)
    return images.add_(0.5).clamp_(0, 255).byte().permute(0, 2, 3, 1)


def _lay(whole: torch.Tensor, tile: CodedTile, path: Path, decoded: dict[Key, torch.Tensor]) -> bool:
    """Lay the pieces of a tile (H, W, 3) where they belong; whether all were there."""
    height, width = whole.shape[:2]
    for piece in tile.pieces:
        pixels = decoded.get((path, piece.level, piece.index))
        if pixels is None or pixels.shape[:2] != tile.piece_px[::-1]:
            return False
        top, left = max(piece.top, 0), max(piece.left, 0)
        bottom, right = min(piece.top + pixels.shape[0], height), min(piece.left + pixels.shape[1], width)
        whole[top:bottom, left:right] = pixels[top - piece.top : bottom - piece.top, left - piece.left : right - piece.left]
    return True
