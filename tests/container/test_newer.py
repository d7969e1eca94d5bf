"""What the specification has got since 1.0: owners of mounts, memory policies, network devices, seccomp agents, time.

A runtime whose features document does not have it is not asked.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.boxes import NEWER, Answer, Box, Runtime
from tests.support.agent import Agent, running
from tests.support.requires import requires

RANGE = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def needs(runtime: Runtime, *path: str) -> None:
    """``path`` leads to something that is true in ``linux`` of the features document."""
    found: Any = json.loads(runtime("features"))["linux"]
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    if not found:
        pytest.skip(f"{runtime.command[0]} does not offer {'.'.join(path)}")


def run(box: Box, script: str) -> Answer:
    box.spec["process"]["args"] = ["/bin/sh", "-c", script]
    box.write()
    return box.runtime.run("run", "--bundle", str(box.bundle), box.id)


def said(box: Box, script: str) -> str:
    answer = run(box, script)
    assert (answer.code, answer.errors) == (0, ""), answer
    return answer.output


def in_user_namespace(box: Box) -> None:
    box.spec["linux"]["namespaces"].append({"type": "user"})
    box.spec["linux"] |= {"uidMappings": RANGE, "gidMappings": RANGE}
    subprocess.run(["chown", "-R", "100000:100000", box.bundle / "rootfs"], check=True)


# ---- owners of mounts ------------------------------------------------------------------------------------------------


@pytest.fixture
def source(runtime: Runtime, place: Path) -> Iterator[Path]:
    needs(runtime, "mountExtensions", "idmap", "enabled")
    folder = place / "source"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "source", folder], check=True)
    (folder / "file").touch()
    os.chown(folder / "file", 5, 6)
    yield folder
    subprocess.run(["umount", folder], check=True)


def add_bind(box: Box, source: Path | str, to: str = "/data", *options: str, **maps: Any) -> None:
    entry = {"type": "bind", "source": str(source), "destination": to, "options": ["bind", *options], **maps}
    box.spec["mounts"].append(entry)


@requires("kernel:6.3")
def test_maps_of_a_mount(box: Box, source: Path) -> None:
    add_bind(box, source, uidMappings=RANGE, gidMappings=RANGE)
    add_bind(box, source, to="/plain")
    assert said(box, "stat -c '%u %g' /data/file /plain/file") == "100005 100006\n5 6\n"


@requires("kernel:6.3", "userns")
def test_maps_of_the_container(box: Box, source: Path) -> None:
    in_user_namespace(box)
    add_bind(box, "source", "/data", "idmap")
    assert said(box, "stat -c '%u %g' /data/file; touch /data/new") == "5 6\n"
    assert (source / "new").stat().st_uid == 0


@pytest.mark.parametrize(
    ("kind", "maps", "text"),
    [
        ("tmpfs", {"uidMappings": RANGE, "gidMappings": RANGE}, "id-mapped mounts are only supported for bind-mounts"),
        ("bind", {"uidMappings": RANGE}, "id-mapped mounts must have both uid and gid mappings specified"),
    ],
)
def test_maps_that_are_refused(box: Box, source: Path, kind: str, maps: dict[str, Any], text: str) -> None:
    box.spec["mounts"].append({"type": kind, "source": str(source), "destination": "/data", "options": [], **maps})
    if kind == "bind":
        box.spec["mounts"][-1]["options"] = ["bind"]
    answer = run(box, "true")
    assert answer.code == 1
    assert text in answer.errors


# ---- memory ----------------------------------------------------------------------------------------------------------

POLICY = "read address policy rest </proc/self/numa_maps; echo $policy"


@requires("file:/proc/self/numa_maps")
def test_memory_policy(box: Box) -> None:
    needs(box.runtime, "memoryPolicy", "modes")
    box.spec["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    box.start()
    assert box.runtime("exec", box.id, "sh", "-c", POLICY) == "bind=static:0\n"


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({}, "invalid memory policy mode"),
        ({"mode": "MPOL_BIND", "nodes": "0-9876543210"}, "invalid memory policy node"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["x"]}, "invalid memory policy flag"),
        ({"mode": "MPOL_DEFAULT", "nodes": "0-7"}, "mode requires 0 nodes but got 8"),
    ],
)
def test_memory_policies_that_are_refused(box: Box, policy: dict[str, Any], text: str) -> None:
    needs(box.runtime, "memoryPolicy", "modes")
    box.spec["linux"]["memoryPolicy"] = policy
    answer = run(box, "true")
    assert answer.code == 1
    assert text in answer.errors


# ---- network devices -------------------------------------------------------------------------------------------------


@requires("program:ip", "veth")
def test_network_device(box: Box) -> None:
    needs(box.runtime, "netDevices", "enabled")
    name, peer = (f"shimd{os.getpid() % 100000}{letter}" for letter in "xy")
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", peer], check=True)
    try:
        subprocess.run(["ip", "address", "add", "10.99.1.1/24", "dev", name], check=True)
        box.spec["linux"]["netDevices"] = {name: {"name": "eth0"}}
        output = said(box, "ip address show dev eth0")
        assert "inet 10.99.1.1/24 " in output
        assert ",UP" in output
    finally:
        subprocess.run(["ip", "link", "delete", peer], stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("names", [{"eth 0": {}}, {"eth0": {"name": ".."}}])
def test_network_devices_that_are_refused(box: Box, names: dict[str, Any]) -> None:
    needs(box.runtime, "netDevices", "enabled")
    box.spec["linux"]["netDevices"] = names
    answer = run(box, "true")
    assert answer.code == 1
    assert "invalid network device name" in answer.errors


# ---- seccomp agents --------------------------------------------------------------------------------------------------


@pytest.fixture
def agent(box: Box, place: Path) -> Iterator[Agent]:
    actions = json.loads(box.runtime("features"))["linux"]["seccomp"].get("actions", ())
    if "SCMP_ACT_NOTIFY" not in actions:
        pytest.skip("the runtime does not offer SCMP_ACT_NOTIFY")
    box.spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": f"{place}/agent.sock",
        "listenerMetadata": "meta",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }
    with running(f"{place}/agent.sock") as found:
        yield found


MKDIR = "mkdir /tmp/x 2>&1; true"


@NEWER  # runc 1.1 hangs in its exec
@pytest.mark.parametrize("nnp", [False, True])
def test_agent(box: Box, agent: Agent, *, nnp: bool) -> None:
    box.spec["process"]["noNewPrivileges"] = nnp
    box.start()
    state = box.state()
    message = agent.message()
    assert (message["pid"], message["metadata"], message["fds"]) == (state["pid"], "meta", ["seccompFd"])
    assert (message["state"]["id"], message["state"]["bundle"]) == (box.id, state["bundle"])
    assert "No medium found" in box.runtime("exec", box.id, "sh", "-c", MKDIR)
    assert agent.message()["pid"] != state["pid"]


@pytest.mark.parametrize("nnp", [False, True])
def test_agent_that_is_not_there(box: Box, agent: Agent, *, nnp: bool) -> None:
    box.spec["process"]["noNewPrivileges"] = nnp
    agent.end()
    answer = run(box, MKDIR)
    assert answer.code == 1
    assert "failed to connect with seccomp agent" in answer.errors


def test_agent_that_is_asked_for_what_it_cannot_decide(box: Box, agent: Agent) -> None:
    box.spec["linux"]["seccomp"]["syscalls"][0]["names"] = ["write"]
    answer = run(box, MKDIR)
    assert answer.code == 1
    assert "SCMP_ACT_NOTIFY cannot be used for the write syscall" in answer.errors


# ---- time ------------------------------------------------------------------------------------------------------------


@requires("namespace:time")
@pytest.mark.parametrize("userns", [False, True])
def test_time_namespace(box: Box, *, userns: bool) -> None:
    if "time" not in json.loads(box.runtime("features"))["linux"]["namespaces"]:
        pytest.skip("the runtime does not offer time namespaces")
    if userns:
        in_user_namespace(box)
    box.spec["linux"]["namespaces"].append({"type": "time"})
    box.spec["linux"]["timeOffsets"] = {"monotonic": {"secs": 7881}, "boottime": {"secs": 1337}}
    box.start()
    script = "tr -s ' ' </proc/self/timens_offsets"
    assert box.runtime("exec", box.id, "sh", "-c", script) == "monotonic 7881 0\nboottime 1337 0\n"
