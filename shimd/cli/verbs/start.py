"""``start``: let the program of a created container run."""

from __future__ import annotations

import os

from shimd.cli.command import ID_ARGUMENT, Call, Command
from shimd.contexts import closing
from shimd.runtime.model import Container

COMMAND = Command("executes the user defined process in a created container", ID_ARGUMENT, least=1, most=1)


def run(call: Call) -> int:
    with call.container() as container:
        manager = os.environ.get("NOTIFY_SOCKET", "")
        if manager:
            _start_and_notify(call, container, manager)
        else:
            call.runtime().start(container)
    return 0


def _start_and_notify(call: Call, container: Container, manager: str) -> None:
    from shimd.cli.notify import Notify

    with closing(Notify(container, manager, call.messages)) as notify:
        call.runtime().start(container)
        notify.wait(container.pid, container.pidfd)
