"""On a v1 or hybrid machine these see a private mount of the unified hierarchy, which has at most hugetlb; limits
of the main controllers are tested in the virtual machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimd.cgroups import device_filter, devices
from shimd.cgroups.ebpf import device_program
from shimd.cgroups.manager import CgroupManager, from_state, manager
from shimd.cgroups.v2 import V2Manager
from shimd.errors import FailedPrecondition, RuntimeFailure
from shimd.linux import bpf
from shimd.oci.model import DeviceRule, HugepageLimit, Memory, Resources
from tests.kernel.cgroup_member import Member, Way, eat, fork_children, member, way_into, way_of_exec
from tests.kernel.cgroup_world import MEBIBYTE, ROOT, TOP, World, on_v2, text
from tests.support import wait
from tests.support.requires import requires
from tests.support.session import TAG


def programs(cgroup: CgroupManager) -> list[int]:
    fd = os.open(cgroup.paths[""], os.O_RDONLY)
    try:
        return bpf.prog_query(fd)
    finally:
        os.close(fd)


# ---- making and joining ----------------------------------------------------------------------------------------------


@on_v2
def test_process_is_born_inside(world: World) -> None:
    cgroup = world.create()
    with member(way_into(cgroup)) as process:
        assert Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()[-1] == f"0::{TOP}/a"
        assert cgroup.pids() == [process.pid]


@on_v2
def test_state_round_trip(world: World) -> None:
    cgroup = world.create()
    again = from_state(world.host, cgroup.to_state())
    assert again.paths == cgroup.paths
    again.destroy()
    assert not cgroup.exists()


@on_v2
def test_refuses_processes(world: World) -> None:
    cgroup = world.create()
    with (
        member(way_into(cgroup), lambda: fork_children(1)),
        pytest.raises(FailedPrecondition, match=r"container's cgroup is not empty: 2 process\(es\) found"),
    ):
        world.create()
    assert cgroup.exists()


@on_v2
def test_refuses_a_frozen_cgroup(world: World) -> None:
    cgroup = world.create()
    cgroup.freeze()
    with pytest.raises(FailedPrecondition, match="container's cgroup unexpectedly frozen"):
        world.create()
    cgroup.thaw()
    world.create()


@on_v2
def test_failure_leaves_nothing(world: World) -> None:
    with pytest.raises(
        RuntimeFailure, match=r'unable to set unified resource "cgroup\.max\.depth": failed to write "x"'
    ):
        world.create("x/y", unified={"cgroup.max.depth": "x"})
    assert not os.path.exists(ROOT + TOP)


@on_v2
def test_unified_resources_are_written_line_by_line(world: World) -> None:
    cgroup = world.create(unified={"cgroup.max.depth": "3\n4\n", "cgroup.max.descendants": "7"})
    assert text(cgroup, "cgroup.max.depth") == "4"
    assert text(cgroup, "cgroup.max.descendants") == "7"


@on_v2
def test_unified_resource_of_a_missing_controller(world: World) -> None:
    expected = r'unified resource "rdma\.max" can\'t be set: controller "rdma" not available'
    with pytest.raises(RuntimeFailure, match=expected):
        world.create(unified={"rdma.max": "x hca_handle=1"})
    with pytest.raises(
        RuntimeFailure, match=r'unable to set unified resource "cgroup\.none": failed to write "1": open '
    ):
        world.create(unified={"cgroup.none": "1"})


@on_v2
def test_controllers_are_enabled_on_the_way(world: World) -> None:
    cgroup = world.create("x/y/z")
    assert set(text(cgroup, "cgroup.controllers").split()) == set(world.host.unified_controllers)
    assert text(cgroup, "cgroup.subtree_control") == ""
    cgroup.destroy()
    for directory in ("x/y", "x"):
        os.rmdir(f"{ROOT}{TOP}/{directory}")


@on_v2
def test_huge_pages(world: World) -> None:
    if "hugetlb" not in world.host.unified_controllers or not os.path.isdir(
        "/sys/kernel/mm/hugepages/hugepages-2048kB"
    ):
        return
    cgroup = world.create(hugepage_limits=(HugepageLimit("2MB", 4 * MEBIBYTE),))
    assert text(cgroup, "hugetlb.2MB.max") == text(cgroup, "hugetlb.2MB.rsvd.max") == str(4 * MEBIBYTE)
    assert cgroup.stats().hugetlb["2MB"] == (0, 0, 0)


@on_v2
def test_delegation(world: World) -> None:
    cgroup = world.create()
    cgroup.delegate(4242)
    path = cgroup.paths[""]
    assert os.stat(path).st_uid == os.stat(f"{path}/cgroup.procs").st_uid == 4242
    assert os.stat(f"{path}/cgroup.subtree_control").st_uid == 4242
    assert os.stat(f"{path}/cgroup.max.depth").st_uid == 0
    assert os.stat(path).st_gid == 0


@contextlib.contextmanager
def threaded_parent() -> Iterator[str]:
    """A threaded domain: every new cgroup below it is in an invalid state until it is threaded too."""
    path = f"{ROOT}{TOP}/p"
    os.makedirs(f"{path}/first")
    Path(path, "first/cgroup.type").write_text("threaded")
    yield path
    os.rmdir(f"{path}/first")
    os.rmdir(path)


@on_v2
def test_below_a_threaded_parent_the_cgroup_is_threaded(world: World) -> None:
    with threaded_parent():
        cgroup = world.create("p/c")
        assert text(cgroup, "cgroup.type") == "threaded"
        cgroup.destroy()


@on_v2
def test_domain_limits_are_refused_below_a_threaded_parent(world: World) -> None:
    with (
        threaded_parent(),
        pytest.raises(RuntimeFailure, match="with domain controllers -- it is in"),
    ):
        world.create("p/c", memory=Memory(limit=MEBIBYTE))


@on_v2
def test_threads_of_a_threaded_cgroup_are_found(world: World) -> None:
    parent = world.create("p")
    sub = Path(parent.paths[""], "sub")
    sub.mkdir()
    (sub / "cgroup.type").write_text("threaded")

    def move_a_thread() -> None:
        moved, stop = threading.Event(), threading.Event()

        def run() -> None:
            (sub / "cgroup.threads").write_text(str(threading.get_native_id()))
            moved.set()
            stop.wait()

        threading.Thread(target=run, daemon=True).start()
        moved.wait()

    with member(way_into(parent), move_a_thread) as process:
        assert process.pid in parent.pids()
        assert len(parent.pids()) == 2
        parent.kill(signal.SIGTERM)
        assert process.wait_end() == -signal.SIGTERM


# ---- exec ------------------------------------------------------------------------------------------------------------


@on_v2
def test_exec_joins_the_container(world: World) -> None:
    cgroup = world.create()
    with member(way_into(cgroup)) as init, member(way_of_exec(cgroup, init.pid)) as process:
        assert cgroup.pids() == sorted([init.pid, process.pid])


@on_v2
def test_exec_joins_a_sub_cgroup(world: World) -> None:
    cgroup = world.create()
    os.mkdir(cgroup.paths[""] + "/sub")
    with member(way_into(cgroup)) as init, member(way_of_exec(cgroup, init.pid, "sub")) as process:
        assert Path(cgroup.paths[""], "sub/cgroup.procs").read_text() == f"{process.pid}\n"


@on_v2
def test_exec_into_a_missing_sub_cgroup(world: World) -> None:
    cgroup = world.create()
    with pytest.raises(
        RuntimeFailure, match=r"unable to enter the cgroup by adding pid 0 to it: open .*/a/sub: no such file"
    ):
        cgroup.exec_cgroup_fd(1, {"": "sub"})


@on_v2
def test_without_permission(world: World) -> None:
    os.setresuid(65534, 65534, 0)
    host = world.host._replace(euid=65534)
    cgroup = manager(host, cgroups_path="", container_id=TAG)
    cgroup.create(Resources())
    assert cgroup.paths == {}
    assert from_state(host, cgroup.to_state()).paths == {}
    limits = Resources(unified={"cgroup.max.depth": "1"})
    with pytest.raises(
        RuntimeFailure, match=r"rootless needs no limits .* no permission is granted for cgroups: mkdir "
    ):
        manager(host, cgroups_path="", container_id=TAG).create(limits)
    with pytest.raises(RuntimeFailure, match=r"mkdir .*: permission denied"):
        manager(host, cgroups_path=TOP, container_id=TAG).create(Resources())
    os.setresuid(0, 0, 0)


@on_v2
def test_exec_follows_an_init_that_moved_below(world: World) -> None:
    if not world.host.unified_controllers:
        return
    cgroup = world.create()
    scope = Path(cgroup.paths[""], "init.scope")
    scope.mkdir()
    with member(way_into(cgroup)) as init:
        (scope / "cgroup.procs").write_text(str(init.pid))
        Path(cgroup.paths[""], "cgroup.subtree_control").write_text(f"+{world.host.unified_controllers[0]}")
        with member(way_of_exec(cgroup, init.pid)) as process:
            assert str(process.pid) in (scope / "cgroup.procs").read_text().split()


@on_v2
def test_exec_follows_an_init_that_was_moved_away(world: World) -> None:
    cgroup, other = world.create("a"), world.create("b")
    with member(way_into(cgroup)) as init:
        other.apply(init.pid)
        cgroup.destroy()
        with member(way_of_exec(cgroup, init.pid)) as process:
            assert other.pids() == sorted([init.pid, process.pid])


# ---- freeze, kill, remove --------------------------------------------------------------------------------------------


@on_v2
def test_freeze_and_thaw(world: World) -> None:
    cgroup = world.create()
    with member(way_into(cgroup), lambda: fork_children(3)):
        assert not cgroup.frozen()
        cgroup.freeze()
        assert cgroup.frozen()
        assert "frozen 1" in text(cgroup, "cgroup.events")
        cgroup.thaw()
        assert not cgroup.frozen()


@on_v2
def test_a_freeze_that_does_not_come_true_is_undone(world: World) -> None:
    cgroup = world.create()
    with pytest.MonkeyPatch.context() as patch, member(way_into(cgroup)):
        patch.setattr("shimd.cgroups.freezer._wait_frozen", lambda _: False)
        with pytest.raises(RuntimeFailure, match=r"timeout of 10s reached waiting for .*/a to freeze"):
            cgroup.freeze()
        assert text(cgroup, "cgroup.freeze") == "0"


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("old_kernel", [False, True])
def test_kill_reaches_everybody(*, frozen: bool, old_kernel: bool) -> None:
    check_kill(frozen=frozen, old_kernel=old_kernel)


@on_v2
def check_kill(world: World, *, frozen: bool, old_kernel: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if old_kernel:
            patch.setattr("shimd.cgroups.kill.kill_cgroup", lambda _: False)
        cgroup = world.create()
        with member(way_into(cgroup), lambda: fork_children(5)) as process:
            if frozen:
                cgroup.freeze()
            pids = cgroup.pids()
            assert len(pids) == 6
            cgroup.kill()
            assert process.wait_end() == -signal.SIGKILL
            for pid in pids:
                wait.process_gone(pid)
        cgroup.destroy()


@on_v2
def test_other_signals_leave_a_paused_container_paused(world: World) -> None:
    cgroup = world.create()
    with member(way_into(cgroup)) as process:
        cgroup.freeze()
        cgroup.kill(signal.SIGTERM)
        assert cgroup.frozen()
        cgroup.thaw()
        assert process.wait_end() == -signal.SIGTERM


@on_v2
def test_everything_is_quiet_about_a_cgroup_that_is_gone(world: World) -> None:
    cgroup = world.manager()
    assert not cgroup.frozen()
    assert cgroup.pids() == []
    cgroup.kill()
    cgroup.wake_killed()
    cgroup.destroy()
    with pytest.raises(FailedPrecondition, match="does not exist"):
        cgroup.stats()


@on_v2
def test_nesting_deeper_than_any_path(world: World) -> None:
    cgroup = world.create()
    fd = os.open(cgroup.paths[""], os.O_RDONLY)
    for _ in range(60):
        os.mkdir("n" * 100, dir_fd=fd)
        inner = os.open("n" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=fd)
    os.close(fd)
    with member(Way(-1, [procs])) as process:
        assert cgroup.pids() == [process.pid]
        cgroup.kill()
        assert process.wait_end() == -signal.SIGKILL
    cgroup.destroy()
    assert not cgroup.exists()


# ---- devices ---------------------------------------------------------------------------------------------------------


@on_v2
def test_default_device_rules(world: World) -> None:
    cgroup = world.create(devices=(DeviceRule(allow=False, access="rwm"),))
    assert len(programs(cgroup)) == 1

    def use_devices() -> None:
        with open("/dev/null", "wb") as null:
            null.write(b"x")
        os.mknod("/dev/shm/" + TAG, 0o020600, os.makedev(1, 1))
        try:
            with pytest.raises(PermissionError):
                os.open("/dev/shm/" + TAG, os.O_RDONLY)
        finally:
            os.unlink("/dev/shm/" + TAG)

    with member(way_into(cgroup), use_devices):
        pass


@on_v2
def test_existing_cgroup_gets_the_new_program_alone(world: World) -> None:
    cgroup = world.create()
    first = programs(cgroup)
    world.create(devices=(DeviceRule(allow=True, type="c", major=1, minor=1, access="r"),))
    second = programs(cgroup)
    assert len(first) == len(second) == 1
    assert first != second


@on_v2
def test_there_is_no_gap_while_a_program_is_replaced(world: World) -> None:
    cgroup = world.create()
    node = "/dev/shm/" + TAG
    os.mknod(node, 0o020600, os.makedev(1, 1))
    stop, stopper = os.pipe()

    def try_all_the_time() -> None:
        os.close(stopper)
        os.set_blocking(stop, False)
        tries = 0
        while not _at_end(stop):
            tries += 1
            os.close(os.open("/dev/null", os.O_RDONLY))
            with pytest.raises(PermissionError):
                os.open(node, os.O_RDONLY)
        assert tries

    process = Member(way_into(cgroup), try_all_the_time)
    try:
        fd = cgroup.cgroup_fd()
        rules = devices.wanted((DeviceRule(allow=False, access="rwm"),))
        for _ in range(200):
            device_filter.attach(fd, rules, fresh=False, optional=False)
        os.close(fd)
        os.close(stopper)
        process.wait_ready()
    finally:
        process.close()
        os.close(stop)
        os.unlink(node)


def _at_end(fd: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, 1) == b""
    return False


@on_v2
def test_several_old_programs_are_replaced_by_one(world: World) -> None:
    cgroup = world.create()
    fd = cgroup.cgroup_fd()
    for _ in range(2):
        device_filter.attach(fd, devices.EVERYTHING, fresh=True, optional=False)
    assert len(bpf.prog_query(fd)) == 3
    device_filter.attach(fd, devices.NOTHING, fresh=False, optional=False)
    assert len(bpf.prog_query(fd)) == 1
    os.close(fd)


@on_v2
def test_old_program_of_another_mode_is_replaced(world: World) -> None:
    """As one that a service manager attached, exclusively: it cannot be replaced in place."""
    path = ROOT + TOP
    os.mkdir(path)
    fd = os.open(path, os.O_RDONLY)
    program = bpf.prog_load(device_program(devices.EVERYTHING))
    bpf.prog_attach(fd, program, flags=bpf.BPF_F_ALLOW_OVERRIDE)
    with pytest.raises(RuntimeFailure, match="unable to set device rules: bpf: operation not permitted"):
        device_filter.attach(fd, devices.NOTHING, fresh=False, optional=False)
    device_filter.attach(fd, devices.NOTHING, fresh=False, optional=True)
    bpf.prog_detach(fd, program)
    os.close(program)
    os.close(fd)


@on_v2
def test_many_rules_are_accepted_by_the_verifier(world: World) -> None:
    rules = tuple(DeviceRule(allow=True, type="b", major=major, minor=3, access="r") for major in range(500))
    assert len(programs(world.create(devices=rules))) == 1


# ---- figures ---------------------------------------------------------------------------------------------------------


@on_v2
def test_stats_without_controllers(world: World) -> None:
    cgroup = world.create()
    with member(way_into(cgroup), lambda: eat(MEBIBYTE)):
        found = cgroup.stats()
    assert found.version == 2
    assert found.pids == (1, 0)
    assert found.cpu.total > 0


@requires("file:/proc/pressure/cpu")
@on_v2
def test_pressure(world: World) -> None:
    found = world.create().stats()
    for pressure in (found.cpu.pressure, found.memory.pressure, found.blkio.pressure):
        assert pressure is not None
        assert 0 <= pressure.full.total <= pressure.some.total


def test_managers_without_a_cgroup() -> None:
    """What a rootless container without limits is left with, where no cgroup may be made."""
    cgroup = V2Manager(None, controllers=())
    assert cgroup.paths == {}
    assert cgroup.open_procs() == cgroup.exec_procs(1) == []
    assert cgroup.exec_cgroup_fd(1) == -1
    assert cgroup.cgroup_fd() == -1
    assert not cgroup.frozen()
    cgroup.kill()
    cgroup.destroy()
    with pytest.raises(FailedPrecondition, match="the container has no cgroup"):
        cgroup.freeze()
