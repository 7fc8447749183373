"""Which step is handed out next, and to which worker; without Dask, which carries it out (test_run.py)."""

import os
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pathovit.outputs.folder import OutFolder
from pathovit.reasons import Code
from pathovit.run.dask_cluster import Death, _cause
from pathovit.run.dask_settings import own_configuration
from pathovit.run.drive import MOST_KILLS, Drive, run_slides
from pathovit.run.plan import SlideJob
from pathovit.run.schedule import SLOTS, Free, SlideState, Step, next_step
from pathovit.run.worker import Work
from pathovit.settings import Settings

WORK = Work(OutFolder(Path("out")), Settings(), "", None, None, overwrite=False)
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
    found = next_step(states, WORK, free(running, workers))
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
    found = next_step([state], WORK, free(running, workers=2))
    assert (found and (found[1].slots, found[2])) == (worker and (SLOTS, worker))


def test_with_no_worker_there_one_step_waits_for_one() -> None:
    assert given([slide(0), slide(1)], [], workers=0) == (0, "start", None)
    assert given([slide(0, "planning"), slide(1)], [(None, OTHER)], workers=0) is None


@pytest.mark.parametrize(
    ("exitcode", "out_of_memory", "cause", "slide", "code"),
    [
        (-9, False, "its worker was killed from outside (SIGKILL)", False, Code.KILLED),
        (-15, False, "its worker was killed from outside (SIGTERM)", False, Code.KILLED),
        (-15, True, "it outgrew the memory of its worker", True, Code.OUT_OF_MEMORY),
        (-11, False, "reading it crashed (SIGSEGV)", True, Code.CRASHED),
        (75, False, "reading it hung", True, Code.TIMEOUT),
        (1, False, "reading it crashed (exit code 1)", True, Code.CRASHED),
    ],
)
def test_what_a_worker_died_of_is_known(exitcode: int, out_of_memory: bool, cause: str, slide: bool, code: Code) -> None:
    assert _cause(exitcode, out_of_memory) == Death(cause, slide, code)


def drive(state: SlideState, say: Any = lambda text: None) -> Drive:
    return Drive([state], WORK, lambda state: None, threading.Event(), say)


def test_a_kill_from_outside_blames_no_slide_and_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathovit.run.drive.death_of", lambda worker: _cause(-9, False))
    said: list[str] = []
    state = slide(0, "embedding")
    judge = drive(state, said.append).judge_death
    for kill in range(MOST_KILLS - 1):
        state.parts_running = 1
        part = Step("embed", None, (None, 3, WORK), {"embed": 1})
        assert judge(state, part, f"w{kill}") is None
        if kill == 0:
            assert (state.parts_left.popleft(), state.parts_running, state.suspects) == (3, 0, [])
        else:  # from the second time on it has a worker to itself, and cannot take others along
            assert state.suspects.pop() is part
    failed = judge(state, part, "w-last")
    assert failed
    assert "killed from outside (SIGKILL) 5 times. Look at the machine's memory; the slide may be sound" in str(failed.error)
    assert said[0] == "a worker was killed from outside (SIGKILL); the worker is replaced"
    assert len(said) == MOST_KILLS


def test_a_crash_is_tried_again_alone_and_then_the_slide_fails_with_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathovit.run.drive.death_of", lambda worker: _cause(-11, False))
    state = slide(0, "embedding")
    judge = drive(state).judge_death
    assert judge(state, EMBED, "a") is None
    assert state.suspects == [EMBED]
    failed = judge(state, replace(EMBED, slots=SLOTS), "b")
    assert failed
    assert "reading it crashed (SIGSEGV), twice" in str(failed.error)


def test_what_is_no_slide_starts_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels.csv").write_text("slide,label")
    monkeypatch.setattr("pathovit.run.drive.open_client", pytest.fail)
    jobs = [SlideJob(tmp_path / "labels.csv"), SlideJob(tmp_path / "gone.svs")]
    states = run_slides(jobs, replace(WORK, out=OutFolder(tmp_path / "out")), lambda state: None, threading.Event())
    assert [state.stage for state in states] == ["failed", "failed"]
    assert "this is a table" in states[0].reason


def test_the_users_dask_settings_do_not_reach_our_cluster_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    theirs = {
        "DASK_TEMPORARY_DIRECTORY": "/proc/gone",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1ms",
        "MPLBACKEND": "module://nowhere",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    dask.config.set({"distributed.comm.timeouts.connect": "1ms"})
    with own_configuration():
        assert dask.config.get("temporary-directory") is None
        assert dask.config.get("distributed.comm.timeouts.connect") == "30s"
        assert not theirs.keys() & os.environ.keys()
    assert dask.config.get("distributed.comm.timeouts.connect") == "1ms"
    assert all(os.environ[name] == value for name, value in theirs.items())
    dask.config.set({"distributed.comm.timeouts.connect": "30s"})
