"""``start``: let the program of a created container run."""

from __future__ import annotations

from shimd.cli.command import ID_ARGUMENT, Call, Command

COMMAND = Command("executes the user defined process in a created container", ID_ARGUMENT, least=1, most=1)


def run(call: Call) -> int:
    with call.container() as container:
        call.runtime().start(container)
    return 0
