"""The launcher's view of a process at work on making another one: little enough for a command line to load."""

from __future__ import annotations

import os
from _socket import socket
from errno import EBUSY

from shimd.errors import RuntimeFailure
from shimd.init.handshake import Failure, decode, encode_failure
from shimd.init.packets import send_message
from shimd.init.request import Launched, LaunchRequest
from shimd.linux import fdpass
from shimd.records import Record

_MAX_REPORT = 32 * 1024
_OF_STAGE = b"stage\0"


class Task(Record):
    """What a spare is told, beside the descriptors: of the slots in order, then of the cgroup if there is one."""

    clone: int
    stage: bytes
    steps: bytes
    slots: tuple[str, ...]
    has_cgroup: bool


def attempt(error: OSError, cgroup_fd: int) -> str:
    """What a clone was that failed. EBUSY is a cgroup's that takes no processes, since it hands controllers on."""
    return "make process by adding pid 0 to cgroups" if error.errno == EBUSY and cgroup_fd >= 0 else "make process"


def send_task(channel: socket, request: LaunchRequest) -> None:
    """Raises OSError. The descriptors stay the caller's."""
    fds = [fd for _, fd in request.fds]
    has_cgroup = request.cgroup_fd >= 0
    if has_cgroup:
        fds.append(request.cgroup_fd)
    slots = tuple([name for name, _ in request.fds])
    send_message(channel, tuple(Task(request.clone, request.stage, request.steps, slots, has_cgroup)), fds)


def failure_of_stage(pid: int, failure: Failure) -> bytes:
    """For the launcher, which has to reap the stage and does not know its pid."""
    return b"%s%d\0%s" % (_OF_STAGE, pid, encode_failure(failure))


class Pending:
    """A stage or a spare at work: ``report`` is readable when it has cloned or failed, ``finish`` then tells which.

    After that ``stage`` is the pid of another child of the launcher that ends now: a spare's process that was only a
    stage. 0: there is none.
    """

    def __init__(self, pid: int, pidfd: int, report: socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.report = report
        self.stage = 0

    def finish(self) -> Launched:
        """Waits for it. Raises RuntimeFailure. Its zombie is the caller's to reap."""
        try:
            data, fds = fdpass.recv(self.report, _MAX_REPORT, 1)
        except ConnectionResetError:  # it died with something unread
            data, fds = b"", []
        finally:
            self.report.close()
            os.close(self.pidfd)
        if fds:
            pid, self.stage = map(int, data.split())
            return Launched(pid, fds[0])
        if data.startswith(_OF_STAGE):
            _, pid_text, data = data.split(b"\0", 2)
            self.stage = int(pid_text)
        message = decode(data)
        failure = message.failure
        if failure is None:
            raise RuntimeFailure("prepare namespaces: the intermediate process died")
        where = f"prepare namespaces ({failure.origin})" if failure.origin else "prepare namespaces"
        raise RuntimeFailure(f"{where}: {failure}")
