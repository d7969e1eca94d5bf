"""Taking back what was made when the next thing fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from shimd.errors import RuntimeFailure
from shimd.runtime.undo import Undo


def make(error: BaseException | None, **steps: Callable[[], object]) -> None:
    """Make things, each with what undoes it, until the error."""
    with Undo("make all") as undo:
        for name, step in steps.items():
            undo.push(f"remove the {name}", step)
        if error is not None:
            raise error


def fail() -> None:
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def test_all_steps_run_last_first_and_failures_become_notes() -> None:
    done: list[str] = []
    error = RuntimeFailure("the cause")
    with pytest.raises(RuntimeFailure, match="the cause"):
        make(error, first=lambda: done.append("first"), second=fail, third=lambda: done.append("third"))
    assert done == ["third", "first"]
    assert error.__notes__ == ["failed to remove the second: [Errno 16] Device or resource busy"]


@pytest.mark.parametrize("path", ["/the/file", b"/the/file"])
def test_an_error_of_the_system_tells_what_was_attempted(path: str | bytes) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        make(OSError(errno.ENOENT, os.strerror(errno.ENOENT), path), thing=fail)
    assert str(caught.value) == "make all: /the/file: No such file or directory"
    assert len(caught.value.__notes__) == 1
    assert isinstance(caught.value.__cause__, OSError)


def test_nothing_is_undone_without_a_failure() -> None:
    make(None, thing=fail)


def test_an_interruption_undoes_too() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        make(KeyboardInterrupt(), thing=lambda: done.append("it"))
    assert done == ["it"]
