"""Which device, which precision, how many cores: found on the machine, recorded in the recipe."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pathovit.errors import SettingsError

if TYPE_CHECKING:
    import torch

SPARE_BYTES = 384 * 2**20  # that a process may hold for its next tensors
DEVICE_LOST = re.compile(
    r"AcceleratorError|CUDA error|CUDA driver error|cuDNN error|CUBLAS_STATUS|device-side assert|NVML", re.IGNORECASE
)
MANY_TILES = 2000  # of a bag, from which on several threads are faster (docs/benchmarks.md)


def allowed_cores() -> int:
    """Cores this process may really use, which is not what the machine has: affinity, cgroup limits, SLURM's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min([cores, *cgroup_limits(), *([int(share)] if share.isdecimal() else [])]))


def cgroup_limits(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Cores that the groups of this process allow it (version 1 and 2); a group is bound by all those above it, too."""
    limits = []
    for line in mine.read_text().splitlines() if mine.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = Path(path.lstrip("/"))
        for mount in (groups, groups / "unified", groups / "cpu", groups / (controllers or "cpu")):
            for group in {mount, *(mount / part for part in (inside, *inside.parents))}:
                limits += _cgroup_limit(group)
    return limits


def _cgroup_limit(group: Path) -> list[int]:
    if (group / "cpu.max").is_file():  # version 2
        quota, period = (group / "cpu.max").read_text().split()
    elif (group / "cpu.cfs_quota_us").is_file():  # version 1
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    else:
        return []
    return [] if quota in ("max", "-1") else [max(1, int(quota) // int(period))]


def share_of(workers: int) -> int:
    """Cores of one of several workers on this machine."""
    return max(1, allowed_cores() // workers)


def use_threads(count: int) -> None:
    """Threads of torch for what this thread calls; others have theirs."""
    import torch

    torch.set_num_threads(max(1, count))


@contextmanager
def threads_for(tiles: float) -> Iterator[None]:
    """As many threads of torch as a slide model needs for a bag of so many tiles: small ones are no faster with more than one.

    Threads wait for each other at every step: beside another program, each such wait can take a time slice.
    """
    import torch

    before = torch.get_num_threads()
    use_threads(allowed_cores() if tiles >= MANY_TILES else 1)
    try:
        yield
    finally:
        use_threads(before)


def wait_passively() -> None:
    """Let threads that wait for each other leave the cores to others. Must come before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def quiet_libraries() -> None:
    """For processes of our own: what tifffile would complain of becomes our own message."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next tensor rather than give it back and have every page cleared anew.

    A network asks for the same large tensors again and again; without this a fifth of its time on a CPU goes into new
    pages. Elsewhere than on glibc nothing is done.
    """
    if libc := _glibc():
        trim_threshold, mmap_threshold, arena_max, most = -1, -3, -8, 2**31 - 1
        libc.mallopt(trim_threshold, most)
        if not libc.mallopt(mmap_threshold, most):
            libc.mallopt(mmap_threshold, 2**25)  # all that an older glibc allows
        libc.mallopt(arena_max, 1)  # threads begun from now on share what is kept


def give_back_memory() -> None:
    """Give what is free back to the system, after a step that needed much more than those that follow.

    Little is kept: the next tensors would have to ask for it again, page by page.
    """
    if (libc := _glibc()) and _spare_bytes(libc) > SPARE_BYTES:
        libc.malloc_trim(0)


def step_back() -> None:
    """Let other threads go before this one: an encoder on several cores waits for the slowest of them."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class _Mallinfo2(ctypes.Structure):
    """What glibc says of its memory: mallinfo2(3)."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"))  # fmt: skip


def _spare_bytes(libc: ctypes.CDLL) -> float:
    """About how much memory this process holds and has no use for; an older glibc does not say."""
    if not hasattr(libc, "mallinfo2"):
        return float("inf")
    libc.mallinfo2.restype = _Mallinfo2
    _, resident, of_files, *_ = (int(pages) * os.sysconf("SC_PAGESIZE") for pages in Path("/proc/self/statm").read_text().split())
    return float(resident - of_files - libc.mallinfo2().uordblks)


def _glibc() -> ctypes.CDLL | None:
    return libc if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version") else None


def pick_device(wanted: str) -> torch.device:
    """ "auto" is a CUDA GPU, else Apple's GPU, else the CPU."""
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise SettingsError(f"--device {wanted}: no such device. Use auto, cpu, cuda or mps.") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"--device {wanted}: pathovit does not compute there. Use auto, cpu, cuda or mps.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"--device {wanted}: no CUDA GPU is visible. Use --device cpu, or check the driver.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device {wanted}: {torch.cuda.device_count()} are visible, numbered from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(f"--device {wanted}: no GPU of Apple is visible. Use --device cpu.")
    return device


def device_at_sight(wanted: str) -> str | None:
    """ "cpu" where `pick_device` will say so; None where it has to be asked, because there may be a GPU. Needs no torch."""
    if wanted == "cpu" or (wanted == "auto" and sys.platform == "linux" and not _may_have_gpu()):
        return "cpu"
    return None


def _may_have_gpu() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return any(Path("/dev", name).exists() for name in ("nvidiactl", "nvidia0", "kfd", "dxg"))


def precision_at_sight(wanted: str, prefers_fp32: bool = False) -> str | None:
    """What `pick_precision` will say for the CPU, or None where that is not known without it. Needs no torch."""
    named = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
    if wanted in named:
        return named[wanted]
    if prefers_fp32:
        return "float32"
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        return None
    return "bfloat16" if re.search(r"^flags\b.*\bavx512_bf16\b", flags.read_text(), re.MULTILINE) else "float32"


def pick_precision(wanted: str, device: torch.device, prefers_fp32: bool = False) -> torch.dtype:
    """bf16 where the device computes in it, fp32 otherwise; `prefers_fp32` marks encoders that bf16 slows down on a CPU."""
    import torch

    if wanted == "fp32":
        return torch.float32
    if wanted == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and not prefers_fp32 and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device said that its memory does not hold what it was given."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether a device failed in a way that it does not get over within this process."""
    said = f"{type(error).__name__}: {error}"
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and DEVICE_LOST.search(said) is not None


def free_device_memory(device: torch.device) -> None:
    """Give back what is kept for the next tensors."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
