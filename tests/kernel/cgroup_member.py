"""Processes of a test inside of a cgroup."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

from shimd.cgroups.manager import CgroupManager
from shimd.linux.process import clone3, set_child_subreaper
from tests.support import wait


class Way(NamedTuple):
    """How to enter a cgroup: descriptors as CgroupManager gives them out, which the member closes."""

    born_in: int
    tasks: list[int]


OUTSIDE = Way(-1, [])


def way_into(cgroup: CgroupManager) -> Way:
    return Way(cgroup.cgroup_fd(), cgroup.open_procs())


def way_of_exec(cgroup: CgroupManager, init_pid: int, sub: str = "") -> Way:
    subs = {"": sub} if sub else {}
    return Way(cgroup.exec_cgroup_fd(init_pid, subs), cgroup.exec_procs(init_pid, subs))


class Member:
    """A process that entered by ``way``, ran ``task`` and then sleeps until it is killed."""

    def __init__(self, way: Way, task: Callable[[], None] = lambda: None) -> None:
        ready, report = os.pipe()
        self.pid, pidfd = clone3(0, cgroup_fd=way.born_in)
        if self.pid == 0:
            _run(way.tasks, task, report)
        for fd in (report, pidfd, *way.tasks, way.born_in):
            if fd >= 0:
                os.close(fd)
        self._ready = ready
        self.status: int | None = None

    def wait_ready(self) -> None:
        """Until the task is done; AssertionError with its problem."""
        text = wait.read_some(self._ready, what="the task in the cgroup")
        assert text == b"done", text.decode()

    def wait_end(self) -> int:
        """The exit status, or the signal as a negative number."""
        if self.status is None:
            wait.process_gone(self.pid)
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def close(self) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait_end()
        os.close(self._ready)


@contextlib.contextmanager
def member(way: Way, task: Callable[[], None] = lambda: None) -> Iterator[Member]:
    """A member whose task is done."""
    made = Member(way, task)
    try:
        made.wait_ready()
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def reaper() -> Iterator[None]:
    """Children of a member become ours when it ends, and are waited for: init of this machine may take seconds for
    it.
    """
    known = wait.children()
    set_child_subreaper(1)
    try:
        yield
        wait.reap_children_but(known)
    finally:
        set_child_subreaper(0)


def _run(tasks: list[int], task: Callable[[], None], report: int) -> None:
    try:
        for fd in tasks:
            os.write(fd, b"0")
        task()
        os.write(report, b"done")
        while True:
            signal.pause()
    except BaseException as err:  # noqa: BLE001 (whatever it is belongs into the report)
        os.write(report, repr(err).encode())
    finally:
        os._exit(1)


def fork_children(count: int) -> None:
    """A task: so many children that sleep; they end with their cgroup."""
    for _ in range(count):
        if os.fork() == 0:
            while True:
                signal.pause()


def eat(size: int) -> None:
    """A task: dirty so many bytes of memory of its own, page by page, and keep them."""
    global _eaten
    _eaten = bytearray(size)
    for offset in range(0, size, 4096):
        _eaten[offset] = 1


_eaten = bytearray()
