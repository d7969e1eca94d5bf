"""The keeper over time and under attack: leaks, memory, small containers, overwriting the interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shimd.init import handshake
from shimd.linux.process import pidfd_send_signal
from shimd.plan import ops
from tests.kernel import init_rig as rig
from tests.kernel.init_rig import in_rootfs, program, shell
from tests.kernel.keeper_rig import Keeper
from tests.support import wait
from tests.support.requires import requires

MIB = 1 << 20
ENTER = ops.JoinCgroup(("cgroup.0",))


@contextmanager
def memory_cgroup(name: str, limit: int) -> Iterator[Path]:
    """Of version 1: a cgroup whose processes may use ``limit`` bytes."""
    group = Path("/sys/fs/cgroup/memory") / name
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        yield group
    finally:
        group.rmdir()


@requires("cgroup-mode:hybrid")
@pytest.mark.parametrize("mebibytes", [4, 6])
def test_container_with_little_memory_starts(keeper: Keeper, busybox: Path, container_id: str, mebibytes: int) -> None:
    """Init's own pages are charged to the container from the moment that it enters the cgroup."""
    masks = ops.MaskPaths(("/proc/kcore", "/proc/keys"), "")
    with memory_cgroup(container_id, mebibytes * MIB) as group:
        for number in range(3):
            with open(group / "tasks", "wb", buffering=0) as tasks:
                inside = in_rootfs(busybox, rig.DEV_PTS, after=(ops.HomeEnv(0), masks))
                slots = {"cgroup.0": tasks.fileno()}
                failure, exit_ = keeper.run(f"small{number}", ENTER, *inside, *shell("exit 3"), fds=slots)
            assert (failure, exit_.code) == (None, 3)
        peak = int((group / "memory.max_usage_in_bytes").read_text())
    assert peak < mebibytes * MIB


@requires("cgroup-mode:hybrid")
def test_out_of_memory_while_starting_is_an_exit_by_signal(keeper: Keeper, busybox: Path, container_id: str) -> None:
    with memory_cgroup(container_id, 64 * 1024) as group, open(group / "tasks", "wb", buffering=0) as tasks:
        operations = (ENTER, *in_rootfs(busybox), *program("/bin/true"))
        _, exit_ = keeper.run("tiny", *operations, fds={"cgroup.0": tasks.fileno()})
    assert exit_.code == 137


def churn(keeper: Keeper, count: int) -> None:
    for number in range(count):
        name = f"churn{number}"
        stage = (ops.Unshare(0x80),) if number % 10 == 0 else ()  # CLONE_NEWTIME
        operations = program("/nosuch") if number % 2 else program("/bin/true")
        _, exit_ = keeper.run(name, *operations, clone=0, stage=stage)
        assert exit_.code == number % 2
        keeper.client.hold({name: keeper.pidfd})
        keeper.client.drop(name)
        keeper.client.forget(name)


def test_some_hundred_launches_leak_nothing(keeper: Keeper) -> None:
    churn(keeper, 50)
    fds, memory = keeper.fds(), keeper.memory()
    churn(keeper, 300)
    assert keeper.fds() == fds
    assert keeper.memory() - memory < 64
    assert keeper.client.list() == ({}, (), ())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thousands_of_launches_leak_nothing(keeper: Keeper) -> None:
    churn(keeper, 500)
    fds, memory = keeper.fds(), keeper.memory()
    churn(keeper, 5000)
    assert keeper.fds() == fds
    one_small_object_each = 5000 * 28 // 1024  # KiB; what the allocator itself takes and gives stays below
    assert keeper.memory() - memory < one_small_object_each


def test_descriptors_of_one_process_are_not_in_another(keeper: Keeper, busybox: Path) -> None:
    """The keeper holds pipes and ptys of all containers; a new process has none of them, from its first instruction
    on.
    """
    read_end, write_end = os.pipe()
    keeper.client.hold({f"pipe{number}": write_end for number in range(20)})
    launched, control = keeper.launch("waiting", ops.Sync("ready"), *program("/bin/true"))
    assert handshake.receive(control).text == "ready"
    links = [os.readlink(f"/proc/{launched.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{launched.pid}/fd")]
    assert os.readlink(f"/proc/self/fd/{write_end}") not in links
    assert len(links) == 4  # the streams and control
    handshake.go(control)
    rig.converse(control, launched.pid)
    control.close()
    os.close(launched.pidfd)
    keeper.exit("waiting")
    keeper.client.drop(*(f"pipe{number}" for number in range(20)))
    os.close(write_end)
    assert wait.read_to_end(read_end) == b""
    os.close(read_end)


def test_interpreter_cannot_be_overwritten_from_inside(keeper: Keeper, busybox: Path) -> None:
    """CVE-2019-5736: the image's program is /proc/self/exe, so the interpreter itself runs inside; what it runs is of
    the image.
    """
    interpreter = os.path.realpath(f"/proc/{keeper.pid}/exe")
    (busybox / "attack").write_text("#!/proc/self/exe\n")
    (busybox / "attack").chmod(0o755)
    _, exit_ = keeper.run("attack", *in_rootfs(busybox), *program("/attack"))
    assert exit_.code != 0  # no library inside: the interpreter ends at once
    assert not os.path.exists(interpreter) or "memfd" in interpreter or os.access(interpreter, os.R_OK)


def test_link_to_the_interpreter_of_a_waiting_init_is_not_writable(keeper: Keeper, busybox: Path) -> None:
    """A process inside that opens init's executable while it is the interpreter, and writes when nobody runs it any
    more.
    """
    launched, control = keeper.launch("waiting", ops.Sync("ready"), *program("/bin/true"))
    assert handshake.receive(control).text == "ready"
    executable = os.open(f"/proc/{launched.pid}/exe", os.O_RDONLY)  # root of the host may; of a container may not
    content = os.fstat(executable)
    handshake.go(control)
    rig.converse(control, launched.pid)
    control.close()
    keeper.exit("waiting")
    with pytest.raises(OSError, match=r"Read-only|not permitted|Text file busy"):
        os.open(f"/proc/self/fd/{executable}", os.O_WRONLY)
    keeper.client.stop()
    wait.exited(keeper.pidfd)
    with pytest.raises(OSError, match=r"Read-only|not permitted"):  # nobody runs it now, so it is not busy
        os.open(f"/proc/self/fd/{executable}", os.O_WRONLY)
    assert os.fstat(executable).st_mtime_ns == content.st_mtime_ns
    os.close(executable)
    os.close(launched.pidfd)


def test_memory_of_an_idle_keeper(keeper: Keeper) -> None:
    assert keeper.memory() < 10 * 1024


def test_exec_into_a_container_cannot_be_looked_into(keeper: Keeper, busybox: Path) -> None:
    """Between joining and execve the process is visible inside, and refuses to be traced or opened (CVE-2016-9962)."""
    init, control = keeper.launch(
        "init", *in_rootfs(busybox), *shell("while :; do ls -l /proc/[0-9]*/fd /proc/[0-9]*/exe; done")
    )
    rig.converse(control, init.pid)
    control.close()
    joins = (ops.Setns("init", 0x20000 | 0x20000000), ops.Sync("ready"))
    stage = (ops.Setns("init", 0x20000000),)
    launched, control = keeper.launch(
        "exec", *joins, *program("/bin/true"), clone=0, stage=stage, fds={"init": init.pidfd}
    )
    assert handshake.receive(control).text == "ready"
    with open(f"/proc/{launched.pid}/status") as status:
        assert any(line.startswith("NSpid") and len(line.split()) == 3 for line in status)
    assert os.stat(f"/proc/{launched.pid}/fd").st_uid == 0
    handshake.go(control)
    rig.converse(control, launched.pid)
    control.close()
    os.close(launched.pidfd)
    keeper.exit("exec")
    pidfd_send_signal(init.pidfd, 9)
    os.close(init.pidfd)
    keeper.exit("init")
