"""Make the process that carries out a plan: a clone3, or an intermediate process (stage) that joins namespaces and
then clones.

Only children enter a pid or time namespace, and new namespaces belong to the user namespace that is current when they
are made. So some plans have a stage: a child of the launcher joins what is to be joined and clones the process with
CLONE_PARENT, which makes it a child of the launcher too. The stage sends its pid and pidfd and exits with 0. The
process goes on with the context of the stage.

A stage that does nothing but join a pid namespace (every exec) needs no process: the launcher itself sets the
namespace of its next child, clones, and sets it back.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair

from shimd.errors import InternalError, RuntimeFailure
from shimd.init.context import Context
from shimd.init.execute import execute
from shimd.init.handshake import Failure
from shimd.init.main import FAILED, enter, resume, run_child
from shimd.init.pending import Pending, attempt
from shimd.init.request import Launched, LaunchRequest
from shimd.linux import fdpass, process
from shimd.plan import ops
from shimd.plan.wire import loads
from shimd.typed import Callable, NoReturn

Steps = tuple[ops.Step, ...]


def _nothing() -> None:
    pass


def start_clone(request: LaunchRequest, in_child: Callable[[], None] = _nothing) -> Launched | Pending:
    """The process, a child of the caller, or the stage that makes it. Raises RuntimeFailure. The caller has one
    thread; ``in_child`` undoes what it did to itself.
    """
    try:
        # Here and not in the child, where every page that is written to has to be copied first.
        steps = loads(request.steps)
        if not request.stage:
            return _clone(request, steps, in_child)
        stage = loads(request.stage)
        slot = pid_namespace_alone(stage)
        if slot:
            return _clone_in_pid_namespace(request, steps, slot, in_child)
        return _start_stage(request, stage, steps, in_child)
    except InternalError as e:
        raise RuntimeFailure(f"make process: {e}") from e
    except OSError as e:
        raise RuntimeFailure(f"{attempt(e, request.cgroup_fd)}: {e.strerror}") from e


def _clone(request: LaunchRequest, steps: Steps, in_child: Callable[[], None]) -> Launched:
    pid, pidfd = process.clone3(request.clone, cgroup_fd=request.cgroup_fd)
    if pid == 0:
        try:
            in_child()
            run_child(steps, request.fds)
        finally:
            os._exit(FAILED)
    return Launched(pid, pidfd)


def pid_namespace_alone(steps: Steps) -> str:
    """The slot of the pid namespace when joining it is all that the stage does."""
    if len(steps) == 1:
        op = steps[0].op
        if isinstance(op, ops.Setns) and op.flags == process.CLONE_NEWPID:
            return op.slot
    return ""


def _clone_in_pid_namespace(request: LaunchRequest, steps: Steps, slot: str, in_child: Callable[[], None]) -> Launched:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.setns(dict(request.fds)[slot], process.CLONE_NEWPID)
        try:
            return _clone(request, steps, in_child)
        finally:
            process.setns(own, process.CLONE_NEWPID)
    finally:
        os.close(own)


def _start_stage(request: LaunchRequest, stage: Steps, steps: Steps, in_child: Callable[[], None]) -> Pending:
    report, report_child = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    try:
        pid, pidfd = process.clone3(0, cgroup_fd=request.cgroup_fd)
        if pid == 0:
            try:
                in_child()
                _run_stage(request, stage, steps, report_child.detach())
            finally:
                os._exit(FAILED)
    except BaseException:
        report.close()
        raise
    finally:
        report_child.close()
    return Pending(pid, pidfd, report)


def _run_stage(request: LaunchRequest, stage: Steps, steps: Steps, report: int) -> NoReturn:
    ctx = enter((*request.fds, ("stage", report)))
    ctx.staged = True
    report = ctx.take("stage")
    failure = execute(ctx, stage) or clone_and_report(ctx, request.clone, steps, report)
    if failure is not None:
        ctx.channel = report
        ctx.report(failure)
    os._exit(0 if failure is None else FAILED)


def clone_and_report(ctx: Context, clone: int, steps: Steps, report: int, stage: int = 0) -> Failure | None:
    """The last thing that a stage does; ``stage`` is its pid when the launcher does not know it."""
    flags = clone | process.CLONE_PARENT
    try:
        # A filter of the container, loaded by the stage, may know the old call only.
        pid, pidfd = process.clone3(flags) if clone else process.clone(flags)
    except OSError as e:
        return Failure(-1, "", "", "clone", e.errno or 0, e.strerror or "")
    if pid == 0:
        os.close(report)
        os.setsid()
        resume(ctx, steps)
    fdpass.send(socket(fileno=report), b"%d %d" % (pid, stage), [pidfd])
    return None
