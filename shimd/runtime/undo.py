"""What undoes the things made so far when the next one fails."""

from __future__ import annotations

from shimd.errors import RuntimeFailure, ShimdError, os_error_text
from shimd.typed import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from types import TracebackType


class Undo:
    """A stack of steps, carried out when the ``with`` block fails. Unlike ExitStack's, a step that fails neither stops
    the others nor hides the error that led here. An OSError becomes a RuntimeFailure: ``attempt`` failed.
    """

    def __init__(self, attempt: str) -> None:
        self._attempt = attempt
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            failure = RuntimeFailure(f"{self._attempt}: {os_error_text(error)}")
            self._unwind(failure)
            raise failure from error
        if error is not None:
            self._unwind(error)

    def push(self, what: str, step: Callable[[], object]) -> None:
        """``what`` completes "failed to …"."""
        self._steps.append((what, step))

    def _unwind(self, error: BaseException) -> None:
        """Run all, last first; a failure becomes a note of ``error``."""
        while self._steps:
            what, step = self._steps.pop()
            try:
                step()
            except (OSError, ShimdError) as problem:
                error.add_note(f"failed to {what}: {problem}")
