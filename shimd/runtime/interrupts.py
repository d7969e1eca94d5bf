"""Signals that make a command line undo what it has done: they become an exception, but not at a moment when that would
lose sight of a process that was just made.
"""

from __future__ import annotations

from shimd.linux.signals import signal

_held = 0
_waiting = 0


def unwind_on_signals() -> None:
    """From now on SIGHUP, SIGINT and SIGTERM raise SystemExit. In the main thread; what is ignored stays so."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


class held_back:
    """In the block the exception waits for its end."""

    def __enter__(self) -> None:
        global _held
        _held += 1

    def __exit__(self, *_: object) -> None:
        global _held, _waiting
        _held -= 1
        if _waiting and not _held:
            number, _waiting = _waiting, 0
            _leave(number)


def _leave(number: int, _: object = None) -> None:
    global _waiting
    if _held:
        _waiting = number
    else:
        raise SystemExit(128 + number)
