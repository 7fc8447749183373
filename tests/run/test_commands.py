"""Every command and every line of Python of the README, on real files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import pathovit
from made_paint import paint_strokes
from made_runs import folder_of
from made_tiles import write_tiles
from typer.testing import CliRunner

from pathovit.cli import app
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.maintenance import slide_maker


def test_every_command_of_the_readme_works_on_real_files(
    finished: Path, slides: list[Path], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of its table; in this process, but with real workers."""
    out, model, judged = tmp_path / "out", tmp_path / "model", tmp_path / "judged"
    shutil.copytree(finished, out)
    labels, features = cohort / "labels.csv", cohort / "features"
    painted = paint_strokes(out, folder_of(out, "one").name, slides[0].with_suffix(".geojson"), tmp_path / "painted")
    maker = slide_maker()
    small = [maker.SampleSpec(name="demo", seed=1, size=(1500, 1500), tumour_fraction=0.3)]
    monkeypatch.setattr(maker, "demo_specs", lambda count, seed: small)
    monkeypatch.setattr("pathovit.cli.maintenance.slide_maker", lambda: maker)
    calls = {
        "run": ["run", slides[0], "--out", out],
        "info": ["info", *slides],
        "embed": ["embed", slides[0], "--out", tmp_path / "embedded", "--max-tiles", 8],
        "train": ["train", labels, "--features", features, "--model", model, "--epochs", 1, "--kind", "mean", "--folds", 0],
        "evaluate": ["evaluate", model, labels, "--features", features, "--out", judged],
        "compare": ["compare", judged, judged],
        "predict": ["predict", out],
        "teach": ["teach", out, painted, "--model", tmp_path / "taught", "--suggest", 3],
        "review": [
            "review",
            out,
            "--export",
            tmp_path / "reviewed.csv",
            "--regions",
            tmp_path / "drawn",
            "--static",
            tmp_path / "board",
        ],
        "audit": ["audit", "verify", out],
        "tissue": ["tissue", out, "--name", "A=stroma"],
        "robustness": ["robustness", "reference", slides[0], "--max-tiles", 12, "--out", tmp_path / "robust"],
        "heatmap": ["heatmap", slides[0], "--out", out, "--hot-score", 0.6],
        "export": ["export", out, "--to", "h5", "--folder", tmp_path / "h5"],
        "import": ["import", tmp_path / "h5" / "10x_96px_0px_overlap", "--out", tmp_path / "in"],
        "settings": ["settings", out],
        "clean": ["clean", out, "--older"],
        "pretrain": [
            "pretrain",
            slides[0],
            "--method",
            "dino",
            "--tile-px",
            64,
            "--steps",
            2,
            "--batch-tiles",
            2,
            "--out",
            tmp_path / "mine",
        ],
        "probe": [
            "probe",
            write_tiles(tmp_path / "tiles"),
            "--encoders",
            "reference",
            "reference=random",
            "--out",
            tmp_path / "probe",
        ],
        "encoders": ["encoders"],
        "explain": ["explain", "truncated"],
        "verify": ["verify", out],
        "names": ["names", out],
        "certificates": ["certificates", tmp_path / "certificates"],
        "doctor": ["doctor"],
        "bench": ["bench", slides[1], "--runs", 1, "--max-tiles", 8],
        "demo": ["demo", tmp_path / "demo"],
    }
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    commands = re.findall(r"^\| `pathovit (\w+)", readme, re.MULTILINE)
    assert sorted(commands) == sorted(calls)
    for name in commands:
        done = CliRunner().invoke(app, [str(word) for word in calls[name]])
        assert done.exit_code == 0, (name, done.output, done.exception)


def test_a_folder_is_run_from_a_script_without_a_guard(slides: list[Path], tmp_path: Path) -> None:
    """As the README has it. Workers are new processes, and must not run the script that started them."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import pathovit
said = []
result = pathovit.run_folder([{str(slides[1])!r}, {str(tmp_path / "empty.svs")!r}], {str(tmp_path / "out")!r}, say=said.append)
for record in result.slides:
    print(record.slide_id, record.prediction.headline)
print(result.exit_code, [str(error) for error in result.failures.values()], said[-1])
""")
    (tmp_path / "empty.svs").write_bytes(b"")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert re.match(r"slide-[0-9a-f]{12} .*tumour: [01]\.\d{3}", first)
    assert last.startswith("3 ['empty.svs: the file is empty")
    assert last.endswith("workers are ready; the first loads the encoder")


def test_a_running_scheduler_is_used(slides: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    commands = (
        ["dask", "scheduler", "--no-dashboard", "--host", "127.0.0.1", "--port", "0"],
        ["dask", "worker", "--nthreads", "3", "--resources", "embed=2 other=1", "--no-dashboard"],
    )
    python = [sys.executable, "-m"]
    processes = [
        subprocess.Popen(
            [*python, *command, "--scheduler-file", str(file)], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    try:
        done = pathovit(
            "embed", slides[0].name, "--out", tmp_path / "out", "--scheduler-file", file, "--plain-tcp", cwd=slides[0].parent
        )
        assert done.returncode == 0, done.stderr
    finally:
        for process in processes:
            process.terminate()
            process.wait()
