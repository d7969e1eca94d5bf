"""What containers of the daemon get of the host, each in a thread of its own while others are made: interfaces, owners,
agents.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.daemon.boxes import Box, MakeBox
from tests.support.agent import running
from tests.support.requires import requires
from tests.support.specs import runc_default

RANGE = [{"containerID": 0, "hostID": 100000, "size": 65536}]
CONTAINERS = 4


def spec_of(script: str, **linux: Any) -> dict[str, Any]:
    spec = runc_default("/bin/sh", "-c", script)
    spec["linux"].update(linux)
    return spec


def together(makers: list[Callable[[], object]]) -> None:
    with ThreadPoolExecutor(len(makers)) as pool:
        for future in [pool.submit(make) for make in makers]:
            future.result()


def codes(boxes: list[Box]) -> list[int]:
    together([box.make for box in boxes])
    for box in boxes:
        box.start()
    return [box.wait() for box in boxes]


@requires("program:ip", "veth")
def test_interfaces(box: MakeBox) -> None:
    """Every thread comes back to the host's namespace."""
    names = [f"shimd{os.getpid() % 10000}{letter}" for letter in "abcdefgh"[: CONTAINERS * 2]]
    try:
        for one, other in zip(names[::2], names[1::2], strict=True):
            subprocess.run(["ip", "link", "add", one, "type", "veth", "peer", "name", other], check=True)
        script = "test $(grep -c eth0: /proc/net/dev) = 1 && test $(wc -l </proc/net/dev) = 4"
        assert codes([box(spec=spec_of(script, netDevices={name: {"name": "eth0"}})) for name in names[::2]]) == [0] * 4
    finally:
        for name in names[1::2]:
            subprocess.run(["ip", "link", "delete", name], stderr=subprocess.DEVNULL, check=False)


@requires("kernel:6.3", "userns")
def test_owners(box: MakeBox, place: Path) -> None:
    """Each user namespace is made by a process of the keeper's, of which nothing is left."""
    (place / "file").touch()
    boxes = []
    for number in range(CONTAINERS):
        spec = spec_of(f"test $(stat -c %u /file) = {1000 * (number + 1)}")
        maps = [{"containerID": 0, "hostID": 1000 * (number + 1), "size": 10}]
        bind = {"type": "bind", "source": str(place / "file"), "destination": "/file", "options": ["bind"]}
        spec["mounts"].append(bind | {"uidMappings": maps, "gidMappings": maps})
        boxes.append(box(spec=spec))
    assert codes(boxes) == [0] * CONTAINERS


@pytest.mark.parametrize("nnp", [False, True])
def test_agents(box: MakeBox, place: Path, *, nnp: bool) -> None:
    path = f"{place}/agent.sock"
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }
    spec = spec_of("mkdir /dev/x 2>&1 | grep -q 'No medium found' && sleep 1000", seccomp=profile)
    spec["process"]["noNewPrivileges"] = nnp
    b = box(spec=spec)
    with running(path) as agent:
        b.make()
        b.start()
        assert agent.message()["pid"] == b.state().pid
        b.exec("x", "mkdir", "/dev/y", process={"noNewPrivileges": nnp})
        pid = b.start("x")
        assert agent.message()["pid"] == pid
        assert b.wait("x") == 1
    b.exec("y", "true", process={"noNewPrivileges": nnp})
    with pytest.raises(grpc.RpcError, match="failed to connect with seccomp agent"):
        b.start("y")
