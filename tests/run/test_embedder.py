import gc
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_slides import PINK, PURPLE, MeanColourEncoder, exact_mask, squares_picture, write_tiff, zero_tiles

from pathovit.errors import FeatureError, SettingsError, SlideOpenError
from pathovit.outputs.features import TileVerdict
from pathovit.outputs.folder import OutFolder
from pathovit.run.embed import embed_part, make_embedder
from pathovit.run.embedder import Embedder, judge_tile
from pathovit.run.finish import finish_slide
from pathovit.run.plan import SlideJob, plan_slide
from pathovit.settings import Settings, TileSpec, fill_spec
from pathovit.slides.identity import content_sha256
from pathovit.slides.slide import Slide, open_slide
from pathovit.slides.tiling import TileGrid, lay_grid


def embed(path: Path, chunks: list[int] | None = None, readers: int = 2, seen: list[int] | None = None) -> list[Any]:
    encoder = MeanColourEncoder(tile_px=128, mpp=0.5)
    with open_slide(path, 0.5) as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        assert len(grid) == 64
        wanted = chunks if chunks is not None else [0, 1, 2, 3]
        on_batch = seen.append if seen is not None else (lambda tiles: None)
        with Embedder(encoder, readers) as embedder:
            return list(embedder.embed(slide, grid, wanted, chunk_tiles=16, batch_tiles=4, on_batch=on_batch))


def test_the_feature_of_a_tile_is_its_own(squares: Path) -> None:
    features = np.concatenate([chunk[1] for chunk in embed(squares)])
    assert features[0].tolist() == list(PINK)
    assert features[63].tolist() == list(PURPLE)  # lower right
    assert features[32 + 3].tolist() == list(PINK)  # row 4, column 3 is left of the purple quarter
    assert features[32 + 4].tolist() == list(PURPLE)


def test_a_chunk_is_the_same_alone_and_among_others(squares: Path) -> None:
    whole = {index: features for index, features, _ in embed(squares)}
    for index, features, _ in embed(squares, [3, 1], readers=1):
        assert np.array_equal(features, whole[index])


def test_progress_counts_every_tile(squares: Path) -> None:
    seen: list[int] = []
    embed(squares, seen=seen)
    assert sum(seen) == 64


def test_an_undecodable_tile_gets_its_verdict_and_the_others_their_features(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "bad.tif", squares_picture(), jpeg=True)
    zero_tiles(path, [10])  # x 512 to 768, y 256 to 512: the first 2 x 2 tiles
    chunks = embed(path)
    verdict = np.concatenate([chunk[2] for chunk in chunks])
    features = np.concatenate([chunk[1] for chunk in chunks])
    assert np.flatnonzero(verdict == TileVerdict.UNREADABLE).tolist() == [0, 1, 8, 9]
    assert np.isnan(features[[0, 1, 8, 9]]).all()
    assert np.isfinite(features[verdict == TileVerdict.OK]).all()
    assert (verdict == TileVerdict.OK).sum() == 60


def test_features_that_are_no_numbers_are_refused(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        MeanColourEncoder, "embed", lambda self, tiles: np.full((len(tiles), 3), 1e9, np.float32)
    )  # beyond float16
    with pytest.raises(
        FeatureError, match=r"features of up to 1,000,000,000, and float16 holds 65,504 at most. .* --feature-dtype float32"
    ):
        embed(squares)
    monkeypatch.setattr(MeanColourEncoder, "embed", lambda self, tiles: np.full((len(tiles), 3), np.nan, np.float32))
    with pytest.raises(FeatureError, match="no numbers. Try --precision fp32"):
        embed(squares)


def test_errors_of_the_encoder_are_not_swallowed(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: MeanColourEncoder, tiles: Any) -> Any:
        raise MemoryError("device is full")

    monkeypatch.setattr(MeanColourEncoder, "embed", fail)
    with pytest.raises(MemoryError, match="device is full"):
        embed(squares)


def test_a_tile_too_large_for_the_device_says_what_to_do(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: MeanColourEncoder, tiles: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MeanColourEncoder, "embed", fail)
    with pytest.raises(SettingsError, match="A single tile of 128 px is too much for the memory of the device. Free it"):
        embed(squares)


def test_nothing_reads_the_slide_after_an_error(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slide is closed then, and OpenSlide would read freed memory."""
    reading = threading.Semaphore(0)
    over = threading.Event()
    late = []

    def slow(slide: Slide, grid: TileGrid, index: int) -> Any:
        reading.release()
        time.sleep(0.02)
        late.append(over.is_set())
        return judge_tile(slide, grid, index)

    monkeypatch.setattr("pathovit.run.embedder.judge_tile", slow)
    encoder = MeanColourEncoder(tile_px=128, mpp=0.5)
    with open_slide(squares, 0.5) as slide, Embedder(encoder, 4) as embedder:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        stream = embedder.embed(slide, grid, [0, 1, 2, 3], chunk_tiles=16, batch_tiles=4)
        next(stream)
        reading.acquire()
        stream.close()
        over.set()
    assert late
    assert not any(late)


def test_an_embedder_that_nobody_uses_any_more_ends_its_threads() -> None:
    before = set(threading.enumerate())  # others' may be among them
    embedder = Embedder(MeanColourEncoder(), 2)
    threads = [thread for thread in threading.enumerate() if thread.name == "device" and thread not in before]
    assert len(threads) == 2
    del embedder
    gc.collect()
    for thread in threads:
        thread.join(10)
    assert set(threading.enumerate()) <= before


def test_parts_share_the_device_and_the_one_begun_first_goes_first(squares: Path) -> None:
    """A part that is begun while another runs is read ahead, and encoded when the first leaves the device free."""
    encoder = MeanColourEncoder(tile_px=128, mpp=0.5)
    seen: list[int] = []
    gate = threading.Event()

    def embed_one(tiles: np.ndarray) -> np.ndarray:
        gate.wait(10)
        seen.append(len(tiles))
        return np.asarray(tiles.mean((1, 2)), np.float32)

    encoder.embed = embed_one
    with open_slide(squares, 0.5) as slide, Embedder(encoder, 2) as embedder:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        found: dict[int, Any] = {}

        def part(batch_tiles: int) -> None:
            found[batch_tiles] = list(embedder.embed(slide, grid, [0], chunk_tiles=64, batch_tiles=batch_tiles))

        first = threading.Thread(target=part, args=(16,))
        first.start()
        until = time.monotonic() + 60
        while embedder._device._waiting.qsize() < 2 and time.monotonic() < until:  # one is on the device, two wait for it
            time.sleep(0.001)
        second = threading.Thread(target=part, args=(8,))
        second.start()
        while embedder._device._waiting.qsize() < 5 and time.monotonic() < until:
            time.sleep(0.001)
        assert embedder._device._waiting.qsize() >= 5
        gate.set()
        first.join()
        second.join()
    assert seen[:3] == [16, 16, 16]
    assert sorted(seen) == [8] * 8 + [16] * 4
    assert np.array_equal(found[16][0][1], found[8][0][1])


def test_the_embedder_says_when_the_device_was_at_work(squares: Path) -> None:
    spans: list[tuple[float, float]] = []
    encoder = MeanColourEncoder(tile_px=128, mpp=0.5)
    with open_slide(squares, 0.5) as slide, Embedder(encoder, 2) as embedder:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        list(embedder.embed(slide, grid, [0], chunk_tiles=64, batch_tiles=16, on_device=spans.append))
    assert len(spans) == 4
    assert all(begun <= ended for begun, ended in spans)
    assert spans == sorted(spans)


def small_parts() -> Settings:
    settings = Settings()
    return replace(
        settings,
        embed=replace(settings.embed, batch_tiles=4, chunk_tiles=8, part_tiles=16),
        tiles=replace(settings.tiles, min_coverage=0.5),
    )


@pytest.mark.parametrize("how", ["replaced", "grown", "touched"])
def test_a_slide_that_changes_while_it_is_read_is_not_stored_as_what_it_was(
    squares: Path, tmp_path: Path, mean_colour: MeanColourEncoder, how: str
) -> None:
    settings, out, whole = small_parts(), OutFolder(tmp_path / "out"), squares.read_bytes()
    plan = plan_slide(SlideJob(squares), out, settings, mean_colour, None, overwrite=False)

    def change(tiles: int) -> None:
        if how == "replaced":
            squares.with_suffix(".new").write_bytes(whole[:-1] + b"x")
            squares.with_suffix(".new").replace(squares)
        elif how == "grown":
            squares.write_bytes(whole + b"more")
        else:
            squares.touch()

    with make_embedder(mean_colour, settings) as embedder:
        if how == "touched":  # another time, the same content
            embed_part(plan, 0, out, settings, embedder, change)
            return
        with pytest.raises(SlideOpenError, match="changed while it was read: it was replaced, or is still being copied"):
            embed_part(plan, 0, out, settings, embedder, change)
    assert len(plan.store(out).committed()) < 2
    assert out.fingerprint(squares)[0] != plan.sha256
    assert out.superseded() == {plan.sha256}


def test_a_slide_that_is_still_being_copied_is_not_begun(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path) -> str:
        digest = content_sha256(path)
        with path.open("ab") as file:
            file.write(b"more")
        return digest

    monkeypatch.setattr("pathovit.outputs.folder.content_sha256", slow)
    with pytest.raises(SlideOpenError, match="still being copied"):
        OutFolder(tmp_path / "out").fingerprint(squares)


def test_what_a_slide_leaves_out_and_what_must_be_said_of_it_reach_its_record(
    tmp_path: Path, mean_colour: MeanColourEncoder
) -> None:
    picture = squares_picture()
    picture[:, 1750:] = (255, 0, 255)
    path, settings, out = write_tiff(tmp_path / "filled.tif", picture), small_parts(), OutFolder(tmp_path / "out")
    settings = replace(settings, embed=replace(settings.embed, max_tiles=20))
    plan = plan_slide(SlideJob(path), out, settings, mean_colour, None, overwrite=False)
    with make_embedder(mean_colour, settings) as embedder:
        for part in range(plan.parts(settings.embed.part_tiles)):
            embed_part(plan, part, out, settings, embedder, lambda tiles: None)
    done = finish_slide(plan, out, settings, None)
    assert done.survey.left_out_mm2 == {"one flat colour": pytest.approx(298 * 1536 * 0.25e-6, rel=0.05)}
    assert done.reason == done.trial
    assert done.trial.startswith("a trial on 20 of ")
    kinds = plan.store(out).tissue()
    assert set(np.unique(kinds)) == {0, 1, 3}
    again = plan_slide(SlideJob(path), out, settings, mean_colour, None, overwrite=False)
    assert again.survey == plan.survey
