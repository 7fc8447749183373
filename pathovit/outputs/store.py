"""FeatureStore: features and grids on disk, resumable chunk by chunk. The one door to Zarr.

    slides/<slide_id>/features.zarr      features (N, D), xy (N, 2), coverage (N,), verdict (N,); tissue (H, W)
    slides/<slide_id>/journal/           one file per committed chunk, removed when the features are sealed
    slides/<slide_id>/features.json      the seal: digests of all files of features.zarr

A chunk is committed in this order: its files (each put in place by a rename), fsync of the files and their folders,
a journal file with their SHA-256, fsync. Whatever is killed in between, a chunk is either vouched for by a file whose
digests match, or it is computed again.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import StoreError
from pathovit.files import file_sha256, fsync, storage_errors, tried_again, write_atomically
from pathovit.outputs.features import FeatureAttributes, SlideFeatures, TileVerdict
from pathovit.outputs.folder import ANEW, SlideFolder
from pathovit.outputs.foreign import ARRAYS, refuse_foreign
from pathovit.outputs.journal import Entry, Journal, Span, covered_s
from pathovit.outputs.recipe import EmbedRecipe
from pathovit.outputs.records import FeaturesRecord
from pathovit.slides.tiling import TileGrid

if TYPE_CHECKING:
    import zarr  # which takes a quarter of a second: a finished batch is recognised without it

T = TypeVar("T")
TISSUE_CHUNK = (1024, 1024)
_WRITTEN = re.compile(r"(features|verdict)/c/")  # files of the chunks that embedding writes; all else is laid out before


@contextmanager
def _every_chunk() -> Iterator[None]:
    """Chunks that equal the fill value are written too: a chunk that is not there was never committed."""
    import zarr

    with zarr.config.set({"array.write_empty_chunks": True}):
        yield


@dataclass(frozen=True)
class FeatureStore:
    """The features of one slide, in its folder. `load_features` reads them."""

    folder: SlideFolder
    path: Path  # the slide file, for messages

    @property
    def zarr_path(self) -> Path:
        return self.folder.features

    @property
    def _journal(self) -> Journal:
        return Journal(self.folder.path / "journal")

    def recipe(self) -> EmbedRecipe | None:
        """The recipe the stored features were made by; None if there are none."""
        if not (self.zarr_path / "zarr.json").is_file():
            return None
        return self._understood(lambda: EmbedRecipe(dict(cast("Mapping[str, Any]", self._group().attrs["recipe"]))))

    def create(
        self, grid: TileGrid, dim: int, chunk_tiles: int, attributes: FeatureAttributes, tissue: NDArray[np.uint8],
        dtype: str = "float16", forget: bool = True,
    ) -> None:  # fmt: skip
        """Lay out the arrays, with grid and recipe, whole or not at all. What was there is replaced, and nothing vouches for it any more.

        Parameters
        ----------
        tissue : (H, W) what every pixel of the overview is
        dtype : of features; float32 for encoders whose features are too large for float16
        forget : what was made of the features that were there, too; not where it stays true of these
        """
        folder = self.folder.path
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.folder.forget(forget)
            write_atomically(self.folder.path / ANEW, b"")  # no older record vouches for what is made now
            known = attributes.to_attributes(self.folder.slide_id) | grid.to_attributes()
            tried_again(lambda: self._lay_out(grid, dim, chunk_tiles, known, tissue, dtype))

    def _lay_out(
        self, grid: TileGrid, dim: int, chunk_tiles: int, known: Mapping[str, Any], tissue: NDArray[np.uint8], dtype: str
    ) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        from pathovit.outputs.patient import PatientFiles

        folder = self.folder.path
        for stale in folder.glob(".*.partial"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
        temporary = folder / f".features.{uuid.uuid4().hex[:8]}.partial"
        group = zarr.create_group(PatientFiles(temporary), attributes=dict(known))
        codec = ZstdCodec(level=1, checksum=True)
        tiles = len(grid)
        layout: dict[str, tuple[tuple[int, ...], str, Any]] = {
            "features": ((tiles, dim), dtype, np.dtype(dtype).type("nan")),
            "xy": ((tiles, 2), "int64", 0),
            "coverage": ((tiles,), "float32", 0),
            "verdict": ((tiles,), "uint8", int(TileVerdict.PENDING)),
        }
        for name, (shape, kind, fill) in layout.items():
            group.create_array(
                name, shape=shape, dtype=kind, chunks=(chunk_tiles, *shape[1:]), compressors=codec, fill_value=fill
            )  # fmt: skip
        with _every_chunk():
            self._array(group, "xy")[:] = grid.xy
            self._array(group, "coverage")[:] = grid.coverage
            group.create_array("tissue", data=tissue, chunks=TISSUE_CHUNK, compressors=codec)
        if self.zarr_path.exists():
            shutil.rmtree(self.zarr_path)
        for file in temporary.rglob("*"):
            fsync(file)
        temporary.rename(self.zarr_path)
        fsync(folder)

    def _group(self) -> zarr.Group:
        import zarr

        from pathovit.outputs.patient import PatientFiles

        refuse_foreign(self.zarr_path, self.path)
        try:
            return tried_again(lambda: zarr.open_group(PatientFiles(self.zarr_path, read_only=True), mode="r"))
        except (OSError, ValueError, KeyError) as error:
            gone = "gone, and with it the features. Embed it again: pathovit embed."
            said = f"damaged ({error}). Run again with --overwrite." if self.zarr_path.exists() else gone
            raise StoreError(self.path, f"{self.zarr_path} is {said}") from error

    def _array(self, group: zarr.Group, name: str) -> zarr.Array[Any]:
        import zarr

        array = tried_again(lambda: group.get(name))
        if not isinstance(array, zarr.Array):
            raise StoreError(self.path, f"{self.zarr_path} is damaged (its {name} are missing). Run again with --overwrite.")
        return array

    def _read(self, group: zarr.Group, name: str) -> NDArray[Any]:
        return tried_again(lambda: np.asarray(self._array(group, name)[:]))

    def shape(self) -> tuple[int, int, int]:
        """Tiles, dimensions, and tiles per chunk."""
        return self._shape(self._group())

    def _shape(self, group: zarr.Group) -> tuple[int, int, int]:
        features = self._array(group, "features")
        return features.shape[0], features.shape[1], features.chunks[0]

    def attributes(self) -> FeatureAttributes:
        return self._attributes(self._group())

    def _attributes(self, group: zarr.Group) -> FeatureAttributes:
        return self._understood(lambda: FeatureAttributes.from_attributes(group.attrs))

    def grid(self) -> TileGrid:
        """The grid that was laid when the store was made."""
        return self._grid(self._group())

    def _grid(self, group: zarr.Group) -> TileGrid:
        self._check_chunks(group, ("xy", "coverage"))
        xy, coverage = self._read(group, "xy"), self._read(group, "coverage")
        return self._understood(
            lambda: TileGrid.from_attributes(group.attrs, np.asarray(xy, np.int64), np.asarray(coverage, np.float32))
        )

    def _understood(self, read: Callable[[], T]) -> T:
        """What attributes say. Raises StoreError where they say something else than ours."""
        try:
            return read()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                self.path,
                f"the attributes of {self.zarr_path} are not those of a store of pathovit ({error!r}). Embed the slide again.",
            ) from error

    def tissue(self) -> NDArray[np.uint8]:
        """(H, W) what every pixel of the overview is: numbers of `tissue.KINDS`. Raises StoreError if it was not kept."""
        self._check_chunks(group := self._group(), ("tissue",))
        return np.asarray(self._read(group, "tissue"), np.uint8)

    def chunk_files(self, chunk: int) -> list[Path]:
        """Files of one chunk that embedding writes."""
        return [self.zarr_path / "features" / "c" / str(chunk) / "0", self.zarr_path / "verdict" / "c" / str(chunk)]

    def write_chunk(
        self, chunk: int, features: NDArray[np.floating[Any]], verdict: NDArray[np.uint8], span: Span = (0.0, 0.0)
    ) -> None:
        """Commit one chunk: features (n, D), verdicts (n,), and between which times it was made, seconds since the epoch."""
        with storage_errors(self.zarr_path):
            tried_again(lambda: self._put(chunk, features, verdict))
            files = self.chunk_files(chunk)
            for file in files:
                fsync(file)
                fsync(file.parent)
            self._journal.add(Entry(chunk, [file_sha256(file) for file in files], span))

    def _put(self, chunk: int, features: NDArray[np.floating[Any]], verdict: NDArray[np.uint8]) -> None:
        import zarr

        from pathovit.outputs.patient import PatientFiles

        group = zarr.open_group(PatientFiles(self.zarr_path), mode="r+")
        size = self._array(group, "features").chunks[0]
        rows = slice(chunk * size, chunk * size + len(features))
        with _every_chunk():
            self._array(group, "features")[rows] = features
            self._array(group, "verdict")[rows] = verdict

    def committed(self, chunks: Iterable[int] | None = None) -> set[int]:
        """Chunks (of these) that are vouched for, by the journal or by the seal, and whose files still have the digests written there."""
        vouched = self._sealed_chunks() | {entry.chunk: entry.sha256 for entry in self._journal.entries()}
        asked = vouched if chunks is None else vouched.keys() & set(chunks)
        return {chunk for chunk in asked if self._has(self.chunk_files(chunk), vouched[chunk])}

    def _sealed_chunks(self) -> dict[int, list[str]]:
        sealed = self.folder.features_record()
        if sealed is None:
            return {}
        tiles, _, size = self.shape()
        found = {}
        for chunk in range(-(-tiles // size)):
            names = [self._name(file) for file in self.chunk_files(chunk)]
            if all(name in sealed.files for name in names):
                found[chunk] = [sealed.files[name] for name in names]
        return found

    def _name(self, file: Path) -> str:
        """Within features.zarr, as seals have it."""
        return file.relative_to(self.zarr_path).as_posix()

    def _has(self, files: list[Path], digests: list[str]) -> bool:
        return all(file.is_file() for file in files) and [file_sha256(file) for file in files] == digests

    def is_sound(self) -> bool:
        """Whether all but the chunks that embedding writes is as it was laid out; where nothing vouches for it, whether it can be read."""
        sealed = self.folder.features_record()
        if sealed is None:
            try:
                return self.shape() is not None
            except StoreError:
                return False
        return all(
            self._has([self.zarr_path / name], [digest]) for name, digest in sealed.files.items() if not _WRITTEN.match(name)
        )

    def sweep(self) -> None:
        """Remove what a killed writer left behind."""
        for stale in [*self.folder.path.rglob("*.partial")]:
            if stale.is_file():
                stale.unlink(missing_ok=True)

    def read(self) -> SlideFeatures:
        """All rows of a slide.

        Raises
        ------
        StoreError : a chunk is missing or fails its checksum
        """
        group = self._group()
        self._check_chunks(group, ARRAYS)
        try:
            features, verdict = self._read(group, "features"), self._read(group, "verdict")
            grid = self._grid(group)
        except StoreError:
            raise
        except Exception as error:  # codecs raise their own kinds; whatever it is, the stored bytes are wrong
            raise StoreError(self.path, f"its stored features are damaged ({error}). Run again with --overwrite.") from error
        return SlideFeatures(
            self.folder.slide_id, grid, np.asarray(features), np.asarray(verdict, np.uint8), self._attributes(group)
        )

    def _check_chunks(self, group: zarr.Group, names: tuple[str, ...]) -> None:
        """A missing chunk would be read as fill values, without a word."""
        for name in names:
            for place in np.ndindex(self._array(group, name).cdata_shape):
                chunk = "/".join(map(str, place))
                if not (self.zarr_path / name / "c" / chunk).is_file():
                    raise StoreError(self.path, f"chunk {chunk} of its {name} is missing. Run again with --overwrite.")

    def seal(self) -> FeaturesRecord:
        """All chunks are written: from here on features.json vouches for them, and says how long embedding took in all."""
        self.sweep()
        sealed, entries = self.folder.features_record(), self._journal.entries()
        if sealed is None or entries or not self.folder.is_sealed:
            before = sealed.seconds if sealed else 0.0
            files = {name: digest for name, digest in sealed.files.items() if _WRITTEN.match(name)} if sealed else {}
            for entry in entries:  # as the chunk was when it was written
                files |= zip(map(self._name, self.chunk_files(entry.chunk)), entry.sha256, strict=True)
            files |= {name: file_sha256(file) for file in self._files() if (name := self._name(file)) not in files}
            sealed = FeaturesRecord(files, round(before + covered_s([entry.span for entry in entries]), 2))
            self.folder.seal(sealed)
        shutil.rmtree(self._journal.path, ignore_errors=True)
        return sealed

    def _files(self) -> list[Path]:
        """Files of the store, and nothing else that may lie there."""
        tiles, _, size = self.shape()
        found = [self.zarr_path / "zarr.json", *(self.zarr_path / name / "zarr.json" for name in (*ARRAYS, "tissue"))]
        for chunk in range(-(-tiles // size)):
            found += [
                *self.chunk_files(chunk),
                self.zarr_path / "xy" / "c" / str(chunk) / "0",
                self.zarr_path / "coverage" / "c" / str(chunk),
            ]
        found += sorted((self.zarr_path / "tissue" / "c").glob("[0-9]*/[0-9]*"))
        return [file for file in found if file.is_file()]
