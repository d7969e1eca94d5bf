"""The transition table."""

from __future__ import annotations

import pytest

from shimd.errors import FailedPrecondition, NotFound
from shimd.runtime.status import Operation, Status, check, refusal

STATUSES = [getattr(Status, name) for name in Status.__annotations__]
OPERATIONS = [getattr(Operation, name) for name in Operation.__annotations__]
ALLOWED = {
    Operation.START: {Status.CREATED},
    Operation.KILL: {Status.CREATED, Status.RUNNING, Status.PAUSED},
    Operation.KILL_ALL: {Status.CREATED, Status.RUNNING, Status.PAUSED, Status.STOPPED},
    Operation.DELETE: {Status.CREATED, Status.STOPPED},
    Operation.FORCE_DELETE: set(STATUSES),
    Operation.EXEC: {Status.CREATED, Status.RUNNING},
    Operation.EXEC_IGNORE_PAUSED: {Status.CREATED, Status.RUNNING, Status.PAUSED},
    Operation.PAUSE: {Status.CREATED, Status.RUNNING},
    Operation.RESUME: {Status.PAUSED},
    Operation.UPDATE: {Status.CREATED, Status.RUNNING, Status.PAUSED},
    Operation.STATS: {Status.CREATED, Status.RUNNING, Status.PAUSED},
    Operation.PIDS: set(STATUSES),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_allowed_in_exactly_these_states(operation: Operation) -> None:
    assert {status for status in STATUSES if not refusal(operation, status, "c")} == ALLOWED[operation]


@pytest.mark.parametrize(
    ("operation", "status", "words"),
    [
        (Operation.START, Status.RUNNING, "cannot start an already running container"),
        (Operation.START, Status.STOPPED, "cannot start a container that has stopped"),
        (Operation.DELETE, Status.RUNNING, "cannot delete container c that is not stopped: running"),
        (Operation.DELETE, Status.PAUSED, "cannot delete container c that is not stopped: paused"),
        (Operation.EXEC, Status.STOPPED, "cannot exec in a stopped container"),
        (
            Operation.EXEC,
            Status.PAUSED,
            "cannot exec in a paused container (use --ignore-paused to override)",
        ),
        (Operation.PAUSE, Status.STOPPED, "container not running"),
        (Operation.RESUME, Status.RUNNING, "container not paused"),
        (Operation.UPDATE, Status.STOPPED, "container not running"),
        (Operation.STATS, Status.STOPPED, "container with id c is not running"),
    ],
)
def test_a_refusal_has_the_words_that_clients_look_for(operation: Operation, status: Status, words: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        check(operation, status, "c")
    assert str(caught.value) == words


def test_a_signal_to_a_stopped_container_finds_nobody() -> None:
    with pytest.raises(NotFound, match="container not running"):
        check(Operation.KILL, Status.STOPPED, "c")
