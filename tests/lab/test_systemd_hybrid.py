"""Containers as units of systemd, on a machine that systemd runs with cgroup v1 and the unified hierarchy beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shimd.oci.read import read_resources
from shimd.runtime.container import Container
from shimd.runtime.status import Status
from tests.kernel.runtime_rig import Rig
from tests.lab.systemd_rig import ABSENT, MEBIBYTE, everything, rig, shell, show, sleeper, started, unit_of
from tests.support import wait

__all__ = ["rig", "started"]

pytestmark = pytest.mark.lab("hybrid")


def file(container: Container, controller: str, name: str) -> str:
    return Path(container.state.cgroup_paths[controller], name).read_text().strip()


def places(pid: int) -> set[str]:
    """Of a process in all hierarchies."""
    return {line.rpartition(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}


def test_a_whole_life(rig: Rig) -> None:
    container = rig.create(sleeper(path=f"system.slice:docker:{rig.id}"), systemd_cgroup=True)
    unit = f"docker-{rig.id}.scope"
    assert places(container.pid) == {f"/system.slice/{unit}"}
    rig.runtime.start(container)
    assert show(unit, "ActiveState", "Delegate") == {"ActiveState": "active", "Delegate": "yes"}
    process = rig.exec(container, "sleep", "1000")
    assert places(process.pid) == places(container.pid)
    assert rig.runtime.pids(container) == [container.pid, process.pid]
    paths = [Path(path) for path in container.state.cgroup_paths.values()]
    assert all(path.is_dir() for path in paths)
    rig.runtime.kill(container, 9)
    rig.wait_exec(container, process)
    rig.wait(container)
    rig.runtime.delete(container)
    assert show(unit, "LoadState") == ABSENT
    assert not any(path.exists() for path in paths)


def test_limits_and_updates(rig: Rig, started: Callable[..., Container]) -> None:
    container = started(
        sleeper(
            memory={"limit": 64 * MEBIBYTE},
            cpu={"shares": 512, "quota": 15555, "period": 100000},
            pids={"limit": 50},
        )
    )
    assert file(container, "memory", "memory.limit_in_bytes") == "67108864"
    assert file(container, "cpu", "cpu.shares") == "512"
    assert file(container, "cpu", "cpu.cfs_quota_us") == "16000"
    assert file(container, "pids", "pids.max") == "50"
    assert show(unit_of(container), "MemoryLimit", "CPUShares", "TasksMax", "CPUQuotaPerSecUSec") == {
        "MemoryLimit": "67108864",
        "CPUShares": "512",
        "TasksMax": "50",
        "CPUQuotaPerSecUSec": "160ms",
    }
    rig.runtime.update(container, read_resources(b'{"memory": {"limit": 33554432}, "pids": {"limit": 20}}'))
    assert file(container, "memory", "memory.limit_in_bytes") == "33554432"
    assert file(container, "cpu", "cpu.shares") == "512"
    assert file(container, "pids", "pids.max") == "20"
    assert rig.runtime.stats(container).pids.limit == 20


DEVICES: list[list[dict[str, Any]]] = [
    [{"allow": False, "access": "rwm"}],
    [{"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "rwm"}],
    [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "minor": 77, "access": "r"}],
]


@pytest.mark.parametrize("rules", DEVICES)
def test_updates_do_not_disturb_the_use_of_devices(
    rig: Rig, started: Callable[..., Container], rules: list[dict[str, Any]]
) -> None:
    """systemd denies everything for a moment whenever it sets something."""
    spec = shell("while head -c 1 /dev/zero >/dev/null; do :; done; exit 9", devices=rules)
    spec["linux"]["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]
    container = started(spec)
    before = file(container, "devices", "devices.list")
    for shares in (100, 200, 300, 400):
        rig.runtime.update(container, read_resources(json.dumps({"cpu": {"shares": shares}}).encode()))
    assert file(container, "devices", "devices.list") == before
    _, text = rig.output_of(container, "sh", "-c", "head -c 1 /dev/kmsg 2>&1")
    assert text == "head: /dev/kmsg: Operation not permitted\n"
    assert rig.runtime.status(container) is Status.RUNNING


def test_pause(rig: Rig, started: Callable[..., Container]) -> None:
    container = started(sleeper())
    rig.runtime.pause(container)
    rig.runtime.update(container, read_resources(b'{"cpu": {"shares": 100}}'))
    assert rig.runtime.status(container) is Status.PAUSED, "an update does not thaw"
    rig.runtime.resume(container)


def test_lives_leave_nothing(rig: Rig) -> None:
    rig.run(shell("exit 0"), systemd_cgroup=True)
    before = everything()
    for _ in range(10):
        rig.run(shell("exit 0"), systemd_cgroup=True)
    deadline = time.monotonic() + wait.SECONDS
    while everything() != before and time.monotonic() < deadline:
        time.sleep(0.1)  # the kernel frees cgroups of v1 from a work queue, of which nobody is told
    assert everything() == before
