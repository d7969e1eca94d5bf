"""A signal that ends us in the middle of making something must not leave that behind, half made."""

from __future__ import annotations

from shimd.linux.signals import signal
from shimd.typed import NoReturn


def unwind_on_signals() -> None:
    """Signals that ask for an end become an exception, which undoes what has been done."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)
