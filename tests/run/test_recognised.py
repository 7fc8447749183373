"""How a run begins: what is done already is recognised without workers, and workers are forked from nothing of the user's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command import pathovit

from pathovit.encoders.check import check_weights
from pathovit.encoders.spec import spec_at_sight
from pathovit.model.card import know_model
from pathovit.outputs.folder import OutFolder
from pathovit.run.drive import Drive
from pathovit.run.match import match_model
from pathovit.run.plan import SlideJob, SlidePlan, recognise_slide
from pathovit.run.schedule import SlideState
from pathovit.run.worker import Work
from pathovit.settings import Settings

ALONE = """
import sys
from pathlib import Path
from pathovit import run_folder
found = run_folder([Path(p) for p in sys.argv[2:]], sys.argv[1], say=print)
assert all(state.skipped for state in found.states), found.failures
heavy = {"torch", "distributed", "timm", "zarr", "scipy", "sklearn", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_finished_batch_is_recognised_without_workers_and_without_torch(finished: Path, slides: list[Path]) -> None:
    again = pathovit("run", *slides, "--out", finished)
    assert again.returncode == 0, again.stderr
    assert "starting workers" not in again.stderr
    assert "workers are ready" not in again.stderr
    assert again.stderr.count("done already") == 3
    done = subprocess.run([sys.executable, "-c", ALONE, finished, *slides], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_of_the_user_that_is_called_like_a_module_is_not_run(squares: Path, tmp_path: Path) -> None:
    """Workers are forked from a process that begins in the folder of the command."""
    script = Path(sys.executable).with_name("pathovit")
    if not script.is_file():
        pytest.skip("pathovit is not installed as a command here")
    (tmp_path / "here").mkdir()
    for name in ("torch", "distributed", "numpy", "random"):
        (tmp_path / "here" / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\nraise SystemExit(1)\n")
    call = [str(script), "embed", str(squares), "--out", str(tmp_path / "out")]
    done = subprocess.run(call, cwd=tmp_path / "here", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("scheduler", "recognised"), [(None, 3), ("tls://elsewhere:8786", 0)])
def test_what_workers_of_another_machine_would_do_is_not_guessed(
    finished: Path, slides: list[Path], scheduler: str | None, recognised: int
) -> None:
    """They may have a GPU, and so another precision."""
    matched = match_model(Settings(), False, False)
    settings = replace(matched.settings, run=replace(matched.settings.run, scheduler=scheduler))
    model = know_model("reference")
    work = Work(OutFolder(finished), settings, check_weights(settings), "reference", model.sha256, overwrite=False)
    states = [SlideState(index, SlideJob(path)) for index, path in enumerate(slides)]
    Drive(states, work, lambda state: None, threading.Event(), print).recognise()
    assert sum(state.over for state in states) == recognised


def test_what_a_slide_waits_behind_others_is_no_time_that_it_takes(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    out = OutFolder(Path(shutil.copytree(finished, tmp_path / "out")))  # it fails here, and others read that folder
    matched = match_model(Settings(), False, False)
    settings = replace(matched.settings, run=replace(matched.settings.run, slide_timeout_min=1.0))
    model = know_model("reference")
    work = Work(out, settings, check_weights(settings), "reference", model.sha256, overwrite=False)
    state = SlideState(0, SlideJob(slides[0]), stage="planning")
    drive = Drive([state], work, lambda state: None, threading.Event(), print)
    spec = spec_at_sight(settings, work.weights_sha256)
    assert spec
    plan = recognise_slide(state.job, work.out, settings, spec, work.known_model(), False, frozenset())
    assert isinstance(plan, SlidePlan)
    state.handed_out = time.monotonic() - 50
    drive._planned(state, replace(plan, embedded=False, done=None))
    drive._give_up_late_ones()
    assert not state.over, "it waits"
    state.handed_out = time.monotonic() - state.looked_at_s - 20  # as when its first part is handed out, 20 s ago
    drive._give_up_late_ones()
    assert state.stage == "failed", "what planning took counts"
