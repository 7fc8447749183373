"""A device whose memory is too small does less at a time; one that fails costs its worker, and no slide but the guilty one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_steps import SETTINGS, CountingEncoder, run_one

from pathovit.errors import SettingsError
from pathovit.machine import is_device_lost, is_out_of_memory
from pathovit.outputs.folder import OutFolder
from pathovit.reasons import Code
from pathovit.run.dask_cluster import Death, _cause, deaths
from pathovit.run.drive import MOST_LOST, Drive
from pathovit.run.embed import embed_part, make_embedder
from pathovit.run.plan import SlideJob, SlidePlan, plan_slide
from pathovit.run.schedule import SLOTS, SlideState, Step
from pathovit.run.watchdog import DEVICE_FAILED
from pathovit.run.worker import Failed, Work, in_worker


class SmallCard(CountingEncoder):
    """Holds a few tiles at once; `late` says whether it notices when it is asked for the features."""

    def __init__(self, holds: int, late: bool) -> None:
        super().__init__()
        self.holds, self.late, self.refused = holds, late, 0

    def launch(self, tiles: Any) -> Callable[[], Any]:
        if len(tiles) <= self.holds:
            return super().launch(tiles)
        self.refused += 1
        if not self.late:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        def fetch() -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        return fetch


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("holds", [1, 2, 3])
def test_what_the_memory_of_the_device_does_not_hold_is_done_in_halves(
    squares: Path, tmp_path: Path, holds: int, late: bool
) -> None:
    calm, small = OutFolder(tmp_path / "calm"), OutFolder(tmp_path / "small")
    expected = run_one(squares, calm, CountingEncoder()).store(calm).read()
    encoder = SmallCard(holds, late)
    plan = plan_slide(SlideJob(squares), small, SETTINGS, encoder, None, overwrite=False)
    assert isinstance(plan, SlidePlan)
    with make_embedder(encoder, SETTINGS) as embedder:
        for part in range(plan.parts(SETTINGS.embed.part_tiles)):
            embed_part(plan, part, small, SETTINGS, embedder, lambda tiles: None)
        said = embedder.remarks()
        assert embedder.remarks() == []
    found = plan.store(small).read()
    assert np.array_equal(found.features, expected.features, equal_nan=True)
    assert np.array_equal(found.verdict, expected.verdict)
    assert encoder.tiles == expected.ok.sum()
    assert encoder.refused <= 4  # it is remembered: batches of 4 were on their way
    assert said[0].split(":")[0] == "the memory of the device does not hold 4 tiles at once"


def test_a_single_tile_that_does_not_fit_is_told(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="A single tile of 128 px is too much for the memory of the device"):
        run_one(squares, OutFolder(tmp_path), SmallCard(0, late=False))


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (RuntimeError("MPS backend out of memory"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), False, True),
        (RuntimeError("shape '[3]' is invalid"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_errors_of_devices_are_known(error: Exception, memory: bool, lost: bool) -> None:
    assert (is_out_of_memory(error), is_device_lost(error)) == (memory, lost)


def test_a_worker_whose_device_failed_ends_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("pathovit.run.worker.os._exit", ended.append)

    def step() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    in_worker(step, tmp_path / "a.svs")
    assert ended == [DEVICE_FAILED]
    assert _cause(DEVICE_FAILED, out_of_memory=False) == Death("the device that embeds it failed", True, Code.DEVICE)


def test_the_guilty_slide_fails_alone_and_a_dead_device_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [SlideState(index, SlideJob(tmp_path / f"{index}.svs"), stage="embedding") for index in range(3)]
    work = Work(OutFolder(tmp_path), SETTINGS, "", None, None, False)
    drive = Drive(states, work, lambda state: None, threading.Event(), lambda text: None)
    monkeypatch.setattr("pathovit.run.drive.death_of", lambda address: deaths[address])
    for number in range(MOST_LOST):
        monkeypatch.setitem(deaths, f"w{number}", _cause(DEVICE_FAILED, out_of_memory=False))
    shared, alone = Step("embed", lambda: None, (None, 0), {"embed": 1}), Step("embed", lambda: None, (None, 0), SLOTS)
    assert drive.judge_death(states[0], shared, "w0") is None  # suspect, and done again alone
    failed = drive.judge_death(states[0], alone, "w1")
    assert isinstance(failed, Failed)
    assert failed.error.code == Code.DEVICE
    assert "nvidia-smi" in str(failed.error)
    assert drive.judge_death(states[1], shared, "w2") is None
    with pytest.raises(SettingsError, match="The device failed 4 times, one after the other"):
        drive.judge_death(states[1], alone, "w3")
