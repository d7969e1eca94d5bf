"""A process made in advance: a launch finds one that is forked already and has the memory that init needs in place.

::

    launcher (keeper)            spare                            the new process
       │ clone3, while idle ────▶│ enter, warm up
       │ plan, descriptors ─────▶│
       │                         │ clone3 (shimd.linux.succeed) ───▶│ born with its namespaces, in its cgroup,
       │                         ┴ ends                             │ a child of the launcher, in the spare's memory
       │◀── pid, pidfd (or what failed) ────────────────────────────│
       │                                                            │ the plan

The spare cannot become the container's init itself: that has to be born in its pid namespace and its cgroup. With a
stage the new process is the stage, which then clones as always (``shimd.init.spawn``).
"""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair
from collections.abc import Callable
from contextlib import suppress

from shimd.errors import InternalError
from shimd.init.context import Context
from shimd.init.execute import execute
from shimd.init.handshake import Failure
from shimd.init.main import FAILED, NAME, carry_out, close_others, enter
from shimd.init.packets import receive_message, send_message
from shimd.init.request import LaunchRequest
from shimd.init.spawn import Pending, Steps, clone_and_report
from shimd.linux import fdpass, process
from shimd.linux.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MS_PRIVATE,
    fsconfig_create,
    fsmount,
    fsopen,
)
from shimd.linux.succeed import Successor
from shimd.plan import ops
from shimd.plan.wire import dumps, loads
from shimd.records import Record
from shimd.typed import NoReturn

SPARE_NAME = "shimd:[spare]"

# Joining these is refused while the spare, about to end, shares the memory.
_ALONE = process.CLONE_NEWUSER | process.CLONE_NEWTIME

_ATTR = ops.MountAttr(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, 0, 0, recursive=False)
_MORE = (ops.MountAttr(0, 0, MS_PRIVATE, recursive=False),)
_PRACTICE = dumps(
    tuple(
        ops.Step(operation, "")
        for operation in (
            ops.Mount("/dev", "tmpfs", "tmpfs", ("size=64k", "mode=755"), _ATTR, _MORE, copy_up=False, label=""),
            ops.Bind("/etc/file", "/proc/version", "", False, True, _ATTR, 0, _MORE),  # noqa: FBT003  (two flags)
            ops.MakeDevice("/dev/null", "c", 1, 3, 0o666, 0, 0, bind=False),
            ops.Symlink("/dev/fd", "/proc/self/fd", replace=False, only_if=""),
            ops.ReadonlyPath("/dev"),
            ops.MaskPaths(("/dev", "/etc/file"), ""),
            ops.Chdir("/", late=False),
            ops.HomeEnv(0),
            ops.FindProgram(("nosuch",), ("PATH=/bin:/usr/bin",)),
        )
    )
)  # fmt: skip


class Task(Record):
    """What a spare is told, beside the descriptors: of the slots in order, then of the cgroup if there is one."""

    clone: int
    stage: bytes
    steps: bytes
    slots: tuple[str, ...]
    has_cgroup: bool


class Spare:
    """The launcher's side of one. It ends by itself when the launcher does."""

    def __init__(self, successor: Successor, in_child: Callable[[], None]) -> None:
        """Raises OSError. ``in_child`` undoes what the launcher did to itself."""
        self._channel, channel = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            self._pid, self._pidfd = process.clone3(0)
            if self._pid == 0:
                try:
                    in_child()
                    _serve(channel.detach(), successor)
                finally:
                    os._exit(FAILED)
        except BaseException:
            self._channel.close()
            raise
        finally:
            channel.close()

    def hand_over(self, request: LaunchRequest) -> Pending | None:
        """The launch, under way; None when the spare is dead. Used once. The descriptors stay the caller's."""
        fds = [fd for _, fd in request.fds]
        has_cgroup = request.cgroup_fd >= 0
        if has_cgroup:
            fds.append(request.cgroup_fd)
        slots = tuple([name for name, _ in request.fds])
        task = Task(request.clone, request.stage, request.steps, slots, has_cgroup)
        try:
            send_message(self._channel, tuple(task), fds)
        except OSError:
            self._channel.close()
            os.close(self._pidfd)
            return None
        return Pending(self._pid, self._pidfd, self._channel)

    def end(self) -> None:
        """Instead of ``hand_over``; returns when it is reaped."""
        self._channel.close()
        os.close(self._pidfd)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def warm_up() -> None:
    """Touch the memory that the usual plan needs, by carrying out one on an empty tmpfs that is mounted nowhere, so
    that nothing of the host is changed. That some operations fail there does not matter. Raises OSError.
    """
    context = fsopen("tmpfs")
    try:
        fsconfig_create(context)
        root = fsmount(context, 0)
    finally:
        os.close(context)
    ctx = Context({})
    ctx.root = root
    for step in loads(_PRACTICE):
        execute(ctx, (step,))
    os.close(root)


def _serve(channel: int, successor: Successor) -> NoReturn:
    ctx = enter((("spare", channel),))
    warm_up()
    close_others((channel,))  # an operation that fails leaves its descriptors to the end of its process
    process.set_name(SPARE_NAME)
    sock = socket(fileno=ctx.take("spare"))
    message, fds = receive_message(sock)
    if not message:
        os._exit(0)  # the launcher is gone
    process.set_name(NAME)
    ctx.channel = sock.fileno()
    ctx.report(_launch(sock, successor, Task._make(message), fds))
    os._exit(FAILED)


def _launch(sock: socket, successor: Successor, task: Task, fds: list[int]) -> Failure:
    """Returns only when the process could not be made."""
    cgroup = fds.pop() if task.has_cgroup else -1
    try:
        stage, steps = loads(task.stage) if task.stage else (), loads(task.steps)
        pid, predecessor = successor.clone(0 if stage else task.clone, cgroup_fd=cgroup)
    except InternalError as e:
        return Failure(-1, "", "", "make process", 0, str(e))
    except OSError as e:
        return Failure(-1, "", "", "make process", e.errno or 0, e.strerror or "")
    os.setsid()
    if any(_needs_to_be_alone(step.op) for step in (*stage, *steps)):
        _wait(predecessor)
    for fd in (predecessor, cgroup):
        if fd >= 0:
            os.close(fd)
    ctx = Context(dict(zip(task.slots, fds, strict=True)))
    if stage:
        return _be_stage(sock, ctx, task.clone, stage, steps)
    pidfd = process.pidfd_open(os.getpid())
    fdpass.send(sock, str(pid).encode(), [pidfd])
    os.close(pidfd)
    sock.close()
    carry_out(ctx, steps)


def _be_stage(sock: socket, ctx: Context, clone: int, stage: Steps, steps: Steps) -> Failure:
    ctx.staged = True
    failure = execute(ctx, stage) or clone_and_report(ctx, clone, steps, sock.fileno())
    if failure is None:
        os._exit(0)
    return failure


def _needs_to_be_alone(op: ops.Op) -> bool:
    return isinstance(op, ops.Setns | ops.Unshare) and bool(op.flags & _ALONE)


def _wait(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
