"""What a hang does, and what looking at a slide, importing and loading leave alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_steps import SETTINGS, CountingEncoder

from pathovit.errors import TileReadError
from pathovit.outputs.folder import OutFolder
from pathovit.run.embed import embed_part, make_embedder
from pathovit.run.embedder import Embedder, judge_tile
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide
from pathovit.settings import Settings
from pathovit.slides.slide import open_slide


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


# 6. Identity on demand


def test_looking_at_a_slide_does_not_read_its_content(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathovit.cli.info import Preflight, describe

    digest = open_slide(squares).sha256
    monkeypatch.setattr("pathovit.slides.slide.content_sha256", pytest.fail)
    assert isinstance(describe(SlideJob(squares), Settings()), Preflight)
    with open_slide(squares) as slide:
        assert slide.size == (2048, 1536)
        monkeypatch.undo()
        assert slide.sha256 == digest
        assert slide.id == f"slide-{digest[:12]}"


# 7, 11. What a hang does


def test_a_hang_is_an_error_in_a_library_and_the_others_go_on(
    squares: Path, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from made_slides import exact_mask

    from pathovit.settings import TileSpec, fill_spec
    from pathovit.slides.tiling import lay_grid

    never = threading.Event()

    def hang(slide: Any, grid: Any, index: int) -> Any:
        if index == 5:
            never.wait(60)
        return judge_tile(slide, grid, index)

    monkeypatch.setattr("pathovit.run.embedder.judge_tile", hang)
    with open_slide(squares, 0.5) as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        with (
            Embedder(encoder, 2, read_timeout_s=0.3) as embedder,
            pytest.raises(TileReadError, match=r"squares.tif: reading a tile took longer than 0.3 s. Look at the drive"),
        ):
            list(embedder.embed(slide, grid, [0, 1], chunk_tiles=16, batch_tiles=4))
        never.set()


@pytest.mark.parametrize("what", ["opening", "storing"])
def test_every_step_of_embedding_has_a_deadline(
    squares: Path, tmp_path: Path, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """In a worker: the process ends itself."""
    import time

    out, ended = OutFolder(tmp_path / "out"), threading.Event()
    plan = plan_slide(SlideJob(squares), out, SETTINGS, encoder, None, overwrite=False)
    assert isinstance(plan, SlidePlan)
    monkeypatch.setattr("pathovit.run.watchdog.os._exit", lambda code: ended.set())
    settings = replace(SETTINGS, run=replace(SETTINGS.run, read_timeout_s=0.02))
    home = "pathovit.run.plan.SlidePlan.open" if what == "opening" else "pathovit.outputs.store.FeatureStore.write_chunk"
    monkeypatch.setattr(home, lambda *arguments: time.sleep(1.5))
    with make_embedder(encoder, settings, on_hang="exit") as embedder:
        try:
            embed_part(plan, 0, out, settings, embedder, lambda tiles: None)
        except (AttributeError, TypeError):  # what stands for the slide is none
            assert what == "opening"
    assert ended.is_set()


def test_importing_and_loading_change_nothing_of_the_process() -> None:
    import subprocess
    import sys

    code = """
import logging
from PIL import Image
import torch
limit, level = Image.MAX_IMAGE_PIXELS, logging.getLogger("tifffile").level
import pathovit
for name in pathovit.__all__:
    getattr(pathovit, name)
torch.manual_seed(7)
expected = torch.rand(3).tolist()
torch.manual_seed(7)
pathovit.load_encoder("reference", "random")
assert torch.rand(3).tolist() == expected
assert (Image.MAX_IMAGE_PIXELS, logging.getLogger("tifffile").level) == (limit, level)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
