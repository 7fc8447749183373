"""A cluster on several machines lets nobody in who has not its certificates: the batch job itself, with one node that is this machine."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pathovit.errors import SettingsError
from pathovit.run.certificates import make_certificates, refuse_plain, security_of
from pathovit.run.dask_cluster import _running_cluster
from pathovit.settings import RunSettings, Settings

JOB = Path(__file__).parents[2] / "workflows" / "slurm" / "cluster.sbatch"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def job(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The job, as SLURM would start it on one node; `srun` starts what it is given."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").write_text('#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}", "SLIDES": str(slides[0].parent), "OUT": str(folder / "out")
    }  # fmt: skip
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        ["bash", JOB], env=environment, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    yield process, folder
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


def listening(session: int) -> set[int]:
    """Ports on which processes of a session listen."""
    found = set()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                found |= {one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def greeting(port: int) -> bytes:
    """What a port says to somebody who speaks no TLS: a web server would answer this."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            plain.sendall(b"GET /info/main/workers.html HTTP/1.1\r\nHost: a\r\n\r\n")
            plain.settimeout(5)
            return plain.recv(4096)
    except OSError:
        return b""


def lets_in(port: int, folder: Path | None) -> bool:
    """Whether a TLS handshake with the certificates of a folder, or none, ends well and the port goes on listening."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if folder:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as safe:
            safe.settimeout(5)
            return bool(safe.recv(16))  # the scheduler's side speaks first; one that refuses closes
    except OSError:
        return False


def test_a_job_of_several_nodes_lets_nobody_in_without_its_certificates(
    job: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, folder = job
    out = folder / "out"
    while not (found := list(out.glob(".cluster.*/scheduler.json"))) or len(listening(process.pid)) < 3:
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.2)
    secret = found[0].parent
    for path, mode in (
        (secret, 0o700),
        (secret / "certificates", 0o700),
        *((p, 0o600) for p in (secret / "certificates").iterdir()),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    address = json.loads(found[0].read_text())["address"]
    assert address.startswith("tls://")
    port = int(address.rsplit(":", 1)[1])
    make_certificates(tmp_path / "others")
    assert lets_in(port, secret / "certificates")
    assert not lets_in(port, None)
    assert not lets_in(port, tmp_path / "others")
    for each in listening(process.pid):
        assert not greeting(each).startswith(b"HTTP/1.1 200"), each
    assert 8787 not in listening(process.pid)
    assert process.wait(timeout=240) == 0, (folder / "log").read_text()
    assert len(list(out.glob("slides/*/slide.json"))) == 3
    assert not list(out.glob(".cluster.*"))


def test_a_scheduler_without_encryption_is_refused_unless_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://10.0.0.1:8786"}')
    for run in (
        RunSettings(scheduler="tcp://10.0.0.1:1"),
        RunSettings(scheduler="10.0.0.1:1"),
        RunSettings(scheduler_file=str(file)),
    ):
        with pytest.raises(SettingsError, match="without encryption: whoever reaches it can run what they like"):
            refuse_plain(run)
    refuse_plain(RunSettings(scheduler="tls://10.0.0.1:1"))
    refuse_plain(RunSettings(scheduler="tcp://10.0.0.1:1", plain_tcp=True))


def test_certificates_are_for_one_user_and_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    make_certificates(folder)
    assert security_of(str(folder)).require_encryption
    with pytest.raises(SettingsError, match="is there already"):
        make_certificates(folder)
    with pytest.raises(SettingsError, match="there is no key"):
        security_of(str(tmp_path))


def test_a_scheduler_file_that_is_not_there_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathovit.run.dask_cluster.START_S", 0.3)
    run = RunSettings(scheduler_file=str(tmp_path / "gone.json"), plain_tcp=True)
    with (
        pytest.raises(SettingsError, match="gone.json: there is no such file. Start the scheduler"),
        _running_cluster(Settings(run=run), threading.Event()),
    ):
        pytest.fail("there is no cluster")
    stop = threading.Event()
    stop.set()
    with _running_cluster(Settings(run=run), stop) as client:
        assert client is None
