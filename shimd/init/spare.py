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
stage the new process is the stage, which then clones as always (``shimd.init.spawn``), unless the stage only joins a
pid namespace, which the spare can do for its next child.
"""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair

from shimd.contexts import suppress
from shimd.errors import InternalError
from shimd.init.context import Context
from shimd.init.execute import execute
from shimd.init.handshake import Failure
from shimd.init.main import FAILED, NAME, carry_out, close_others, enter
from shimd.init.packets import receive_message
from shimd.init.pending import Pending, Task, attempt, failure_of_stage, send_task
from shimd.init.request import LaunchRequest
from shimd.init.spawn import Steps, clone_and_report, pid_namespace_alone
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
from shimd.typed import Callable, NoReturn

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
        try:
            send_task(self._channel, request)
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


def be_spare(channel: int) -> NoReturn:
    """The program of a spare that is no fork of its launcher, but was executed: it serves a command line once."""
    os.umask(0o022)  # like the keeper: what is made in a container does not depend on who makes it
    try:
        successor = Successor()
    except OSError:
        successor = None
    try:
        _await_task(enter((("spare", channel),)), successor)
    finally:
        os._exit(FAILED)


def _serve(channel: int, successor: Successor) -> NoReturn:
    ctx = enter((("spare", channel),))
    warm_up()
    close_others((channel,))  # an operation that fails leaves its descriptors to the end of its process
    _await_task(ctx, successor)


def _await_task(ctx: Context, successor: Successor | None) -> NoReturn:
    process.set_name(SPARE_NAME)
    sock = socket(fileno=ctx.take("spare"))
    message, fds = receive_message(sock)
    if not message:
        os._exit(0)  # the launcher is gone
    process.set_name(NAME)
    ctx.channel = sock.fileno()
    ctx.report(_launch(sock, successor, Task._make(message), fds))
    os._exit(FAILED)


def _launch(sock: socket, successor: Successor | None, task: Task, fds: list[int]) -> Failure:
    """Returns only when the process could not be made."""
    cgroup = fds.pop() if task.has_cgroup else -1
    try:
        stage, steps = loads(task.stage) if task.stage else (), loads(task.steps)
        if successor is None:
            if cgroup >= 0:
                _join(cgroup)
            ctx = Context(dict(zip(task.slots, fds, strict=True)))
            _be_stage(sock, ctx, task.clone, stage, steps, 0)
        slot = pid_namespace_alone(stage)
        if slot:
            process.setns(fds[task.slots.index(slot)], process.CLONE_NEWPID)
            stage = ()
        pid, predecessor = successor.clone(0 if stage else task.clone, cgroup_fd=cgroup)
    except InternalError as e:
        return Failure(-1, "", "", "make process", 0, str(e))
    except OSError as e:
        return Failure(-1, "", "", attempt(e, cgroup), e.errno or 0, e.strerror or "")
    os.setsid()
    if any(_needs_to_be_alone(step.op) for step in (*stage, *steps)):
        _wait(predecessor)
    for fd in (predecessor, cgroup):
        if fd >= 0:
            os.close(fd)
    ctx = Context(dict(zip(task.slots, fds, strict=True)))
    if stage:
        _be_stage(sock, ctx, task.clone, stage, steps, pid)
    pidfd = process.pidfd_open(os.getpid())
    fdpass.send(sock, b"%d 0" % pid, [pidfd])
    os.close(pidfd)
    sock.close()
    carry_out(ctx, steps)


def _be_stage(sock: socket, ctx: Context, clone: int, stage: Steps, steps: Steps, own_pid: int) -> NoReturn:
    ctx.staged = True
    failure = execute(ctx, stage) or clone_and_report(ctx, clone, steps, sock.fileno(), own_pid)
    if failure is not None:
        fdpass.send(sock, failure_of_stage(own_pid, failure))
    os._exit(0 if failure is None else FAILED)


def _join(cgroup: int) -> None:
    """A cgroup v2, where the process cannot be born."""
    fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
    os.write(fd, b"0")
    os.close(fd)
    os.close(cgroup)


def _needs_to_be_alone(op: ops.Op) -> bool:
    return isinstance(op, ops.Setns | ops.Unshare) and bool(op.flags & _ALONE)


def _wait(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
