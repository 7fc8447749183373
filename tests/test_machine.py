import os
from pathlib import Path

import pytest

from pathovit.machine import allowed_cores, cgroup_limits, share_of


def group(path: Path, **files: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(("quota", "limits"), [("400000 100000", [4]), ("max 100000", []), ("50000 100000", [1])])
def test_the_limit_of_the_own_group(tmp_path: Path, quota: str, limits: list[int]) -> None:
    group(tmp_path, cgroup="0::/job/step")
    group(tmp_path / "fs/job/step", cpu__max=quota)
    assert cgroup_limits(tmp_path / "fs", tmp_path / "cgroup") == limits


def test_a_group_is_bound_by_those_above_it(tmp_path: Path) -> None:
    group(tmp_path, cgroup="0::/job/step/task")
    group(tmp_path / "fs/job/step/task", cpu__max="max 100000")
    group(tmp_path / "fs/job", cpu__max="800000 100000")
    assert cgroup_limits(tmp_path / "fs", tmp_path / "cgroup") == [8]


def test_version_1_inside_a_container_that_does_not_see_its_own_path(tmp_path: Path) -> None:
    group(tmp_path, cgroup="9:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/")
    group(tmp_path / "fs/cpu,cpuacct", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    group(tmp_path / "fs/memory/docker/1", cpu__max="100000 100000")  # of another controller
    assert cgroup_limits(tmp_path / "fs", tmp_path / "cgroup") == [2]
    group(tmp_path / "fs/cpu,cpuacct", cpu__cfs_quota_us="-1")
    assert cgroup_limits(tmp_path / "fs", tmp_path / "cgroup") == []
    assert cgroup_limits(tmp_path / "fs", tmp_path / "nothing") == []


def test_slurm_and_other_workers_leave_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr("pathovit.machine.cgroup_limits", lambda: [12])
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert allowed_cores() == 12
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert (allowed_cores(), share_of(4), share_of(12)) == (6, 1, 1)
