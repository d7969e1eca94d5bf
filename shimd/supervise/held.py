"""What the keeper holds of a process's streams, so that the process survives the daemon and its output with it.

Held are the reading ends of output pipes and the terminal: without a reader, the next write would kill the program
(SIGPIPE), and without its master a terminal hangs up. The writing end of an input pipe is not: held by another
process, it would keep the end of input from the program. So a restart of the daemon ends input, except a terminal's.

Names are "<launch>:stdout", and the keeper drops them when the launch is forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from shimd.errors import NotFound
from shimd.keeper.client import KeeperClient
from shimd.records import Record
from shimd.supervise.logger import Whose
from shimd.supervise.stdio import OpenStdio, reopen_stdio

_OUTPUTS = ("stdout", "stderr")
_CONSOLE = "console"


class TakenBack(Record):
    """As a process just made has them; ``console`` is the terminal's master or -1. What could not be opened again is
    told in ``problem``.
    """

    opened: OpenStdio
    console: int
    problem: str


def of_launch(launch: str, opened: OpenStdio) -> tuple[tuple[str, int], ...]:
    """What the keeper is to hold from the launch on."""
    return tuple((f"{launch}:{name}", opened.pipes[name]) for name in _OUTPUTS if name in opened.pipes)


class HeldStreams:
    """Blocks, so not for the event loop's thread. Raises Unavailable without a keeper."""

    def __init__(self, keeper: KeeperClient) -> None:
        self._keeper = keeper

    def hold_console(self, launch: str, console: int) -> None:
        self._keeper.hold({f"{launch}:{_CONSOLE}": console})

    def names(self) -> frozenset[str]:
        return frozenset(self._keeper.list().held)

    def take_back(
        self, launch: str, held: Iterable[str], paths: tuple[str, str, str], whose: Whose
    ) -> TakenBack | None:
        """The streams of a process that a former daemon has made, of which ``held`` is kept; None for nothing."""
        kinds = [kind for kind in (*_OUTPUTS, _CONSOLE) if f"{launch}:{kind}" in held]
        if not kinds:
            return None
        try:
            fds = dict(zip(kinds, self._keeper.take(*(f"{launch}:{kind}" for kind in kinds)), strict=True))
        except NotFound:
            return None
        console = fds.pop(_CONSOLE, -1)
        try:
            opened, problem = reopen_stdio(*paths, terminal=console >= 0, pipes=fds, whose=whose)
        except BaseException:
            for fd in (console, *fds.values()):
                if fd >= 0:
                    os.close(fd)
            raise
        return TakenBack(opened, console, problem)
