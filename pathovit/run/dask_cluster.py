"""Worker processes and the client that speaks with them. The one door to Dask, with `drive.py`, which hands out the steps.

Our own cluster listens on the loopback interface alone, behind TLS, and knows nothing of the user's Dask configuration. What
its workers die of is kept, so that a slide is not blamed for what was done to its worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pathovit.errors import SettingsError
from pathovit.reasons import Code
from pathovit.run.certificates import refuse_plain, security_of
from pathovit.run.dask_settings import QUIET, SILENT_S, own_configuration
from pathovit.run.schedule import SLOTS
from pathovit.run.watchdog import DEVICE_FAILED, TOOK_TOO_LONG
from pathovit.settings import Settings

START_S = 300  # that workers have to start
BEGIN_S = 10  # that a process has to be begun, when its end is waited for
WORKER_NAME = "Dask Worker process"  # how Dask calls the processes of workers
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True)
class Death:
    """What a worker died of; `slide` says whether the step it was at may have done it."""

    cause: str
    slide: bool
    code: Code = Code.CRASHED


UNKNOWN = Death("its worker ended, crashed, hung or outgrew its memory", True)  # of a cluster that is not ours
deaths: dict[str, Death] = {}  # by address of the worker, of our own cluster
guarded: dict[str, str] = {}  # addresses of the workers that came last, by that of their nanny


def death_of(address: str, wait_s: float = 5.0) -> Death:
    """What the worker of an address died of; the news of it may come a moment after the step is given back."""
    give_up = time.monotonic() + (wait_s if _nannies() else 0)
    while address not in deaths and time.monotonic() < give_up:
        time.sleep(0.02)
    return deaths.get(address, UNKNOWN)


def _cause(exitcode: int, out_of_memory: bool) -> Death:
    if out_of_memory:
        return Death("it outgrew the memory of its worker", True, Code.OUT_OF_MEMORY)
    if exitcode == TOOK_TOO_LONG:
        return Death("reading it hung", True, Code.TIMEOUT)
    if exitcode == DEVICE_FAILED:
        return Death("the device that embeds it failed", True, Code.DEVICE)
    if exitcode < 0 and -exitcode not in CRASHES:
        return Death(f"its worker was killed from outside ({signal.Signals(-exitcode).name})", False, Code.KILLED)
    how = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
    return Death(f"reading it crashed ({how})", True)


@contextmanager
def open_client(settings: Settings, stop: threading.Event) -> Iterator[Any | None]:
    """A Dask client with at least one worker: our own cluster on this machine, or a running one. None if stopped before.

    In the end our own workers are killed: all state is on disk, and a worker that is asked to end takes its time, and complains
    where the scheduler was faster.

    Raises
    ------
    SettingsError : a running scheduler does not answer, or has no workers for us; workers cannot be started
    """
    run = settings.run
    if run.scheduler or run.scheduler_file:
        with _running_cluster(settings, stop) as client:
            yield client
        return
    _leave_lost_folder()
    deaths.clear()
    guarded.clear()
    with (
        own_configuration(),
        _apart_from_the_script(),
        _quiet("asyncio"),
        ExitStack() as stack,
    ):  # of tasks that wait for a worker that is gone
        device = run.device if settings.embed.engine == "torch" else "cpu"
        started = _Background(lambda: stack.enter_context(_local_cluster(run.workers, device)))
        while not started.done.wait(0.05):
            if stop.is_set():
                break
        client = None
        if started.done.is_set():
            from distributed import Client

            cluster, workers = started.result()
            client = stack.enter_context(Client(cluster))
            _wait_for_workers(client, workers, stop)
        try:
            yield None if stop.is_set() else client
        finally:
            kill_workers()
            if stop.is_set():
                stack.pop_all()  # nothing is left to be closed in order


def _leave_lost_folder() -> None:
    """Workers start in the folder of this process; where that has been deleted they could not. All our paths are absolute by now."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir(tempfile.gettempdir())


@contextmanager
def _apart_from_the_script() -> Iterator[None]:
    """Our workers need nothing of the script that calls us; begun as new processes are, each would run it again."""
    from multiprocessing import spawn

    whole = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        found = whole(name)
        if name.startswith(WORKER_NAME):
            found = {key: value for key, value in found.items() if not key.startswith("init_main")}
        return found

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = whole


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        found.setLevel(before)


class _Background:
    """A call in a thread of its own, so that a signal is noticed while it lasts."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.done = threading.Event()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(call,), daemon=True, name="starting workers").start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._value = call()
        except BaseException as error:
            self._error = error
        self.done.set()

    def result(self) -> Any:
        if self._error is not None:
            raise SettingsError(f"The worker processes could not be started: {self._error}.") from self._error
        return self._value


@contextmanager
def _running_cluster(settings: Settings, stop: threading.Event) -> Iterator[Any | None]:
    """A client of a scheduler that somebody started; with the user's Dask settings, which may hold its certificates."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from distributed import Client

    run = settings.run
    options = {"scheduler_file": run.scheduler_file} if run.scheduler_file else {"address": run.scheduler}
    named = run.scheduler or run.scheduler_file
    refuse_plain(run)
    give_up = time.monotonic() + START_S
    while run.scheduler_file and not Path(run.scheduler_file).exists():  # the library below waits for ever, and hears nobody
        if stop.wait(0.1):
            yield None
            return
        if time.monotonic() > give_up:
            raise SettingsError(f"--scheduler-file {named}: there is no such file. Start the scheduler, which writes it.")
    try:
        remote = Client(**options, security=security_of(run.certificates), timeout="30s")
    except (OSError, TimeoutError, ValueError) as error:
        raise SettingsError(f"The Dask scheduler {named} does not answer ({error}).") from error
    with remote:
        refuse_plain(replace(run, scheduler=remote.scheduler.address))  # where its file came only now
        _wait_for_workers(remote, 1, stop)
        if not stop.is_set() and not any(sum(slots.values()) for slots in slots_of(remote).values()):
            raise SettingsError(
                f"The workers of {named} have no slots for our steps. "
                f'Start them with: dask worker --nthreads {sum(SLOTS.values())} --resources "{_said(SLOTS)}"'
            )
        yield None if stop.is_set() else remote


def _wait_for_workers(client: Any, workers: int, stop: threading.Event) -> None:
    give_up = time.monotonic() + START_S
    while len(slots_of(client)) < workers and not stop.wait(0.05):
        if time.monotonic() > give_up:
            raise SettingsError(
                f"{len(slots_of(client))} of {workers} workers came within {START_S} s. Look at the machine's load."
            )


def slots_of(client: Any) -> dict[str, dict[str, int]]:
    """Slots of every worker there is now: nodes of a cluster come and go."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {at: {name: int(worker["resources"].get(name, 0)) for name in SLOTS} for at, worker in workers.items()}


@contextmanager
def _local_cluster(wanted: int | None, device: str) -> Iterator[tuple[Any, int]]:
    """Worker processes on this machine: one per GPU, or one."""
    from distributed import Scheduler, SpecCluster
    from distributed.security import Security
    from distributed.system import MEMORY_LIMIT

    gpus = _visible_gpus() if device in ("auto", "cuda") else []
    workers = wanted or max(1, len(gpus))
    security = Security.temporary()
    listen = {"security": security, "host": "127.0.0.1", "protocol": "tls://", "dashboard": False}
    specs: dict[int, dict[str, Any]] = {}
    for index in range(workers):
        environment = {"PATHOVIT_WORKERS": str(workers)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        specs[index] = {
            "cls": _watching_nanny(),
            "options": {
                **listen,
                "nthreads": sum(SLOTS.values()),
                "resources": SLOTS,
                "env": environment,
                "dashboard_address": "127.0.0.1:0",
                "memory_limit": MEMORY_LIMIT // workers,
            },
        }
    scheduler = {
        "cls": Scheduler,
        "options": {**listen, "port": 0, "dashboard_address": "127.0.0.1:0", "plugins": (_noting_plugin(),)},
    }
    with SpecCluster(workers=specs, scheduler=scheduler, security=security, silence_logs=50) as cluster:
        yield cluster, workers


def _watching_nanny() -> Any:
    """Dask's guard of a worker process, that keeps what the worker died of."""
    from distributed import Nanny

    class WatchingNanny(Nanny):  # type: ignore[misc]  # a base of unknown type: mypy skips distributed (pyproject)
        def _on_worker_exit_sync(self, exitcode: int) -> None:
            memory = self.memory_manager
            out_of_memory, memory._last_terminated_pid = memory._last_terminated_pid != -1, -1
            if (worker := guarded.get(self.address)) is not None:
                deaths.setdefault(worker, _cause(exitcode, out_of_memory))
            super()._on_worker_exit_sync(exitcode)

        async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
            if "ttl" in reason and (worker := guarded.get(self.address)) is not None:  # the scheduler has not heard from it
                deaths[worker] = Death(f"its worker did not answer for {SILENT_S} s", True, Code.TIMEOUT)
            if await _is_begun(self.process):
                await super().kill(timeout=timeout, reason=reason)

    return WatchingNanny


async def _is_begun(worker: Any) -> bool:
    """Whether a nanny's worker has a process that can be ended: Dask fails on one that is just being begun in place of one that failed."""
    from distributed.core import Status

    if worker is not None and worker.status == Status.starting:
        await worker.running.wait()
    until = time.monotonic() + BEGIN_S
    while worker is not None and worker.process is not None and worker.process.pid is None:
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.01)
    return True


def _noting_plugin() -> Any:
    """Notes which worker is whose before it is given a step: a nanny learns that later, and a step can end its worker before."""
    from distributed import SchedulerPlugin

    class NotingPlugin(SchedulerPlugin):  # type: ignore[misc]  # as above
        def add_worker(self, scheduler: Any, worker: str) -> None:
            guarded[scheduler.workers[worker].nanny] = worker

    return NotingPlugin()


def _nannies() -> list[Any]:
    from distributed import Nanny

    for _ in range(10):  # the set may grow while workers start
        try:
            return [nanny for nanny in tuple(Nanny._instances) if type(nanny).__name__ == "WatchingNanny"]
        except RuntimeError:
            continue
    return []


def kill_workers() -> None:
    """End our own workers at once, and have nobody start others."""
    from distributed.core import Status

    for nanny in _nannies():
        pid, nanny.status = nanny.pid, Status.closing_gracefully
        if pid:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)


def _said(slots: dict[str, int]) -> str:
    """As `dask worker --resources` takes them."""
    return " ".join(f"{name}={count}" for name, count in slots.items())


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []  # asking torch would cost this process seconds, and hundreds of megabytes
    found = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return found.stdout.split() if found.returncode == 0 else []
