"""Taking back what was made when the next thing fails."""

from __future__ import annotations

from shimd.errors import RuntimeFailure
from shimd.runtime.undo import Undo


def test_all_steps_run_last_first_and_failures_become_notes() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError(16, "Device or resource busy")

    undo = Undo()
    undo.push("remove the first", lambda: done.append("first"))
    undo.push("remove the second", fail)
    undo.push("remove the third", lambda: done.append("third"))
    error = RuntimeFailure("the cause")
    undo.unwind(error)
    assert done == ["third", "first"]
    assert error.__notes__ == ["failed to remove the second: [Errno 16] Device or resource busy"]
    undo.unwind(error)
    assert done == ["third", "first"]
