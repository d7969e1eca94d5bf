"""What the keeper holds of a process's streams, so that the process survives the daemon and its output with it.

Held are the reading ends of output pipes and the terminal: without a reader, the next write would kill the program
(SIGPIPE), and without its master a terminal hangs up. Of input, what it is read from and the writing end of the pipe:
without the one a client's next write would fail, without the other the program's input would end. Its end comes once
the keeper has dropped them, too (``drop_input``).

Names are "<launch>:stdout", and the keeper drops them when the launch is forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from shimd.errors import NotFound, Unavailable
from shimd.keeper.client import KeeperClient, Listing
from shimd.records import Record
from shimd.supervise.logger import Whose
from shimd.supervise.stdio import OpenStdio, reopen_stdio

__all__ = ["HeldStreams", "Listing", "TakenBack", "of_launch"]

_STDIN, _SOURCE, _CONSOLE = "stdin", "stdin-source", "console"
_KINDS = (_STDIN, _SOURCE, "stdout", "stderr", _CONSOLE)


class TakenBack(Record):
    """As a process just made has them; ``console`` is the terminal's master or -1. What could not be opened again is
    told in ``problem``.
    """

    opened: OpenStdio
    console: int
    problem: str


def of_launch(launch: str, opened: OpenStdio) -> tuple[tuple[str, int], ...]:
    """What the keeper is to hold from the launch on."""
    kinds = {_SOURCE: opened.input} if opened.input >= 0 else {}
    return tuple((f"{launch}:{kind}", fd) for kind, fd in (*opened.pipes.items(), *kinds.items()))


class HeldStreams:
    """Blocks, so not for the event loop's thread. Raises Unavailable without a keeper."""

    def __init__(self, keeper: KeeperClient) -> None:
        self._keeper = keeper

    def hold_console(self, launch: str, console: int) -> None:
        with suppress(Unavailable):  # nothing is held any more, then
            self._keeper.hold({f"{launch}:{_CONSOLE}": console})

    def drop_input(self, launch: str) -> None:
        """It has come to its end."""
        with suppress(Unavailable):
            self._keeper.drop(f"{launch}:{_STDIN}", f"{launch}:{_SOURCE}")

    def listing(self) -> Listing:
        return self._keeper.list()

    def take_back(
        self, launch: str, held: Iterable[str], paths: tuple[str, str, str], whose: Whose, *, input_closed: bool
    ) -> TakenBack | None:
        """The streams of a process that a former daemon has made, of which ``held`` is kept; None for nothing.
        ``input_closed``: Streams.close_stdin was called.
        """
        kinds = [kind for kind in _KINDS if f"{launch}:{kind}" in held]
        if not kinds:
            return None
        try:
            fds = dict(zip(kinds, self._keeper.take(*(f"{launch}:{kind}" for kind in kinds)), strict=True))
        except NotFound:
            return None
        console, source = fds.pop(_CONSOLE, -1), fds.pop(_SOURCE, -1)
        try:
            opened, problem = reopen_stdio(
                *paths, terminal=console >= 0, pipes=fds, source=source, input_closed=input_closed, whose=whose
            )
        except BaseException:
            for fd in (console, source, *fds.values()):
                if fd >= 0:
                    os.close(fd)
            raise
        return TakenBack(opened, console, problem)
