"""Launches by a process that was made in advance are like any other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from shimd.errors import RuntimeFailure
from shimd.init import handshake
from shimd.linux.process import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUTS
from shimd.plan import ops
from tests.kernel import init_rig as rig
from tests.kernel.init_rig import in_rootfs, program, shell
from tests.kernel.keeper_rig import Keeper
from tests.support import wait
from tests.support.requires import requires

ALL = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS


def spare_of(keeper: Keeper) -> int:
    return keeper.spare() or pytest.skip("there are no spare processes on this machine")


@contextmanager
def unified_cgroup(name: str) -> Iterator[Path]:
    top = Path("/sys/fs/cgroup/unified")
    group = (top if top.exists() else Path("/sys/fs/cgroup")) / name
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


@requires("cgroup-mode:hybrid")
def test_process_of_a_spare_is_a_new_one(keeper: Keeper, busybox: Path, container_id: str) -> None:
    spare = spare_of(keeper)
    with unified_cgroup(container_id) as group:
        directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        operations = (*in_rootfs(busybox), ops.Sync("ready"), *shell("exit 5"))
        launched, control = keeper.launch("one", *operations, clone=ALL, cgroup_fd=directory)
        os.close(directory)
        with closing(control):
            assert handshake.receive(control).text == "ready"
            assert launched.pid != spare
            keeper.client.hello()  # by then the keeper has reaped it
            assert not Path(f"/proc/{spare}").exists()
            assert (group / "cgroup.procs").read_text().split() == [str(launched.pid)]
            status = dict(line.split(":\t") for line in Path(f"/proc/{launched.pid}/status").read_text().splitlines())
            assert (status["PPid"], status["NSpid"].split()) == (str(keeper.pid), [str(launched.pid), "1"])
            assert os.getsid(launched.pid) == launched.pid
            for kind in ("mnt", "pid", "net", "ipc", "uts"):
                assert os.readlink(f"/proc/{launched.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
            assert len(os.listdir(f"/proc/{launched.pid}/fd")) == 5  # the streams, control, the root
            handshake.go(control)
            rig.converse(control, launched.pid)
        os.close(launched.pidfd)
        assert keeper.exit("one").code == 5


def test_failures_of_a_spare_are_told(keeper: Keeper) -> None:
    for fields, text in (
        ({"clone": 0x40000000_00000000}, "make process: Invalid argument"),
        ({"stage": (ops.TimeOffsets((("monotonic", 1, 0),)),)}, "prepare namespaces .*set time offsets"),
    ):
        spare_of(keeper)
        with pytest.raises(RuntimeFailure, match=text):
            keeper.launch("bad", *program("/bin/true"), **fields)
    assert keeper.client.list() == ({}, (), ())


@requires("namespace:time")
def test_stages_of_spares(keeper: Keeper) -> None:
    stages = ((ops.Unshare(CLONE_NEWTIME),), (ops.Unshare(CLONE_NEWTIME), ops.Setns("init", CLONE_NEWPID)))
    holder, control = keeper.launch("init", *program("/bin/sleep", "60"), clone=CLONE_NEWPID)
    with closing(control):
        rig.converse(control, holder.pid)
    for number, stage in enumerate(stages * 5):
        spare_of(keeper)
        failure, exit_ = keeper.run(f"x{number}", *shell("exit 4"), clone=0, stage=stage, fds={"init": holder.pidfd})
        assert (failure, exit_.code) == (None, 4)
    signal.pidfd_send_signal(holder.pidfd, signal.SIGKILL)
    os.close(holder.pidfd)
    keeper.exit("init")


def test_spare_that_was_killed_is_no_loss(keeper: Keeper) -> None:
    spare = os.pidfd_open(spare_of(keeper))
    signal.pidfd_send_signal(spare, signal.SIGKILL)
    wait.exited(spare)
    os.close(spare)
    failure, exit_ = keeper.run("one", *shell("exit 6"))
    assert (failure, exit_.code) == (None, 6)


def test_spare_ends_with_the_keeper(keeper: Keeper) -> None:
    spare = os.pidfd_open(spare_of(keeper))
    os.kill(keeper.pid, signal.SIGKILL)
    wait.exited(spare, what="the end of the spare process")
    os.close(spare)


def test_spare_has_nothing_of_the_keeper(keeper: Keeper) -> None:
    read_end, write_end = os.pipe()
    keeper.run("used", *program("/bin/true"))
    keeper.client.hold({"pipe": write_end})
    os.close(write_end)
    spare = spare_of(keeper)
    links = [os.readlink(f"/proc/{spare}/fd/{fd}") for fd in os.listdir(f"/proc/{spare}/fd")]
    assert len(links) == 4
    assert links.count("/dev/null") >= 2
    keeper.client.drop("pipe")
    assert wait.read_to_end(read_end) == b""
    os.close(read_end)
