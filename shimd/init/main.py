"""The first code of a new process, forked from the keeper or from the runtime itself: nothing of the parent may be
left in it.
"""

from __future__ import annotations

import gc
import os
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl

from shimd.init.context import Aborted, Context
from shimd.init.execute import execute
from shimd.init.handshake import Failure
from shimd.linux import process
from shimd.linux.pty import set_controlling_terminal
from shimd.plan.ops import Step
from shimd.typed import Iterable, NoReturn

FAILED = 1
NAME = "shimd:[init]"  # in ps, up to the execve

Slots = tuple[tuple[str, int], ...]  # (name, descriptor), as in LaunchRequest.fds


def run_child(steps: tuple[Step, ...], slots: Slots) -> NoReturn:
    """Carry out the plan and never return. ``slots`` are the only descriptors that stay open, beside 0, 1 and 2."""
    try:
        carry_out(enter(slots), steps)
    finally:
        os._exit(FAILED)


def carry_out(ctx: Context, steps: tuple[Step, ...]) -> NoReturn:
    """In a process that has nothing of its launcher in it."""
    try:
        failure = _run(ctx, steps)
        if failure is not None:
            ctx.report(failure)
    finally:
        os._exit(FAILED)


def resume(ctx: Context, steps: tuple[Step, ...]) -> NoReturn:
    """In the process that a stage has cloned, in a session of its own: go on where the stage ended."""
    ctx.staged = False
    if ctx.procfs >= 0:  # it belongs to the pid namespace of the stage
        os.close(ctx.procfs)
        ctx.procfs = -1
    if ctx.has_terminal:
        set_controlling_terminal(0)
    carry_out(ctx, steps)


def enter(slots: Slots) -> Context:
    """Shut the process off: not dumpable, so that nobody in a namespace that it joins can trace it or open its
    descriptors (CVE-2016-9962); a session of its own; no descriptor of the parent; no more imports, which would take
    code from the container's file system.
    """
    process.set_dumpable(0)
    process.set_name(NAME)
    sys.meta_path.clear()
    os.setsid()
    gc.disable()  # a collection would write to every page that is shared with the parent
    bound = {name: fd if fd > 2 else fcntl(fd, F_DUPFD_CLOEXEC, 3) for name, fd in slots}
    close_others(bound.values())
    return Context(bound)


def close_others(keep: Iterable[int]) -> None:
    """Close what is neither standard stream nor in ``keep``."""
    first = 3
    for fd in sorted(set(keep)):
        if fd > first:
            process.close_range(first, fd - 1, 0)
        first = max(first, fd + 1)
    process.close_range(first, process.MAX_FD, 0)


def _run(ctx: Context, steps: tuple[Step, ...]) -> Failure | None:
    try:
        return execute(ctx, steps)
    except Aborted:
        return None
