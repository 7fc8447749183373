from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import CHUNK, made_grid, made_record, made_store
from numpy.typing import NDArray

from pathovit.errors import SettingsError, StoreError
from pathovit.files import to_json, write_atomically
from pathovit.outputs.features import TileVerdict
from pathovit.outputs.folder import OutFolder, Refused, SlideFolder
from pathovit.outputs.lease import lease
from pathovit.outputs.recipe import EmbedRecipe
from pathovit.outputs.records import RecordError, SlideRecord, TopTile
from pathovit.outputs.store import FeatureStore
from pathovit.run.diary import Diary
from pathovit.slides.tiling import TileGrid

TILES, DIM = 40, 3  # chunks of 16, 16 and 8
ROWS = [(0, 16), (16, 32), (32, 40)]


def grid() -> TileGrid:
    xy = np.stack([np.arange(TILES) * 10, np.zeros(TILES)], 1).astype(np.int64)
    return made_grid(xy, 10.0)


def values() -> NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=(TILES, DIM)).astype(np.float16)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return made_store(tmp_path / "slide", grid(), DIM, CHUNK, {"a": 1})


def write_all(store: FeatureStore, chunks: tuple[int, ...] = (0, 1, 2)) -> None:
    for chunk in chunks:
        rows = slice(*ROWS[chunk])
        store.write_chunk(chunk, values()[rows], np.zeros(rows.stop - rows.start, np.uint8))


def test_what_is_written_is_read(store: FeatureStore) -> None:
    write_all(store)
    found = store.read()
    assert np.array_equal(found.features, values())
    assert np.array_equal(found.xy, grid().xy)
    assert found.ok.all()
    assert store.recipe() == EmbedRecipe({"a": 1})


def test_order_of_writing_does_not_matter(store: FeatureStore, tmp_path: Path) -> None:
    other = made_store(tmp_path / "other", grid(), DIM, CHUNK, {"a": 1})
    write_all(store)
    write_all(other, (2, 0, 1))
    files = sorted(
        p.relative_to(store.zarr_path) for p in store.zarr_path.rglob("*") if p.is_file() and p.parent != store.zarr_path
    )
    assert all((store.zarr_path / f).read_bytes() == (other.zarr_path / f).read_bytes() for f in files)


def test_chunks_are_committed_one_by_one(store: FeatureStore) -> None:
    assert store.committed() == set()
    write_all(store, (1,))
    assert store.committed() == {1}


def test_a_chunk_changed_on_disk_is_not_vouched_for(store: FeatureStore) -> None:
    write_all(store)
    file = store.chunk_files(1)[0]
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert store.committed() == {0, 2}


def test_every_flipped_bit_of_features_is_noticed(store: FeatureStore) -> None:
    write_all(store)
    file = store.chunk_files(0)[0]
    good = file.read_bytes()
    chance = np.random.default_rng(1)
    for _ in range(60):
        bad = bytearray(good)
        bad[chance.integers(len(bad))] ^= 1 << int(chance.integers(8))
        file.write_bytes(bytes(bad))
        with pytest.raises(StoreError, match="damaged"):
            store.read()


def test_a_missing_chunk_is_never_read_as_numbers(store: FeatureStore) -> None:
    write_all(store)
    for name in ("features/c/2/0", "xy/c/0/0", "coverage/c/1", "verdict/c/2"):
        file = store.zarr_path / name
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(StoreError, match=rf"chunk [\d/]+ of its {name.split('/')[0]} is missing"):
            store.read()
        file.write_bytes(content)
    store.read()
    (store.zarr_path / "tissue/c/0/0").unlink()
    with pytest.raises(StoreError, match="chunk 0/0 of its tissue is missing"):
        store.tissue()


def test_rows_not_written_are_pending(store: FeatureStore) -> None:
    import zarr

    verdict = zarr.open_group(store.zarr_path, mode="r")["verdict"][:]
    assert (verdict == TileVerdict.PENDING).all()


def test_a_half_made_store_does_not_exist(tmp_path: Path) -> None:
    store = FeatureStore(SlideFolder(tmp_path / "slide"), Path("s.svs"))
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / ".features.12345678.partial").mkdir()
    assert store.recipe() is None
    made_store(tmp_path / "slide", grid(), DIM, CHUNK)
    assert not list(store.folder.path.glob(".*.partial"))


def test_leftovers_of_killed_writers_are_swept(store: FeatureStore) -> None:
    leftover = store.zarr_path / "features" / "c" / "0.deadbeef.partial"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"x")
    store.sweep()
    assert not leftover.exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", b"one")
    write_atomically(tmp_path / "a.json", b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"two"


def test_a_chunk_of_nothing_but_unread_tiles_is_a_chunk(store: FeatureStore) -> None:
    write_all(store, (0, 1))
    store.write_chunk(2, np.full((8, DIM), np.nan, np.float16), np.full(8, TileVerdict.UNREADABLE, np.uint8))
    assert store.committed() == {0, 1, 2}
    assert np.isnan(store.read().features[32:]).all()


def test_a_slide_of_one_tile_at_its_corner_is_stored(tmp_path: Path) -> None:
    one = TileGrid(**{**vars(grid()), "xy": np.zeros((1, 2), np.int64), "coverage": np.zeros(1, np.float32), "total": 1})
    made = made_store(tmp_path / "one", one, DIM, CHUNK)
    made.write_chunk(0, np.zeros((1, DIM), np.float16), np.zeros(1, np.uint8))
    assert made.read().xy.tolist() == [[0, 0]]


def test_json_never_holds_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})


def test_a_store_that_is_not_ours_is_refused_before_a_byte_is_decoded(store: FeatureStore) -> None:
    write_all(store)
    about = store.zarr_path / "features" / "zarr.json"
    known = about.read_text()
    about.write_text(known.replace('"name": "zstd"', '"name": "pickle"'))
    with pytest.raises(StoreError, match="was not written by pathovit"):
        store.read()
    about.write_text(known)
    (store.zarr_path / "features" / ".zarray").write_text("{}")
    with pytest.raises(StoreError, match="a store of Zarr 2"):
        store.read()


def test_a_record_that_leads_out_of_its_folder_is_no_record(tmp_path: Path) -> None:
    folder = SlideFolder(tmp_path / "slides" / "a-1")
    folder.path.mkdir(parents=True)
    good = made_record(products={"overview.png": ""}, top_tiles=(TopTile("top_tiles/01.jpg", 0.5, 0.1, 0, 0),)).to_json()

    def read(changed: dict[str, Any]) -> SlideRecord | Refused | None:
        (folder.path / "slide.json").write_bytes(to_json(good | changed))
        return folder.read()

    assert read({}) == SlideRecord.from_json(good, "a-1")
    for bad in (
        {"slide": good["slide"] | {"slide_id": "../b"}},
        {"top_tiles": [good["top_tiles"][0] | {"file": "../../private.txt"}]},
        {"products": {"/etc/passwd": ""}},
        {"products": {"a/../../b": ""}},
    ):
        found = read(bad)
        assert isinstance(found, Refused)
        assert "leads out of its own folder" in found.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "written by another version, and is not read: run it again"),
        ("[]", "written by another version"),
        ('{"slide": {"slide_id": "a-1"}}', "written by another version"),
        ('{"format": 99}', "written by a later version, and is not read: update pathovit"),
        ('{"form', "damaged: run it again"),
    ],
)
def test_a_record_that_is_not_ours_is_named_and_not_read(tmp_path: Path, content: str, reason: str) -> None:
    folder = OutFolder(tmp_path).slide("a-1")
    folder.path.mkdir(parents=True)
    (folder.path / "slide.json").write_text(content)
    records, (refused,) = OutFolder(tmp_path).finished()
    assert records == []
    assert refused.slide_id == "a-1"
    assert reason in refused.reason


@pytest.mark.parametrize(
    "missing", sorted(made_record().to_json().keys() - {"research_use", "format", "top_tiles", "views", "code"})
)
def test_a_record_that_lacks_something_is_refused_and_breaks_nothing(tmp_path: Path, missing: str) -> None:
    found = made_record().to_json()
    del found[missing]
    with pytest.raises(RecordError, match="written by another version"):
        SlideRecord.from_json(found, "a-1")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim.txt").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to("../victim.txt")
    with pytest.raises(SettingsError, match="is a link, and is not followed"), lease(tmp_path / "out"):
        pass
    assert (tmp_path / "victim.txt").read_text() == "precious"


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim.txt").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.private.txt").symlink_to("../victim.txt")
    with pytest.raises(SettingsError, match="is a link, and is not followed"):
        Diary(tmp_path / "out", ["run"])
    assert (tmp_path / "victim.txt").read_text() == "precious"


def test_a_file_of_the_longest_name_is_written(tmp_path: Path) -> None:
    for name in ("x" * 250 + ".csv", "\u00e9" * 125 + ".csv"):
        write_atomically(tmp_path / name, b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["/proc/nowhere/out", "x" * 300, "a\x01/../" + "y" * 300])
def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="there can be no such folder"), lease(tmp_path / name):
        pass


def test_the_seal_says_how_long_embedding_took_in_all(store: FeatureStore) -> None:
    """Parts side by side count once, and the pause between two runs does not count."""
    spans = [(10.0, 12.0), (11.0, 13.0), (100.0, 101.5)]
    for chunk, span in enumerate(spans):
        rows = slice(*ROWS[chunk])
        store.write_chunk(chunk, values()[rows], np.zeros(rows.stop - rows.start, np.uint8), span)
    assert store.seal().seconds == 4.5
    assert store.seal().seconds == 4.5  # once more: nothing was embedded since
    assert store.committed() == {0, 1, 2}
    store.write_chunk(1, values()[16:32], np.zeros(16, np.uint8), (200.0, 201.0))
    assert store.seal().seconds == 5.5


def test_the_seal_vouches_for_a_chunk_as_it_was_written(store: FeatureStore) -> None:
    """What is changed between writing and sealing is found, and not vouched for."""
    write_all(store)
    file = store.chunk_files(1)[0]
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    store.seal()
    assert store.committed() == {0, 2}
    assert store.is_sound()
