"""Containers as units of systemd, on a machine that systemd runs with cgroup v2."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shimd.cgroups.systemd_bus import Systemd
from shimd.errors import FailedPrecondition, InvalidSpec, RuntimeFailure
from shimd.host.facts import probe
from shimd.oci.read import read_resources
from shimd.runtime.container import Container
from shimd.runtime.model import ExecOptions
from shimd.runtime.status import Status
from tests.kernel.runtime_rig import Rig, keeper_launcher
from tests.lab.kernel_objects import settled
from tests.lab.systemd_rig import (
    ABSENT,
    CGROUPS,
    MEBIBYTE,
    cgroup_of,
    everything,
    rig,
    shell,
    show,
    sleeper,
    started,
    unit_of,
)
from tests.support import wait

__all__ = ["rig", "started"]

pytestmark = pytest.mark.lab("systemd")


def file(container: Container, name: str) -> str:
    return (cgroup_of(container) / name).read_text().strip()


def number(container: Container, name: str, key: str) -> int:
    return int(dict(line.split() for line in file(container, name).splitlines())[key])


# ---- lives -----------------------------------------------------------------------------------------------------------


def test_a_whole_life(rig: Rig) -> None:
    container = rig.create(sleeper(), systemd_cgroup=True)
    unit = f"runc-{rig.id}.scope"
    assert cgroup_of(container) == CGROUPS / "system.slice" / unit
    assert Path(f"/proc/{container.pid}/cgroup").read_text() == f"0::/system.slice/{unit}\n"
    assert rig.runtime.status(container) is Status.CREATED
    rig.runtime.start(container)
    assert rig.runtime.pids(container) == [container.pid]
    assert show(unit, "ActiveState", "Slice", "Delegate", "Description", "CPUAccounting", "IOAccounting") == {
        "ActiveState": "active",
        "Slice": "system.slice",
        "Delegate": "yes",
        "Description": f"libcontainer container {rig.id}",
        "CPUAccounting": "yes",
        "IOAccounting": "yes",
    }
    container.close()
    again = rig.runtime.load(rig.id)
    rig.end(again)
    assert show(unit, "LoadState") == ABSENT
    assert not (CGROUPS / "system.slice" / unit).exists()


def test_with_a_keeper(place: Path, busybox: Path, container_id: str) -> None:
    with keeper_launcher(place / "keeper") as launcher:
        rig = Rig(probe(), launcher, place, container_id)
        code, text = rig.run(shell("cat /proc/self/cgroup"), systemd_cgroup=True)
    assert (code, text) == (0, "0::/\n"), "the namespace is made inside of the cgroup"


@pytest.mark.parametrize(
    ("path", "unit", "cgroup"),
    [
        ("system.slice:docker:{}", "docker-{}.scope", "system.slice/docker-{}.scope"),
        ("lab-pods.slice:cri:{}", "cri-{}.scope", "lab.slice/lab-pods.slice/cri-{}.scope"),
        ("-:top:{}", "top-{}.scope", "top-{}.scope"),
        ("lab.slice::lab-own.slice", "lab-own.slice", "lab.slice/lab-own.slice"),
    ],
)
def test_places(rig: Rig, started: Callable[..., Container], path: str, unit: str, cgroup: str) -> None:
    container = started(sleeper(path=path.format(rig.id)))
    assert unit_of(container) == unit.format(rig.id)
    assert cgroup_of(container) == CGROUPS / cgroup.format(rig.id)
    assert file(container, "cgroup.procs") == str(container.pid)


def test_a_path_that_names_a_unit_is_enough_for_the_daemon(rig: Rig) -> None:
    container = rig.create(sleeper(path=f"system.slice:docker:{rig.id}"), systemd_cgroup=None)
    assert show(f"docker-{rig.id}.scope", "ActiveState") == {"ActiveState": "active"}
    rig.end(container)


def test_a_user_namespace_gets_the_cgroup(rig: Rig, started: Callable[..., Container]) -> None:
    spec = sleeper()
    spec["linux"]["namespaces"] += [{"type": "user"}]
    mappings = [{"containerID": 0, "hostID": 1000, "size": 1000}]
    spec["linux"] |= {"uidMappings": mappings, "gidMappings": mappings}
    for mount in spec["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"].remove("ro")
    container = started(spec)
    assert cgroup_of(container).stat().st_uid == 1000
    assert (cgroup_of(container) / "cgroup.procs").stat().st_uid == 1000
    assert (cgroup_of(container) / "memory.max").stat().st_uid == 0
    assert rig.output_of(container, "sh", "-c", "mkdir /sys/fs/cgroup/sub && rmdir /sys/fs/cgroup/sub") == (0, "")


def test_exec(rig: Rig, started: Callable[..., Container]) -> None:
    container = started(sleeper())
    assert rig.output_of(container, "cat", "/proc/self/cgroup") == (0, "0::/\n")
    (cgroup_of(container) / "sub").mkdir()
    where = ExecOptions(cgroup={"": "sub"})
    assert rig.output_of(container, "cat", "/proc/self/cgroup", options=where) == (0, "0::/sub\n")


def test_without_a_bus(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd listens itself, too."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
    assert rig.run(shell("exit 3"), systemd_cgroup=True) == (3, "")
    assert show(f"runc-{rig.id}.scope", "LoadState") == ABSENT


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_limits_are_told_and_in_force(started: Callable[..., Container]) -> None:
    container = started(
        sleeper(
            memory={"limit": 64 * MEBIBYTE, "swap": 64 * MEBIBYTE, "reservation": 32 * MEBIBYTE},
            cpu={"shares": 512, "quota": 15555, "period": 100000},
            pids={"limit": 50},
        )
    )
    files = ("memory.max", "memory.low", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max")
    assert [file(container, name) for name in files] == ["67108864", "33554432", "0", "59", "16000 100000", "50"]
    assert show(
        unit_of(container), "MemoryMax", "MemoryLow", "MemorySwapMax", "CPUWeight", "CPUQuotaPerSecUSec", "TasksMax"
    ) == {
        "MemoryMax": "67108864",
        "MemoryLow": "33554432",
        "MemorySwapMax": "0",
        "CPUWeight": "59",
        "CPUQuotaPerSecUSec": "160ms",
        "TasksMax": "50",
    }


def test_limits_outlive_a_reload(started: Callable[..., Container]) -> None:
    container = started(sleeper(memory={"limit": 64 * MEBIBYTE}, unified={"memory.high": "50331648"}))
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert file(container, "memory.max") == "67108864"
    assert file(container, "memory.high") == "50331648"


def test_annotations_are_properties(started: Callable[..., Container]) -> None:
    spec = sleeper()
    spec["annotations"] = {
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.TimeoutStopSec": "uint32 7",
        "org.systemd.property.After": "['basic.target']",
    }
    container = started(spec)
    found = show(unit_of(container), "CollectMode", "TimeoutStopUSec", "After")
    assert found.pop("After").split().count("basic.target") == 1
    assert found == {"CollectMode": "inactive-or-failed", "TimeoutStopUSec": "7s"}


def test_update(rig: Rig, started: Callable[..., Container]) -> None:
    container = started(sleeper(memory={"limit": 64 * MEBIBYTE}, unified={"cpu.weight": "77"}))
    change = {"memory": {"limit": 128 * MEBIBYTE}, "pids": {"limit": 20}, "cpu": {"quota": 6000, "period": 10000}}
    rig.runtime.update(container, read_resources(json.dumps(change).encode()))
    assert [file(container, name) for name in ("memory.max", "pids.max", "cpu.max", "cpu.weight")] == [
        "134217728", "20", "6000 10000", "77"
    ]  # fmt: skip
    found = show(unit_of(container), "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec")
    assert found == {
        "MemoryMax": "134217728",
        "TasksMax": "20",
        "CPUQuotaPerSecUSec": "600ms",
        "CPUQuotaPeriodUSec": "10ms",
    }


def test_pids_limit_stops_a_fork_bomb(rig: Rig) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done 2>&1; grep -c . /sys/fs/cgroup/cgroup.procs"
    _, text = rig.run(shell(script, pids={"limit": 5}), systemd_cgroup=True)
    assert "can't fork" in text


def test_memory_hog_is_killed_and_told_of(rig: Rig) -> None:
    """Its parent lives on, so that the cgroup is there to be asked."""
    hog = "head -c 100m /dev/zero | tail -c 90m >/dev/null; sleep 1000"
    container = rig.create(shell(hog, memory={"limit": 20 * MEBIBYTE, "swap": 20 * MEBIBYTE}), systemd_cgroup=True)
    watch = container.cgroup.oom_watch()
    try:
        rig.runtime.start(container)
        killed = 0
        while not killed:
            wait.readable(watch.fileno(), what="the OOM kill", seconds=60)
            killed = watch.consume()
    finally:
        watch.close()
    assert rig.runtime.stats(container).memory.events["oom_kill"] >= 1
    rig.end(container)


def test_quota_throttles(rig: Rig, started: Callable[..., Container]) -> None:
    container = started(shell("while :; do :; done", cpu={"quota": 10000, "period": 100000}))
    assert rig.output_of(container, "sleep", "1") == (0, "")
    assert number(container, "cpu.stat", "nr_throttled") > 0
    assert rig.runtime.stats(container).cpu.throttling.throttled_periods > 0


def test_pause_and_resume(rig: Rig, started: Callable[..., Container]) -> None:
    container = started(shell("while :; do :; done"))
    rig.runtime.pause(container)
    assert rig.runtime.status(container) is Status.PAUSED
    used = number(container, "cpu.stat", "usage_usec")
    assert number(container, "cpu.stat", "usage_usec") == used
    rig.runtime.resume(container)
    assert rig.runtime.status(container) is Status.RUNNING


# ---- devices ---------------------------------------------------------------------------------------------------------


def test_devices_are_denied_before_and_after_a_reload(rig: Rig, started: Callable[..., Container]) -> None:
    spec = sleeper()
    spec["process"]["capabilities"]["bounding"].append("CAP_MKNOD")
    spec["process"]["capabilities"]["effective"].append("CAP_MKNOD")
    spec["process"]["capabilities"]["permitted"].append("CAP_MKNOD")
    container = started(spec)
    assert show(unit_of(container), "DevicePolicy") == {"DevicePolicy": "strict"}
    kmsg = "mknod /dev/kmsg c 1 11 2>&1; head -c 1 /dev/kmsg 2>&1; head -c 1 /dev/zero | wc -c"
    for _ in range(2):
        _, text = rig.output_of(container, "sh", "-c", kmsg)
        assert text == "head: /dev/kmsg: Operation not permitted\n1\n", text
        rig.output_of(container, "rm", "/dev/kmsg")
        subprocess.run(["systemctl", "daemon-reload"], check=True)


def test_rules_that_systemd_cannot_say_survive_a_reload(rig: Rig, started: Callable[..., Container]) -> None:
    rules = [{"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "rw"}]
    spec = sleeper(devices=rules)
    spec["linux"]["devices"] = [
        {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11},
        {"path": "/dev/tty0", "type": "c", "major": 4, "minor": 0},
    ]
    container = started(spec)
    assert show(unit_of(container), "DevicePolicy") == {"DevicePolicy": "auto"}
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    _, text = rig.output_of(container, "sh", "-c", "head -c 1 /dev/kmsg 2>&1")
    assert text == "head: /dev/kmsg: Operation not permitted\n"


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        (sleeper(path="/a/b"), InvalidSpec, 'expected cgroupsPath to be of format "slice:prefix:name"'),
        (sleeper(path="a/b.slice:p:n"), InvalidSpec, "invalid slice name: a/b.slice"),
        (sleeper(memory={"limit": 10, "swap": 5}), InvalidSpec, "memory"),
        (sleeper() | {"annotations": {"org.systemd.property.Foo": "bar"}}, InvalidSpec, "/annotations/org.systemd"),
        (sleeper() | {"annotations": {"org.systemd.property.Nonesuch": "1"}}, RuntimeFailure, "Nonesuch"),
        (sleeper(unified={"hugetlb.2MB.max": "0"}), RuntimeFailure, 'controller "hugetlb" not available'),
    ],
)
def test_refused(rig: Rig, spec: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        rig.create(spec, systemd_cgroup=True)
    assert show(f"runc-{rig.id}.scope", "LoadState") == ABSENT
    assert not rig.state_dir().exists()


def test_a_failed_unit_is_not_in_the_way(rig: Rig) -> None:
    unit = f"runc-{rig.id}.scope"
    with subprocess.Popen(["sleep", "1000"]) as process, Systemd(user=False) as systemd:
        systemd.start_transient_unit(unit, [("PIDs", ("au", [process.pid])), ("RuntimeMaxUSec", ("t", 1000))])
        process.wait()
        subprocess.run(["systemctl", "is-failed", "--wait", unit], check=False, capture_output=True)
    assert show(unit, "ActiveState") == {"ActiveState": "failed"}
    assert rig.run(shell("exit 3"), systemd_cgroup=True) == (3, "")


def test_a_unit_of_others_is_left_alone(rig: Rig) -> None:
    unit = f"runc-{rig.id}.scope"
    with subprocess.Popen(["sleep", "1000"]) as process, Systemd(user=False) as systemd:
        systemd.start_transient_unit(unit, [("PIDs", ("au", [process.pid]))])
        with pytest.raises(FailedPrecondition, match=r"container's cgroup is not empty: 1 process\(es\) found"):
            rig.create(sleeper(), systemd_cgroup=True)
        assert show(unit, "ActiveState") == {"ActiveState": "active"}
        process.kill()


def test_a_container_whose_processes_are_gone_can_be_deleted(rig: Rig) -> None:
    """systemd has stopped the unit by itself then."""
    container = rig.create(shell("exit 3"), systemd_cgroup=True)
    rig.runtime.start(container)
    assert rig.wait(container) == 3
    assert rig.runtime.delete(container) == ()


@pytest.mark.timeout(600)
@pytest.mark.timeout(600)
def test_a_hundred_lives_leave_nothing(rig: Rig) -> None:
    rig.run(shell("exit 0"), systemd_cgroup=True)
    before = everything()
    for _ in range(100):
        rig.run(shell("exit 0"), systemd_cgroup=True)
    assert settled(everything, before) == before
