"""The batch jobs of workflows/slurm in a real SLURM: a controller and two nodes on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import rows_of, stored_bytes

JOBS = Path(__file__).parents[2] / "workflows" / "slurm"
SEARCHED = f"{os.environ['PATH']}:/usr/sbin"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/%n
SlurmctldPidFile={here}/controller.pid
SlurmdPidFile={here}/%n.pid
SlurmctldLogFile={here}/controller.log
SlurmdLogFile={here}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=8000
PartitionName=p Nodes=ALL Default=YES
"""


def begin(environment: dict[str, str], *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user of it."""
    programs = {name: shutil.which(name, path=SEARCHED) for name in ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"SLURM is not installed here (slurm-wlm, munge): {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root, to be a controller of SLURM")
    here = tmp_path_factory.mktemp("slurm")
    for name in ("state", "n1", "n2"):
        (here / name).mkdir()
    (here / "key").write_bytes(os.urandom(128))
    (here / "key").chmod(0o400)
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, here=here, port=free_port(), first=free_port(), second=free_port())
    (here / "slurm.conf").write_text(text)
    known = os.environ | {"SLURM_CONF": str(here / "slurm.conf"), "PATH": f"{Path(sys.executable).parent}:{SEARCHED}"}
    own = {f"--{name}-file={here}/munge.{name}" for name in ("log", "pid", "seed")}
    started = [begin(known, "munged", "--foreground", "--force", f"--key-file={here}/key", f"--socket={here}/munge", *own)]
    time.sleep(1)
    started.append(begin(known, "slurmctld", "-D"))
    started += [begin(known, "slurmd", "-D", "-N", name) for name in ("n1", "n2")]
    try:
        for _ in range(60):
            nodes = subprocess.run(["sinfo", "-h", "-t", "idle", "-o", "%D"], env=known, capture_output=True, text=True).stdout
            if nodes.split() == ["2"]:
                break
            time.sleep(0.5)
        else:
            pytest.skip(f"SLURM does not start here: {(here / 'controller.log').read_text()[-500:]}")
        yield known
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=60)


def submit(slurm: dict[str, str], job: str, slides: Path, out: Path, *options: str) -> str:
    """Submit a job, wait for its end, and return what it said."""
    log = out.with_suffix(".log")
    asked = ["sbatch", "--wait", "--gres=none", "--mem=2G", "--cpus-per-task=1", f"--output={log}", *options]
    done = subprocess.run(
        [*asked, f"--export=ALL,SLIDES={slides},OUT={out}", str(JOBS / job)],
        env=slurm,
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = log.read_text() if log.exists() else ""
    assert done.returncode == 0, done.stderr + said
    return said


@pytest.mark.parametrize(("job", "options"), [("run.sbatch", ("--array=1-2",)), ("cluster.sbatch", ("--nodes=2",))])
def test_a_batch_job_gives_the_same_features(
    slurm: dict[str, str], slides: list[Path], finished: Path, tmp_path: Path, job: str, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    said = submit(slurm, job, slides[0].parent, out, *options)
    assert len(rows_of(out)) == len(slides), said
    assert stored_bytes(out) == stored_bytes(finished)
    assert not list(out.glob(".cluster.*"))  # certificates go with the job
