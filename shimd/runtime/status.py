"""The states of a container and the one table that says which operation is refused in which of them.

Nothing stored is trusted: ``control.status`` derives the state each time from the freezer, ``/proc/<pid>/stat`` and
the start socket. The words of the refusals are runc's, because containerd, Docker and Podman branch on them.
"""

from __future__ import annotations

from shimd.errors import FailedPrecondition, NotFound, ShimdError
from shimd.typed import ClassVar


class Status(str):
    """The states of the OCI runtime specification and ``paused``, as the words of the state document."""

    __slots__ = ()
    CREATING: ClassVar[Status]
    CREATED: ClassVar[Status]
    RUNNING: ClassVar[Status]
    PAUSED: ClassVar[Status]
    STOPPED: ClassVar[Status]


class Operation(str):
    __slots__ = ()
    START: ClassVar[Operation]
    KILL: ClassVar[Operation]
    KILL_ALL: ClassVar[Operation]
    DELETE: ClassVar[Operation]
    FORCE_DELETE: ClassVar[Operation]
    EXEC: ClassVar[Operation]
    EXEC_IGNORE_PAUSED: ClassVar[Operation]
    PAUSE: ClassVar[Operation]
    RESUME: ClassVar[Operation]
    UPDATE: ClassVar[Operation]
    STATS: ClassVar[Operation]
    PIDS: ClassVar[Operation]


# Not enum.Enum, which takes a command line a millisecond to load.
for _kind in (Status, Operation):
    for _name in _kind.__annotations__:
        setattr(_kind, _name, _kind(_name.lower()))

_ALREADY_RUNNING = "cannot start an already running container"
_NOT_RUNNING = "container not running"
_NOT_PAUSED = "container not paused"
_NOT_STOPPED = "cannot delete container {id} that is not stopped: {status}"
_EXEC_STOPPED = "cannot exec in a stopped container"
_EXEC_PAUSED = "cannot exec in a paused container (use --ignore-paused to override)"
_NO_STATS = "container with id {id} is not running"

_BEING_MADE = "container {id} is still being created"

_REFUSALS: dict[Operation, dict[Status, str]] = {
    Operation.START: {
        Status.CREATING: _BEING_MADE,
        Status.RUNNING: _ALREADY_RUNNING,
        Status.PAUSED: _ALREADY_RUNNING,
        Status.STOPPED: "cannot start a container that has stopped",
    },
    Operation.KILL: {Status.CREATING: _BEING_MADE, Status.STOPPED: _NOT_RUNNING},
    Operation.KILL_ALL: {Status.CREATING: _BEING_MADE},
    Operation.DELETE: {
        Status.CREATING: _BEING_MADE,
        Status.RUNNING: _NOT_STOPPED,
        Status.PAUSED: _NOT_STOPPED,
    },
    Operation.FORCE_DELETE: {},
    Operation.EXEC: {
        Status.CREATING: _BEING_MADE,
        Status.PAUSED: _EXEC_PAUSED,
        Status.STOPPED: _EXEC_STOPPED,
    },
    Operation.EXEC_IGNORE_PAUSED: {Status.CREATING: _BEING_MADE, Status.STOPPED: _EXEC_STOPPED},
    Operation.PAUSE: {
        Status.CREATING: _BEING_MADE,
        Status.PAUSED: _NOT_RUNNING,
        Status.STOPPED: _NOT_RUNNING,
    },
    Operation.RESUME: {
        Status.CREATING: _NOT_PAUSED,
        Status.CREATED: _NOT_PAUSED,
        Status.RUNNING: _NOT_PAUSED,
        Status.STOPPED: _NOT_PAUSED,
    },
    Operation.UPDATE: {Status.CREATING: _BEING_MADE, Status.STOPPED: _NOT_RUNNING},
    Operation.STATS: {Status.CREATING: _NO_STATS, Status.STOPPED: _NO_STATS},
    Operation.PIDS: {},
}

# containerd's shims answer NotFound to a signal for a process that is gone; all else is a matter of state.
_CLASSES: dict[Operation, type[ShimdError]] = {Operation.KILL: NotFound}


def refusal(operation: Operation, status: Status, container_id: str) -> str:
    """Why ``operation`` is not possible in ``status``, or ""."""
    return _REFUSALS[operation].get(status, "").format(id=container_id, status=status)


def check(operation: Operation, status: Status, container_id: str) -> None:
    """Raise FailedPrecondition (for a signal NotFound) when ``operation`` is refused in ``status``."""
    reason = refusal(operation, status, container_id)
    if reason:
        error = _CLASSES.get(operation, FailedPrecondition) if status is Status.STOPPED else FailedPrecondition
        raise error(reason)
