"""``create``: a container whose program waits for ``start``."""

from __future__ import annotations

from shimd.cli.command import NEW_ID_ARGUMENT, Call, Command
from shimd.cli.making import OPTIONS, Making
from shimd.runtime.interrupts import unwind_on_signals

COMMAND = Command("create a container", NEW_ID_ARGUMENT, options=OPTIONS, least=1, most=1, prefix="create failed")


def run(call: Call) -> int:
    unwind_on_signals()
    with Making(call, detach=True) as making:
        making.detached(start=False)
    return 0
