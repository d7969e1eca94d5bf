"""Interfaces of the host in a container: where they are, what they are called, what addresses they have."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidSpec, RuntimeFailure
from shimd.host.facts import probe
from shimd.runtime.direct import DirectLauncher
from tests.kernel.attack import shell, small_rootfs
from tests.kernel.runtime_rig import Rig, rig_with
from tests.support import wait
from tests.support.requires import requires

pytestmark = requires("program:ip", "veth")

_numbers = itertools.count()

MakeDevice = Callable[..., str]


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, container_id: str) -> Iterator[Rig]:
    small_rootfs(place / "rootfs")
    with rig_with(request.param, place, container_id) as made:
        yield made


@pytest.fixture
def direct(place: Path, container_id: str) -> Rig:
    small_rootfs(place / "rootfs")
    return Rig(probe(), DirectLauncher(), place, container_id)


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def device() -> Iterator[MakeDevice]:
    """``device("10.0.0.1/24")``: half of a pair, up, with addresses. The other half goes with it."""
    names: list[str] = []

    def make(*addresses: str, up: bool = True, kind: str = "veth") -> str:
        number = next(_numbers)
        name, peer = f"shimd{os.getpid() % 10000}n{number}", f"shimd{os.getpid() % 10000}p{number}"
        names.append(peer if kind == "veth" else name)
        ip("link", "add", name, "type", kind, *(["peer", "name", peer] if kind == "veth" else []))
        if up:
            ip("link", "set", name, "up")
        for address in addresses:
            ip("address", "add", *address.split(), "dev", name, *(["nodad"] if ":" in address else []))
        return name

    yield make
    for name in names:
        subprocess.run(["ip", "link", "delete", name], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def namespace() -> Iterator[str]:
    """The path of one that is there without a container."""
    command = ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        wait.read_until(holder.stdout.fileno(), b"\n")
        yield f"/proc/{holder.pid}/ns/net"
        holder.kill()


def ip_in(namespace: str, *args: str) -> str:
    command = ["nsenter", f"--net={namespace}", "ip", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def with_devices(script: str, **names: str) -> dict[str, Any]:
    spec = shell(script)
    spec["linux"]["netDevices"] = {outside: {"name": inside} if inside else {} for outside, inside in names.items()}
    return spec


def in_namespace(spec: dict[str, Any], path: str) -> dict[str, Any]:
    for entry in spec["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = path
    return spec


def addresses(namespace: str, name: str) -> set[str]:
    (link,) = json.loads(ip_in(namespace, "-json", "address", "show", name))
    assert "UP" in link["flags"]
    return {f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"] if entry["scope"] == "global"}


SHOW = "cat /proc/net/dev | sed -n 's/ *\\(.*\\):.*/\\1/p' | sort"


def test_an_interface_is_moved_and_renamed(rig: Rig, device: MakeDevice) -> None:
    kept, renamed = device(), device("fd00:5::1/64")
    code, text = rig.run(with_devices(SHOW, **{kept: "", renamed: "eth0"}))
    assert [name for name in text.split() if "eth" in name or "shimd" in name] == ["eth0", kept]
    assert code == 0
    assert kept not in ip("link")


def test_addresses_of_a_namespace_that_is_joined(direct: Rig, device: MakeDevice, namespace: str) -> None:
    """The interface stays there when the container is gone. Addresses of another scope are the host's business."""
    name = device("10.90.1.1/24 broadcast 10.90.1.255", "10.90.2.1/32 scope link", "fd00:5::1/64", "fd00:6::1/64")
    ip("link", "set", name, "mtu", "1789")
    spec = in_namespace(with_devices("cat /sys/class/net/eth0/mtu", **{name: "eth0"}), namespace)
    assert direct.run(spec) == (0, "1789\n")
    assert addresses(namespace, "eth0") == {"10.90.1.1/24", "fd00:5::1/64", "fd00:6::1/64"}
    assert "10.90.1.255" in ip_in(namespace, "address", "show", "eth0")


def test_an_interface_that_was_down(direct: Rig, device: MakeDevice, namespace: str) -> None:
    name = device("10.90.1.1/32", up=False)
    direct.run(in_namespace(with_devices("true", **{name: ""}), namespace))
    assert addresses(namespace, name) == {"10.90.1.1/32"}


def test_init_finds_them(direct: Rig, device: MakeDevice) -> None:
    """Settings of an interface are part of the configuration, too."""
    spec = with_devices("cat /proc/sys/net/ipv4/conf/eth0/forwarding", **{device(): "eth0"})
    spec["linux"]["sysctl"] = {"net.ipv4.conf.eth0.forwarding": "1"}
    assert direct.run(spec) == (0, "1\n")


def test_with_a_user_namespace(direct: Rig, device: MakeDevice) -> None:
    name = device()
    spec = with_devices(SHOW, **{name: "eth0"})
    spec["linux"]["namespaces"].append({"type": "user"})
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"].update(uidMappings=maps, gidMappings=maps)
    code, text = direct.run(spec)
    assert (code, "eth0" in text.split()) == (0, True)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_an_interface_that_is_not_there(rig: Rig) -> None:
    with pytest.raises(RuntimeFailure, match="network device nosuch0 not found"):
        rig.create(with_devices("true", nosuch0="eth0"))
    assert not rig.state_dir().exists()


def test_what_is_moved_comes_back_when_the_next_fails(direct: Rig, device: MakeDevice, namespace: str) -> None:
    good, other = device("10.90.1.1/24", "fd00:5::1/64"), device()
    ip_in(namespace, "link", "add", "taken", "type", "bridge")
    spec = in_namespace(with_devices("true", **{good: "eth0", other: "taken"}), namespace)
    with pytest.raises(RuntimeFailure, match=f"network device {other} cannot be called taken: File exists"):
        direct.create(spec)
    (link,) = json.loads(ip("-json", "address", "show", good))
    found = {entry["local"] for entry in link["addr_info"] if entry["scope"] == "global"}
    assert ("UP" in link["flags"], found) == (True, {"10.90.1.1", "fd00:5::1"})
    assert other in ip("link")


def test_what_is_moved_comes_back_when_init_fails(direct: Rig, device: MakeDevice) -> None:
    name = device("10.90.1.1/24")
    spec = with_devices("true", **{name: "eth0"})
    spec["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"})
    with pytest.raises(RuntimeFailure, match="nosuchfs"):
        direct.create(spec)
    assert "10.90.1.1/24" in ip("address", "show", name)


def test_an_interface_that_cannot_be_moved_stays_as_it_was(direct: Rig, device: MakeDevice) -> None:
    """A bridge belongs to its namespace."""
    name = device("10.90.1.1/24", "fd00:5::1/64", kind="bridge")
    with pytest.raises(RuntimeFailure, match=f"move network device {name} to the container: Invalid argument"):
        direct.create(with_devices("true", **{name: "eth0"}))
    shown = ip("address", "show", name)
    assert all(text in shown for text in ("UP", "10.90.1.1/24", "fd00:5::1/64"))


def test_namespace_of_the_host(direct: Rig, device: MakeDevice) -> None:
    spec = in_namespace(with_devices("true", **{device(): "eth0"}), "/proc/self/ns/net")
    with pytest.raises(InvalidSpec, match="/linux/netDevices: not allowed in the host's network namespace"):
        direct.create(spec)


def test_without_privileges(direct: Rig) -> None:
    rootless = Rig(direct.runtime.env.host._replace(euid=1000), direct.launcher, direct.place, direct.id)
    with pytest.raises(InvalidSpec, match="network devices are not supported for rootless containers"):
        rootless.create(with_devices("true", eth0=""))
