"""``pause``: freeze a container."""

from __future__ import annotations

from shimd.cli.command import ID_ARGUMENT, Call, Command

COMMAND = Command("suspends all processes inside the container", ID_ARGUMENT, least=1, most=1)


def run(call: Call) -> int:
    with call.container() as container:
        call.runtime().pause(container)
    return 0
