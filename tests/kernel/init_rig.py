"""Carry out hand-written plans in a real new process, and look at what came of it."""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, SOCK_STREAM, socket, socketpair
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from shimd.init import handshake
from shimd.init.handshake import Failure, Message
from shimd.init.request import LaunchRequest
from shimd.linux.mount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MS_REC, MS_SLAVE
from shimd.linux.process import CLONE_NEWNS, CLONE_NEWPID
from shimd.plan import ops, wire
from tests.kernel.cloning import clone_into_plan
from tests.support import wait

NO_ATTR = ops.MountAttr(0, 0, 0, recursive=False)
QUIET = ops.MountAttr(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, 0, 0, recursive=False)
DEV_ATTR = ops.MountAttr(MOUNT_ATTR_NOSUID, 0, 0, recursive=False)

PATH = "PATH=/bin:/sbin:/usr/bin"


def mount(target: str, fstype: str, *data: str, **fields: object) -> ops.Mount:
    values = {"attr": QUIET, "more": (), "copy_up": False, "label": "", **fields}
    return ops.Mount(target, fstype, fstype, data, **values)  # type: ignore[arg-type]


def bind(source: object, target: str, **fields: object) -> ops.Bind:
    values = {
        "slot": "",
        "recursive": True,
        "remount": False,
        "attr": NO_ATTR,
        "explicit_clear": 0,
        "more": (),
        **fields,
    }
    return ops.Bind(target, str(source), **values)  # type: ignore[arg-type]


def device(path: str, major: int, minor: int, **fields: object) -> ops.MakeDevice:
    values = {"kind": "c", "mode": 0o666, "uid": 0, "gid": 0, "bind": False, **fields}
    return ops.MakeDevice(path, major=major, minor=minor, **values)  # type: ignore[arg-type]


PROC = mount("/proc", "proc")
DEV = mount("/dev", "tmpfs", "mode=755", attr=DEV_ATTR)
DEV_PTS = mount("/dev/pts", "devpts", "newinstance", "ptmxmode=0666", "mode=0620", attr=DEV_ATTR)
NULL = device("/dev/null", 1, 3)
PIVOT = ops.PivotRoot("pivot")


def prepare(rootfs: Path, propagation: int = MS_SLAVE | MS_REC) -> ops.PrepareRoot:
    return ops.PrepareRoot(str(rootfs), propagation, "")


def program(*args: str, env: tuple[str, ...] = (PATH,), death_signal: int = 0, keep: int = 0) -> tuple[ops.Op, ...]:
    """The end of a plan."""
    return (
        ops.FindProgram(args, env),
        ops.CloseFds(keep),
        ops.ResetSignals(death_signal),
        ops.Execute(),
    )


def shell(script: str, **fields: object) -> tuple[ops.Op, ...]:
    return program("/bin/sh", "-c", script, **fields)  # type: ignore[arg-type]


def in_rootfs(rootfs: Path, *operations: ops.Op, after: tuple[ops.Op, ...] = ()) -> tuple[ops.Op, ...]:
    """Before and after the root is entered, with the file systems and streams that most tests want."""
    return (prepare(rootfs), PROC, DEV, NULL, *operations, PIVOT, ops.Stdio(0), *after)


class Outcome(NamedTuple):
    """``failure`` None: the program ran, and ended with ``status`` (a wait status) after printing ``output``."""

    failure: Failure | None
    status: int
    output: str
    messages: tuple[Message, ...]

    @property
    def warnings(self) -> list[str]:
        return [message.text for message in self.messages if message.kind == "warning"]


def run(
    *operations: ops.Op,
    clone: int = CLONE_NEWNS | CLONE_NEWPID,
    stage: tuple[ops.Op, ...] = (),
    fds: Mapping[str, int] | None = None,
    on_message: Callable[[int, Message], None] | None = None,
) -> Outcome:
    """The whole life of a process without a start gate. ``on_message`` sees the pid and each message before it is
    answered.
    """
    with ExitStack() as stack:
        output, output_child = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, output)
        control, control_child = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        stack.callback(control.close)
        slots = {"control": control_child.fileno(), "stdout": output_child, "stderr": output_child, **(fds or {})}
        try:
            launched = clone_into_plan(request(operations, clone=clone, stage=stage, fds=slots))
        finally:
            control_child.close()
            os.close(output_child)
        stack.callback(os.close, launched.pidfd)
        messages = converse(control, launched.pid, on_message)
        text = wait.read_to_end(output).decode()
        wait.exited(launched.pidfd)
        _, status = os.waitpid(launched.pid, 0)
    failures = [message.failure for message in messages if message.failure is not None]
    return Outcome(failures[0] if failures else None, status, text, messages)


def request(
    operations: tuple[ops.Op, ...],
    *,
    clone: int = CLONE_NEWNS | CLONE_NEWPID,
    stage: tuple[ops.Op, ...] = (),
    fds: Mapping[str, int] | None = None,
    name: str = "test",
) -> LaunchRequest:
    return LaunchRequest(name, clone, _wire(stage) if stage else b"", _wire(operations), tuple((fds or {}).items()))


def _wire(operations: tuple[ops.Op, ...]) -> bytes:
    return wire.dumps(tuple(ops.Step(operation, f"/{index}") for index, operation in enumerate(operations)))


def converse(
    control: socket, pid: int, on_message: Callable[[int, Message], None] | None = None
) -> tuple[Message, ...]:
    """Everything that init says up to the end of the file; every "sync" is answered with leave to go on."""
    messages: list[Message] = []
    while True:
        wait.readable(control.fileno(), what="a message of init")
        message = handshake.receive(control)
        if message.kind == "eof":
            return tuple(messages)
        messages.append(message)
        if on_message is not None:
            on_message(pid, message)
        if message.kind == "sync":
            handshake.go(control)


class Gate:
    """A container that waits for ``start``: launched, ready, created."""

    def __init__(self, place: Path, *operations: ops.Op, fds: Mapping[str, int] | None = None) -> None:
        self.path = str(place / "start.sock")
        self.output, output_child = os.pipe2(os.O_CLOEXEC)
        listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        listener.bind(self.path)
        listener.listen(1)
        control, control_child = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        slots = {"control": control_child.fileno(), "start": listener.fileno(), "stdout": output_child}
        launched = clone_into_plan(request(operations, fds=slots | {"stderr": output_child} | dict(fds or {})))
        self.pid, self.pidfd = launched
        for sock in (listener, control_child):
            sock.close()
        os.close(output_child)
        self.messages = converse(control, self.pid)
        control.close()

    def end(self) -> tuple[int, str]:
        """The wait status and everything printed."""
        text = wait.read_to_end(self.output).decode()
        wait.exited(self.pidfd)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.output)
        os.close(self.pidfd)
        return status, text


def is_alive(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)
