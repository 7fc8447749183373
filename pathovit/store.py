"""FeatureStore: features and grids on disk, resumable chunk by chunk. The one door to Zarr.

    slides/<slide_id>/features.zarr      features (N, D), xy (N, 2), coverage (N,), verdict (N,); tissue (H, W)
    slides/<slide_id>/journal/           one file per committed chunk, removed when slide.json is written

A chunk is committed in this order: its files (each put in place by a rename), fsync of the files and their folders,
a journal file with their SHA-256, fsync. Whatever is killed in between, a chunk is either vouched for by a file whose
digests match, or it is computed again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pathovit.errors import SettingsError, StorageError, StoreError
from pathovit.features import SlideFeatures, Verdict
from pathovit.files import open_patiently, tried_again
from pathovit.tiling import TileGrid

ARRAYS = ("features", "xy", "coverage", "verdict")
CODECS = {"bytes", "zstd"}  # of our own stores
TISSUE_CHUNK = (1024, 1024)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or faulty disk into a StorageError that says so."""
    try:
        yield
    except StorageError:
        raise
    except (FileExistsError, NotADirectoryError) as error:
        raise SettingsError(
            f"{path}: the output cannot be a folder here, there is a file of that name. Choose another --out."
        ) from error
    except OSError as error:
        if error.errno in FULL_DISK or isinstance(error, PermissionError):
            raise StorageError(
                f"{path}: the output cannot be written ({error.strerror}). Free some space or choose another --out; "
                "the same command then goes on where it stopped."
            ) from error
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in place whole: temporary name, fsync, rename, fsync of the folder."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(path.parent)


def to_json(value: Any) -> bytes:
    """UTF-8 JSON; NaN and infinities are refused, for other programs cannot read them."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    with open_patiently(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _every_chunk() -> Iterator[None]:
    """Chunks that equal the fill value are written too: a chunk that is not there was never committed."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        yield


@dataclass(frozen=True)
class FeatureStore:
    """The folder of one slide's features."""

    folder: Path  # slides/<slide_id>
    path: Path  # the slide file, for messages

    @property
    def zarr_path(self) -> Path:
        return self.folder / "features.zarr"

    @property
    def _journal(self) -> Path:
        return self.folder / "journal"

    def recipe(self) -> dict[str, Any] | None:
        """The recipe the stored features were made by; None if there are none."""
        if not (self.zarr_path / "zarr.json").is_file():
            return None
        return dict(self._group("r").attrs["recipe"])

    def create(
        self, grid: TileGrid, dim: int, chunk_tiles: int, attributes: dict[str, Any], tissue: NDArray[np.uint8] | None = None
    ) -> None:
        """Lay out the arrays, with grid and recipe, whole or not at all. What was there is replaced.

        Parameters
        ----------
        tissue : (H, W) what every pixel of the overview is, if it is to be kept
        """
        temporary = self.folder / f".features.{uuid.uuid4().hex[:8]}.partial"
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in (*self.folder.glob(".*.partial"), self._journal, self.folder / "slide.json"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
            group = zarr.create_group(temporary, attributes=attributes)
            codec = ZstdCodec(level=1, checksum=True)
            tiles = len(grid)
            layout: dict[str, tuple[tuple[int, ...], str, Any]] = {
                "features": ((tiles, dim), "float16", np.float16("nan")),
                "xy": ((tiles, 2), "int64", 0),
                "coverage": ((tiles,), "float32", 0),
                "verdict": ((tiles,), "uint8", int(Verdict.PENDING)),
            }
            for name, (shape, dtype, fill) in layout.items():
                group.create_array(
                    name, shape=shape, dtype=dtype, chunks=(chunk_tiles, *shape[1:]), compressors=codec, fill_value=fill
                )  # fmt: skip
            with _every_chunk():
                self._array(group, "xy")[:] = grid.xy
                self._array(group, "coverage")[:] = grid.coverage
                if tissue is not None:
                    group.create_array("tissue", data=tissue, chunks=TISSUE_CHUNK, compressors=codec)
            if self.zarr_path.exists():
                shutil.rmtree(self.zarr_path)
            for file in temporary.rglob("*"):
                _fsync(file)
            temporary.rename(self.zarr_path)
            _fsync(self.folder)

    def _refuse_foreign(self) -> None:
        """Look at a store before a byte of it is decoded: a codec of an older format can run code of its writer's choice."""
        for about in [self.zarr_path / "zarr.json", *(self.zarr_path / name / "zarr.json" for name in (*ARRAYS, "tissue"))]:
            if not about.is_file():
                continue
            try:
                found = json.loads(tried_again(about.read_bytes))
                codecs = {codec["name"] for codec in found.get("codecs", [])}
                known = found["zarr_format"] == 3 and codecs <= CODECS and not found.get("consolidated_metadata")
            except (ValueError, KeyError, TypeError):
                known = False
            if not known:
                raise StoreError(
                    self.path, f"{self.zarr_path} was not written by pathovit, and is not read. Embed the slide again."
                )
        for folder in (self.zarr_path, *(self.zarr_path / name for name in (*ARRAYS, "tissue"))):
            if any((folder / older).exists() for older in (".zgroup", ".zarray", ".zattrs", ".zmetadata")):
                raise StoreError(
                    self.path, f"{self.zarr_path} holds a store of Zarr 2, which is not read. Embed the slide again."
                )

    def _group(self, mode: str) -> zarr.Group:
        self._refuse_foreign()
        try:
            return tried_again(lambda: zarr.open_group(self.zarr_path, mode=mode))
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(self.path, f"{self.zarr_path} is damaged ({error}). Run again with --overwrite.") from error

    def _array(self, group: zarr.Group, name: str) -> zarr.Array[Any]:
        array = tried_again(lambda: group.get(name))
        if not isinstance(array, zarr.Array):
            raise StoreError(self.path, f"{self.zarr_path} is damaged (its {name} are missing). Run again with --overwrite.")
        return array

    def shape(self) -> tuple[int, int, int]:
        """Tiles, dimensions, and tiles per chunk."""
        features = self._array(self._group("r"), "features")
        return features.shape[0], features.shape[1], features.chunks[0]

    def attributes(self) -> dict[str, Any]:
        return dict(self._group("r").attrs)

    def grid_xy(self) -> NDArray[np.int64]:
        self._check_chunks(("xy",))
        return tried_again(lambda: np.asarray(self._array(self._group("r"), "xy")[:], np.int64))

    def tissue(self) -> NDArray[np.uint8]:
        """(H, W) what every pixel of the overview is: numbers of `tissue.KINDS`. Raises StoreError if it was not kept."""
        return tried_again(lambda: np.asarray(self._array(self._group("r"), "tissue")[:], np.uint8))

    def chunk_files(self, chunk: int) -> list[Path]:
        """Files of one chunk that embedding writes."""
        return [self.zarr_path / "features" / "c" / str(chunk) / "0", self.zarr_path / "verdict" / "c" / str(chunk)]

    def write_chunk(self, chunk: int, features: NDArray[np.float16], verdict: NDArray[np.uint8]) -> None:
        """Commit one chunk: features (n, D) and verdicts (n,)."""
        with storage_errors(self.zarr_path):
            tried_again(lambda: self._put(chunk, features, verdict))
            files = self.chunk_files(chunk)
            for file in files:
                _fsync(file)
                _fsync(file.parent)
            line = json.dumps({"chunk": chunk, "sha256": [file_digest(file) for file in files]})
            self._journal.mkdir(exist_ok=True)
            write_atomically(self._journal / f"{chunk:06d}.json", line.encode())

    def _put(self, chunk: int, features: NDArray[np.float16], verdict: NDArray[np.uint8]) -> None:
        group = zarr.open_group(self.zarr_path, mode="r+")
        size = self._array(group, "features").chunks[0]
        rows = slice(chunk * size, chunk * size + len(features))
        with _every_chunk():
            self._array(group, "features")[rows] = features
            self._array(group, "verdict")[rows] = verdict

    def committed(self) -> set[int]:
        """Chunks that are vouched for by the journal and whose files still have the digests written there."""
        done = set()
        for entry in sorted(self._journal.glob("[0-9]*.json")) if self._journal.is_dir() else []:
            line = json.loads(tried_again(entry.read_bytes))
            files = self.chunk_files(line["chunk"])
            if all(file.is_file() for file in files) and [file_digest(file) for file in files] == line["sha256"]:
                done.add(int(line["chunk"]))
        return done

    def sweep(self) -> None:
        """Remove what a killed writer left behind."""
        for stale in [*self.folder.rglob("*.partial")]:
            if stale.is_file():
                stale.unlink(missing_ok=True)

    def read(self, slide_id: str) -> SlideFeatures:
        """All rows of a slide.

        Raises
        ------
        StoreError : a chunk is missing or fails its checksum
        """
        group = self._group("r")
        self._check_chunks(ARRAYS)
        try:
            arrays = tried_again(lambda: {name: np.asarray(self._array(group, name)[:]) for name in ARRAYS})
        except StoreError:
            raise
        except Exception as error:  # codecs raise their own kinds; whatever it is, the stored bytes are wrong
            raise StoreError(self.path, f"its stored features are damaged ({error}). Run again with --overwrite.") from error
        return SlideFeatures(slide_id, attributes=dict(group.attrs), **arrays)

    def _check_chunks(self, names: tuple[str, ...]) -> None:
        """A missing chunk would be read as fill values, without a word."""
        tiles, _, size = self.shape()
        for name in names:
            for chunk in range(-(-tiles // size)):
                file = self.zarr_path / name / "c" / str(chunk)
                if not (file / "0" if name in ("features", "xy") else file).is_file():
                    raise StoreError(self.path, f"chunk {chunk} of its {name} is missing. Run again with --overwrite.")

    def finish(self) -> None:
        """The slide is done and vouched for by slide.json: the journal can go."""
        self.sweep()
        if self._journal.is_dir():
            shutil.rmtree(self._journal)
