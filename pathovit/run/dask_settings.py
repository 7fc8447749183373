"""How Dask is set for workers of our own, and from what their processes are forked."""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pathovit.errors import SettingsError

SILENT_S = 30  # after which a worker that sends no heartbeat is replaced; looked for as often
QUIET = {  # no chatter, no web routes; a worker near its limit goes on (its nanny ends it at 95 %), for a paused one never wakes
    "DASK_LOGGING__DISTRIBUTED": "error",
    "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
}
KEPT = 20  # entries of a log
CALM = {  # what Dask does many times a second beside its work: on two cores it costs a tenth of one
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.scheduler.work-stealing": False,
    # Logs for developers of Dask, of which nobody reads more than the end: they would grow with every slide.
    "distributed.admin.log-length": KEPT,
    "distributed.admin.low-level-log-length": KEPT,
    "distributed.admin.system-monitor.log-length": KEPT,
    "distributed.diagnostics.computations.max-history": KEPT,
    "distributed.diagnostics.erred-tasks.max-history": KEPT,
}
FORKS = sys.platform == "linux"  # elsewhere the system's own libraries do not bear it
AHEAD = "pathovit.run.ahead"
MOST_OF_A_SOCKET, MOST_ADDED = (
    107,
    len("/pymp-12345678/listener-12345678"),
)  # bytes of its path on Linux, and what multiprocessing adds
# Of the process that workers are forked from. Its folder is the user's, and a file there called like a module is none.
BEFORE_FORK = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of semaphores of workers that were killed in the end: it clears them away itself
}  # fmt: skip


@contextmanager
def own_configuration() -> Iterator[None]:
    """Dask's defaults and ours: the user's files and variables are for the user's own clusters."""
    theirs = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("DASK_") or name == "MPLBACKEND"}
    os.environ.update(QUIET)  # before Dask is imported, and inherited by the workers
    try:
        import_ahead()
        try:
            import dask
            import distributed  # brings its defaults
        except ValueError as error:  # a file of settings that is no YAML
            raise SettingsError(f"Dask's own settings cannot be read: {error}. Correct that file, or move it away.") from error
        before = copy.deepcopy(dask.config.config)
        dask.config.refresh(paths=[], env=QUIET)
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 0,
                "distributed.scheduler.http.routes": [],
                "distributed.scheduler.worker-ttl": f"{SILENT_S}s",
                # Of several arenas only the first can hold large tensors, and the encoder's thread must not be given another.
                "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
                **CALM,
                "distributed.worker.multiprocessing-method": "forkserver" if FORKS else "spawn",
            }
        )
        distributed.utils._forkserver_preload_set = True  # it would have every package imported that Dask knows
        try:
            yield
        finally:
            dask.config.config.clear()
            dask.config.config.update(before)
    finally:
        for name in QUIET:
            os.environ.pop(name, None)
        os.environ.update(theirs)


def import_ahead() -> None:
    """Have a process import what workers need while this one starts the scheduler (see ahead.py); workers are forked from it."""
    if not FORKS:
        return
    from multiprocessing import forkserver

    before = {name: os.environ.get(name) for name in BEFORE_FORK}
    os.environ.update(BEFORE_FORK)
    try:
        _choose_temporary_folder()
        forkserver.set_forkserver_preload([AHEAD])
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _choose_temporary_folder() -> None:
    """Of the forkserver's socket, whose path the system bounds: where the user's folder is too deep for it, it lies in /tmp."""
    from multiprocessing.util import get_temp_dir

    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) + MOST_ADDED > MOST_OF_A_SOCKET:
        tempfile.tempdir = "/tmp"
    try:
        get_temp_dir()  # which is kept
    finally:
        tempfile.tempdir = before
