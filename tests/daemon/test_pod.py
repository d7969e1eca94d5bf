"""Containers in the namespaces of another, joined by path, as the containers of a pod are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.daemon.sidebyside import run_with_runc, run_with_shimd, tidy
from tests.support.client import Client
from tests.support.fixtures import MakeBundle
from tests.support.requires import requires
from tests.support.rootfs import busybox_rootfs
from tests.support.specs import runc_default

Spec = dict[str, Any]
FILES = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid", "user": "user", "time": "time", "cgroup": "cgroup"}
MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
SEE = "for f in /proc/self/ns/*; do readlink $f; done"


def join(spec: Spec, pid: int, *kinds: str) -> Spec:
    """``spec`` with these namespaces of the process ``pid`` in place of new ones."""
    kept = [entry for entry in spec["linux"]["namespaces"] if entry["type"] not in kinds]
    joined = [{"type": kind, "path": f"/proc/{pid}/ns/{FILES[kind]}"} for kind in kinds]
    spec["linux"]["namespaces"] = [*kept, *joined]
    if "uts" in kinds:
        spec["hostname"] = ""
    return spec


@pytest.fixture
def pause(box: MakeBox) -> Callable[..., Box]:
    """The container that the others join."""

    def make(*more: str, **linux: Any) -> Box:
        spec = runc_default("sleep", "1000")
        spec["hostname"] = "pod"
        spec["linux"]["namespaces"] += [{"type": kind} for kind in more]
        spec["linux"].update(linux)
        b = box(spec=spec)
        b.make()
        b.start()
        return b

    return make


def same_namespaces(output: str, pid: int, *kinds: str) -> bool:
    return all(os.readlink(f"/proc/{pid}/ns/{FILES[kind]}") in output for kind in kinds)


@pytest.mark.parametrize(
    "kinds",
    [("network",), ("ipc",), ("uts",), ("pid",), ("network", "ipc", "uts"), ("network", "ipc", "uts", "pid")],
    ids=str,
)
def test_joined(client: Client, pause: Callable[..., Box], box: MakeBox, kinds: tuple[str, ...]) -> None:
    pid = pause().state().pid
    b = box(spec=join(runc_default(*shell(f"{SEE}; hostname")), pid, *kinds))
    run = run_with_shimd(client, b.bundle, b.id)
    assert run.code == 0, run.output
    assert same_namespaces(run.output, pid, *kinds)
    others = {"network", "ipc", "uts", "pid"} - set(kinds)
    assert not any(same_namespaces(run.output, pid, kind) for kind in others)
    assert (run.output.splitlines()[-1] == "pod") == ("uts" in kinds)


@requires("program:runc")
def test_as_under_runc(
    client: Client, pause: Callable[..., Box], bundle: MakeBundle, place: Path, container_id: str
) -> None:
    pid = pause().state().pid
    script = f"{SEE}; hostname; ls /sys/class/net; set -- /proc/[0-9]*; echo $#; cat /proc/1/comm"
    spec = join(runc_default(*shell(script)), pid, "network", "ipc", "uts", "pid")
    ours = run_with_shimd(client, bundle(spec, busybox_rootfs(place / "rootfs1")), container_id)
    theirs = run_with_runc(bundle(spec, busybox_rootfs(place / "rootfs2")), container_id)
    assert (ours.code, tidy(ours.output)) == (0, tidy(theirs.output))


def test_processes_of_a_pod_see_each_other(pause: Callable[..., Box], box: MakeBox) -> None:
    """The end of one container of a shared pid namespace leaves the others alone; that of the first ends all."""
    first = pause()
    spec = join(runc_default(*shell("sleep 1000 & sleep 1000")), first.state().pid, "pid")
    second, third = box(spec=spec), box(spec=spec)
    for b in (second, third):
        b.make()
        b.start()
    second.kill()
    assert second.wait() == 137
    second.delete()
    assert third.status() == "RUNNING"
    assert not [entry for entry in first.pids() if entry.pid not in (first.state().pid,)]
    first.kill()
    assert first.wait() == 137
    assert third.wait() == 137


def test_shared_memory_and_network(client: Client, pause: Callable[..., Box], box: MakeBox, place: Path) -> None:
    first = pause()
    first.exec("server", *shell("echo hello | nc -l -p 7777"))
    first.start("server")
    b = box(
        spec=join(
            runc_default(*shell("until nc 127.0.0.1 7777 </dev/null; do usleep 10000; done")),
            first.state().pid,
            "network",
        )
    )
    run = run_with_shimd(client, b.bundle, b.id)
    assert (run.output.splitlines()[-1], run.code) == ("hello", 0)
    assert first.wait("server") == 0


def test_user_namespace(client: Client, pause: Callable[..., Box], box: MakeBox) -> None:
    pid = pause("user", uidMappings=MAPS, gidMappings=MAPS).state().pid
    spec = join(runc_default(*shell(f"{SEE}; id -u; cat /proc/self/uid_map")), pid, "user", "network", "ipc", "uts")
    b = box(spec=spec)
    run = run_with_shimd(client, b.bundle, b.id)
    assert run.code == 0, run.output
    assert same_namespaces(run.output, pid, "user", "network", "ipc", "uts")
    assert run.output.split()[-4:] == ["0", "0", "100000", "65536"]


@requires("namespace:time")
def test_time_namespace(client: Client, pause: Callable[..., Box], box: MakeBox) -> None:
    pid = pause("time", timeOffsets={"boottime": {"secs": 10**8}}).state().pid
    b = box(spec=join(runc_default(*shell(f"{SEE}; cut -c1-3 /proc/uptime")), pid, "time"))
    run = run_with_shimd(client, b.bundle, b.id)
    assert run.code == 0, run.output
    assert same_namespaces(run.output, pid, "time")
    assert run.output.split()[-1] == "100"


def test_cgroup_namespace(client: Client, pause: Callable[..., Box], box: MakeBox) -> None:
    pid = pause("cgroup").state().pid
    b = box(spec=join(runc_default(*shell(SEE)), pid, "cgroup"))
    run = run_with_shimd(client, b.bundle, b.id)
    assert run.code == 0, run.output
    assert same_namespaces(run.output, pid, "cgroup")


def joining_network(*args: str, path: str) -> Spec:
    spec = runc_default(*args)
    kept = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "network"]
    spec["linux"]["namespaces"] = [*kept, {"type": "network", "path": path}]
    return spec


def test_bound_namespace_outlives_its_process(
    client: Client, pause: Callable[..., Box], box: MakeBox, place: Path
) -> None:
    """As CNI has it: a file in /run/netns."""
    first = pause()
    bound = place / "net"
    bound.touch()
    inode = os.stat(f"/proc/{first.state().pid}/ns/net").st_ino
    subprocess.run(["mount", "--bind", f"/proc/{first.state().pid}/ns/net", bound], check=True)
    try:
        first.kill()
        first.wait()
        b = box(spec=joining_network("readlink", "/proc/self/ns/net", path=str(bound)))
        assert run_with_shimd(client, b.bundle, b.id) == (f"net:[{inode}]\n", 0)
    finally:
        subprocess.run(["umount", bound], check=True)


@pytest.mark.parametrize("path", ["/proc/1/ns/uts", "/no/such/file", "/etc/passwd"])
def test_path_that_is_none(box: MakeBox, path: str) -> None:
    b = box(spec=joining_network("true", path=path))
    with refused("INVALID_ARGUMENT", path):
        b.make()
