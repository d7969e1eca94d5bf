"""What undoes the things made so far when the next one fails."""

from __future__ import annotations

from shimd.errors import ShimdError
from shimd.typed import Callable


class Undo:
    """A stack of steps. Unlike ExitStack's, a step that fails neither stops the others nor hides the error that led
    here.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, step: Callable[[], object]) -> None:
        """``what`` completes "failed to …"."""
        self._steps.append((what, step))

    def unwind(self, error: BaseException) -> None:
        """Run all, last first; a failure becomes a note of ``error``."""
        while self._steps:
            what, step = self._steps.pop()
            try:
                step()
            except (OSError, ShimdError) as problem:
                error.add_note(f"failed to {what}: {problem}")
