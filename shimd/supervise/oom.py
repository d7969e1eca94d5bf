"""OOM kills in one container's cgroup, told on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shimd.cgroups.oom import Watch

__all__ = ["OomWatcher", "Watch"]


class OomWatcher:
    """Owns ``watch``; ``killed`` is called for each batch of kills."""

    __slots__ = ("_killed", "_loop", "_watch")

    def __init__(self, watch: Watch, killed: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._watch = watch
        self._killed = killed
        self._loop.add_reader(watch.fileno(), self.check)

    def check(self, *, by_kill: bool = False) -> None:
        """Look now: before an exit is reported, so that the kill is told before its consequence (``by_kill``: it is the
        end of the container's first process by SIGKILL), and before a signal is sent, whose effect is no OOM kill.
        """
        if self._watch.fileno() >= 0 and (self._watch.consume() or (by_kill and self._watch.is_suspect())):
            self._killed()

    def close(self) -> None:
        """Idempotent."""
        if self._watch.fileno() >= 0:
            self._loop.remove_reader(self._watch.fileno())
            self._watch.close()
