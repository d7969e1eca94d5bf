"""``resume``: thaw a paused container."""

from __future__ import annotations

from shimd.cli.command import ID_ARGUMENT, Call, Command

COMMAND = Command("resumes all processes that have been paused", ID_ARGUMENT, least=1, most=1)


def run(call: Call) -> int:
    with call.container() as container:
        call.runtime().resume(container)
    return 0
