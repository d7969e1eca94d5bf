from __future__ import annotations

import errno
import os

import pytest

from shimd.linux.process import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, clone3, setns
from shimd.linux.succeed import Successor
from tests.support import wait


@pytest.fixture
def successor() -> Successor:
    try:
        return Successor()
    except OSError as e:
        pytest.skip(f"this machine has no code to succeed: {e.strerror}")


def succeed(successor: Successor, flags: int, work: str, cgroup_fd: int = -1) -> tuple[int, str, int]:
    """A child that is succeeded by its own child: (pid of the latter as it was told, what it printed, its status)."""
    read_end, write_end = os.pipe()
    pid, pidfd = clone3(0)
    if pid == 0:
        try:
            own, predecessor = successor.clone(flags, cgroup_fd=cgroup_fd)
            wait.exited(predecessor)
            os.write(write_end, f"{own} {eval(work)}".encode())
        finally:
            os._exit(7)
    os.close(write_end)
    os.close(pidfd)
    text = wait.read_to_end(read_end).decode()
    os.close(read_end)
    assert os.waitpid(pid, 0)[1] == 0
    own_pid, _, said = text.partition(" ")
    _, status = os.waitpid(int(own_pid), 0)
    return int(own_pid), said, os.waitstatus_to_exitcode(status)


def test_child_goes_on_where_its_parent_was(successor: Successor) -> None:
    pid, said, code = succeed(successor, 0, "(os.getpid(), os.getppid())")
    assert said == str((pid, os.getpid()))
    assert code == 7


def test_child_is_born_in_new_namespaces(successor: Successor) -> None:
    flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUSER
    _, said, _ = succeed(successor, flags, "(os.getpid(), os.readlink('/proc/thread-self/ns/net'))")
    assert said.startswith("(1, ")
    assert os.readlink("/proc/self/ns/net") not in said


def test_alone_means_that_a_time_namespace_can_be_joined(successor: Successor) -> None:
    """Which is refused with EUSERS while somebody else uses the memory."""
    with open("/proc/self/ns/time_for_children") as namespace:
        fd = namespace.fileno()
        for _ in range(20):
            _, said, _ = succeed(successor, 0, f"setns({fd}, 0x80)")
            assert said == "None", setns


def test_child_uses_its_memory_as_before(successor: Successor) -> None:
    _, said, _ = succeed(
        successor, 0, "sum(len(str([n] * 100)) for n in range(3000)) and __import__('json').dumps([1])"
    )
    assert said == "[1]"


def test_refusal_leaves_the_caller_as_it_was(successor: Successor) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        successor.clone(0x40000000_00000000)
    assert os.listdir("/proc/self/fd")
