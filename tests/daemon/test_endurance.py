"""Many containers, one after the other and all at once: nothing of the daemon or the keeper grows with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shimd.api.containerd import task_v3_pb2 as task
from shimd.api.v1 import runtime_pb2 as api
from tests.support.client import Client
from tests.support.daemon import Daemon
from tests.support.fixtures import MakeBundle
from tests.support.leaks import cgroup_mount_points
from tests.support.rootfs import busybox_rootfs
from tests.support.specs import runc_default

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IN_A_ROW = 1000
SPARE = 3
AT_ONCE = 200


@pytest.fixture(scope="module")
def daemon(module_place: Path) -> Iterator[Daemon]:
    """One that keeps few events, so that its memory stops growing early."""
    with Daemon(module_place / "daemon", config="[events]\nkeep = 64\n") as running:
        yield running


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def memory_kib(pid: int) -> int:
    """Private and dirty: what a leak grows."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))


def cgroups() -> int:
    return sum(1 for top in cgroup_mount_points() for name in os.listdir(top) if "endure" in name)


def figures(daemon: Daemon) -> dict[str, int]:
    return {
        f"{what} of the {who}": measure(pid)
        for who, pid in (("daemon", daemon.pid), ("keeper", daemon.keeper_pid()))
        for what, measure in (("descriptors", descriptors), ("threads", threads), ("KiB", memory_kib))
    }


def assert_no_growth(before: dict[str, int], after: dict[str, int], *, spare_kib: int) -> None:
    """Allocators keep what was freed, the more the more threads there are, so memory may grow until it levels off. The
    keeper may be about to make its spare process, with two sockets and a pidfd in hand.
    """
    for name, value in after.items():
        allowed = spare_kib if name.startswith("KiB") else SPARE if name == "descriptors of the keeper" else 0
        assert value <= before[name] + allowed, f"{name} grew from {before[name]} to {value}"


def run_one(client: Client, bundle: str, container: str) -> None:
    events = list(client.runtime.Run(api.RunRequest(id=container, bundle=bundle)))
    assert events[-1].exited.exit_status == 0
    assert b"".join(event.output.data for event in events) == b"done\n"


def test_two_hundred_at_once(daemon: Daemon, client: Client, bundle: MakeBundle, new_id: Callable[[], str]) -> None:
    busybox = busybox_rootfs(daemon.folder.parent / "at-once")
    folder = str(bundle(runc_default("/bin/sleep", "1000"), busybox))

    def start(name: str) -> int:
        client.task.Create(task.CreateTaskRequest(id=name, bundle=folder))
        return int(client.task.Start(task.StartRequest(id=name)).pid)

    def end(name: str) -> int:
        client.task.Kill(task.KillRequest(id=name, signal=9, all=True))
        client.task.Wait(task.WaitRequest(id=name))
        return int(client.task.Delete(task.DeleteRequest(id=name)).exit_status)

    names = [f"endure-{new_id()}" for _ in range(AT_ONCE)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(start, names))  # a first time, which fills the pools of threads and connections
        list(pool.map(end, names))
        before = figures(daemon)
        pids = list(pool.map(start, names))
        assert len(set(pids)) == AT_ONCE
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
        during = figures(daemon)
        assert list(pool.map(end, names)) == [137] * AT_ONCE
    after = figures(daemon)

    print(f"before: {before}\nduring: {during}\nafter:  {after}")
    assert_no_growth(before, after, spare_kib=5000)  # levels off at 4500 after 800 containers
    assert cgroups() == 0


def test_a_thousand_in_a_row(daemon: Daemon, client: Client, bundle: MakeBundle) -> None:
    busybox = busybox_rootfs(daemon.folder.parent / "endurance")
    folder = str(bundle(runc_default("/bin/echo", "done"), busybox))
    for number in range(100):  # until caches and pools are full
        run_one(client, folder, f"endure-{os.getpid()}-{number}")
    before = figures(daemon)
    for number in range(IN_A_ROW):
        run_one(client, folder, f"endure-{os.getpid()}-{number}")
    after = figures(daemon)

    print(f"before: {before}\nafter:  {after}")
    assert_no_growth(before, after, spare_kib=2 * IN_A_ROW)  # levels off at 1600 after 2000 containers
    assert cgroups() == 0
    assert not client.runtime.List(api.ListRequest(all_namespaces=True)).containers
