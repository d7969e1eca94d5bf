"""``run``: create, start, and in the foreground also wait and delete."""

from __future__ import annotations

from shimd.cli.command import NEW_ID_ARGUMENT, Call, Command, flag
from shimd.cli.making import OPTIONS, Making
from shimd.linux.process import set_child_subreaper
from shimd.runtime.interrupts import unwind_on_signals

COMMAND = Command(
    "create and run a container",
    NEW_ID_ARGUMENT,
    options=(
        *OPTIONS,
        flag("detach", "detach from the container's process", "d"),
        flag("keep", "do not delete the container after it exits"),
        flag("no-subreaper", "do not adopt the orphans of the container"),
    ),
    least=1,
    most=1,
    prefix="run failed",
)


def run(call: Call) -> int:
    if not call.flag("no-subreaper"):
        set_child_subreaper(1)
    if call.flag("detach"):
        unwind_on_signals()
        with Making(call, detach=True) as making:
            making.detached(start=True)
        return 0
    with Making(call, detach=False) as making:
        return making.foreground(keep=call.flag("keep"))
