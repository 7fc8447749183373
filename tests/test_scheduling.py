"""Which step is handed out next, and to which worker; without Dask, which carries it out (test_run.py)."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pathovit.cluster import SLOTS, Free, SlideState, Step, Work, _next_step
from pathovit.pipeline import SlideJob
from pathovit.settings import Settings

WORK = Work(Path("out"), Settings(), "", None, None, overwrite=False)
EMBED = Step("embed", None, (), {"embed": 1})
OTHER = Step("start", None, (), {"other": 1})


def free(running: list[tuple[str | None, Step]], workers: int = 1) -> Free:
    return Free({f"w{index}": Counter(SLOTS) for index in range(workers)}, running)


def slide(index: int, stage: str = "waiting", parts: int = 0, name: str | None = None) -> SlideState:
    state = SlideState(index, SlideJob(Path(f"{name or index}.svs")), stage=stage)
    state.parts_left.extend(range(parts))
    state.plan = SimpleNamespace() if stage != "waiting" else None
    return state


def given(states: list[SlideState], running: list[tuple[str | None, Step]], workers: int = 1) -> Any:
    found = _next_step(states, WORK, free(running, workers))
    return found and (found[0].index, found[1].name, found[2])


def test_a_part_goes_to_the_worker_that_has_least_to_do() -> None:
    running: list[tuple[str | None, Step]] = [("w0", EMBED), ("w0", OTHER), ("w1", EMBED)]
    assert given([slide(0, "embedding", 2)], running, workers=2) == (0, "embed", "w1")


def test_no_worker_gets_more_than_its_slots() -> None:
    running: list[tuple[str | None, Step]] = [
        ("w0", EMBED),
        ("w0", EMBED),
        ("w1", EMBED),
        ("w1", EMBED),
        ("w0", OTHER),
        ("w1", OTHER),
    ]
    assert given([slide(0, "embedding", 2), slide(1)], running, workers=2) is None


def test_planning_runs_ahead_of_the_device_but_not_far() -> None:
    assert given([slide(0, "embedding", 1), slide(1)], [("w0", EMBED), ("w0", EMBED)]) == (1, "start", "w0")
    assert given([slide(0, "embedding", 4), slide(1)], [("w0", EMBED), ("w0", EMBED)]) is None


def test_slides_are_finished_even_where_planning_is_slower_than_the_device() -> None:
    embedded = [slide(index, "embedding") for index in range(2)]
    assert given([embedded[0], slide(2)], []) == (2, "start", "w0")  # the device would have nothing to do
    assert given([*embedded, slide(2)], []) == (0, "finish", "w0")


def test_a_slide_that_might_be_the_same_waits_for_the_first() -> None:
    states = [slide(0, "planning", name="a"), slide(1, name="a"), slide(2)]
    assert given(states, [("w0", EMBED)]) == (2, "start", "w0")
    assert given([slide(0, "embedding", name="a"), slide(1, name="a")], [("w0", EMBED), ("w0", EMBED)]) == (0, "finish", "w0")


@pytest.mark.parametrize(("running", "worker"), [([], "w0"), ([("w0", EMBED)], "w1"), ([("w0", EMBED), ("w1", OTHER)], None)])
def test_a_suspect_gets_a_whole_worker(running: list[tuple[str | None, Step]], worker: str | None) -> None:
    state = slide(0, "embedding", 3)
    state.suspects.append(EMBED)
    found = _next_step([state], WORK, free(running, workers=2))
    assert (found and (found[1].slots, found[2])) == (worker and (SLOTS, worker))


def test_with_no_worker_there_one_step_waits_for_one() -> None:
    assert given([slide(0), slide(1)], [], workers=0) == (0, "start", None)
    assert given([slide(0, "planning"), slide(1)], [(None, OTHER)], workers=0) is None
