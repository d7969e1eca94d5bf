"""The states of a container and the one table that says which operation is refused in which of them.

Nothing stored is trusted: ``control.status`` derives the state each time from the freezer, ``/proc/<pid>/stat`` and
the start socket. The words of the refusals are runc's, because containerd, Docker and Podman branch on them.
"""

from __future__ import annotations

from enum import Enum

from shimd.errors import FailedPrecondition, NotFound, ShimdError


class Status(Enum):
    """The states of the OCI runtime specification and ``paused``; the value is the word of the state document."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Operation(Enum):
    START = "start"
    KILL = "kill"
    KILL_ALL = "kill all"
    DELETE = "delete"
    FORCE_DELETE = "force delete"
    EXEC = "exec"
    EXEC_IGNORE_PAUSED = "exec, paused or not"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    STATS = "stats"
    PIDS = "pids"


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
    return _REFUSALS[operation].get(status, "").format(id=container_id, status=status.value)


def check(operation: Operation, status: Status, container_id: str) -> None:
    """Raise FailedPrecondition (for a signal NotFound) when ``operation`` is refused in ``status``."""
    reason = refusal(operation, status, container_id)
    if reason:
        error = _CLASSES.get(operation, FailedPrecondition) if status is Status.STOPPED else FailedPrecondition
        raise error(reason)
