"""``delete``: remove a container."""

from __future__ import annotations

from shimd.cli.command import ID_ARGUMENT, Call, Command, flag
from shimd.contexts import suppress
from shimd.errors import FailedPrecondition, NotFound

COMMAND = Command(
    "delete any resources held by the container, often used with a detached one",
    ID_ARGUMENT,
    options=(flag("force", "forcibly delete the container if it is still running (uses SIGKILL)", "f"),),
    least=1,
    most=1,
)


def run(call: Call) -> int:
    runtime = call.runtime()
    force = call.flag("force")
    try:
        container = runtime.load(call.container_id)
    except NotFound:
        # A creator that was killed early leaves a directory without a state, which is none of a container.
        with suppress(NotFound, FailedPrecondition):
            runtime.remove_stray(call.container_id)
        if force:
            return 0
        raise
    with container:
        for problem in runtime.delete(container, force=force):
            call.messages.warn(problem)
    return 0
