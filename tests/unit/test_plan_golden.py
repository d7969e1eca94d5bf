"""Whole plans of the usual containers, as text: one line a step, so that a change shows as what it changes.

``UPDATE_PLANS=1 pytest tests/unit/test_plan_golden.py`` writes the files anew; read the difference before committing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shimd.plan.ops import Plan
from tests.support.plans import HYBRID_HOST, HYBRID_VIEW, create, execute, listing
from tests.support.specs import containerd_default, runc_default

PLANS = Path(__file__).with_name("plans")


def runc() -> Plan:
    return create(runc_default())


def containerd() -> Plan:
    return create(containerd_default(), gate=False)


def hybrid() -> Plan:
    """runc's default on a host with cgroup v1, where the container sees its own directories."""
    return create(runc_default(), HYBRID_HOST, cgroups=HYBRID_VIEW, cgroup_slots=("cgroup.0", "cgroup.1", "cgroup.2"))


def terminal() -> Plan:
    document = runc_default("bash", "-l", terminal=True)
    document["process"]["consoleSize"] = {"height": 24, "width": 80}
    document["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5, 6], "umask": 0o77}
    document["process"]["cwd"] = "/home/user"
    return create(document)


def user_namespace() -> Plan:
    document = runc_default()
    document["linux"]["namespaces"] += [{"type": "user"}, {"type": "cgroup"}, {"type": "time"}]
    document["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    document["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    document["linux"]["timeOffsets"] = {"boottime": {"secs": -5, "nanosecs": 7}}
    document["mounts"].append({"destination": "/data", "source": "data", "options": ["rbind", "ro", "rprivate"]})
    return create(document)


def pod() -> Plan:
    """A container of a Kubernetes pod: namespaces of the sandbox, bind mounts, hooks, limits and labels."""
    document = containerd_default("/pause")
    document["hostname"] = "web-0"
    document["process"].update(
        oomScoreAdj=1000,
        apparmorProfile="cri-containerd.apparmor.d",
        scheduler={"policy": "SCHED_BATCH", "nice": 5},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 4},
    )
    document["root"]["readonly"] = True
    document["mounts"] += [
        {"destination": "/etc/hosts", "type": "bind", "source": "/run/hosts", "options": ["rbind", "rprivate", "rw"]},
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "relatime", "ro"],
        },
        {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "tmpcopyup", "size=1m"]},
    ]
    document["linux"]["namespaces"] = [
        {"type": "pid", "path": "/proc/123/ns/pid"},
        {"type": "ipc", "path": "/proc/123/ns/ipc"},
        {"type": "uts", "path": "/proc/123/ns/uts"},
        {"type": "mount"},
        {"type": "network", "path": "/run/netns/web-0"},
        {"type": "cgroup"},
    ]
    document["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0"}
    document["linux"]["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 1000, "gid": 1000}
    ]
    document["hooks"] = {
        "prestart": [{"path": "/opt/prestart"}],
        "createRuntime": [{"path": "/opt/runtime", "args": ["runtime", "-v"], "timeout": 5}],
        "createContainer": [{"path": "/opt/container", "env": ["A=1"]}],
        "startContainer": [{"path": "/opt/start"}],
    }
    return create(document)


def newer() -> Plan:
    """What the specification has got since 1.0, and the runtime's part in it."""
    document = runc_default()
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    document["linux"]["namespaces"] += [{"type": "user"}]
    document["linux"].update(uidMappings=maps, gidMappings=maps)
    document["linux"]["netDevices"] = {"enp1s0": {"name": "eth0"}, "enp2s0": {}}
    document["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]}
    document["mounts"] += [
        {"destination": "/data", "source": "data", "options": ["rbind", "ridmap"]},
        {
            "destination": "/again",
            "source": "rootfs/data",
            "options": ["bind"],
            "uidMappings": [{"containerID": 0, "hostID": 7, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": 7, "size": 1}],
        },
    ]
    return create(document, rdt_slots=("rdt.0",))


def exec_plan() -> Plan:
    return execute({"args": ["sh"], "cwd": "/", "env": ["PATH=/bin", "HOME=/root"]}, containerd_default())


def exec_in_user_namespace() -> Plan:
    document = runc_default()
    document["linux"]["namespaces"] += [{"type": "user"}]
    for field in ("uidMappings", "gidMappings"):
        document["linux"][field] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    process: dict[str, Any] = {
        "args": ["id"],
        "cwd": "/tmp",
        "terminal": True,
        "user": {"uid": 5, "gid": 6},
        "capabilities": {},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}],
        "execCPUAffinity": {"initial": "0-1", "final": "1"},
    }
    return execute(process, document)


@pytest.mark.parametrize(
    "make",
    [runc, containerd, hybrid, terminal, user_namespace, pod, newer, exec_plan, exec_in_user_namespace],
    ids=lambda make: make.__name__,
)
def test_plan(make: Callable[[], Plan]) -> None:
    file = PLANS / f"{make.__name__}.txt"
    text = listing(make())
    if "UPDATE_PLANS" in os.environ:
        PLANS.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_the_same_arguments_give_the_same_plan() -> None:
    assert pod() == pod()
