"""Exits of processes, brought to who waits for them: pushed by the keeper, or found through a pidfd without it.

A name is expected before its process is launched, so an exit cannot be too early; each is delivered once. Only the
keeper (the parent) knows exit codes in general. When it is gone, a pidfd still tells that a process ended, and from
Linux 6.15 on how (PIDFD_GET_INFO, pidfd_open(2)).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from _socket import socket
from collections.abc import Callable

from shimd.keeper.client import Exit, KeeperClient, read_exit_file, read_exits
from shimd.linux.process import pidfd_exit_status

__all__ = ["UNKNOWN_STATUS", "Exit", "Exits", "recorded_exit"]

UNKNOWN_STATUS = 255 << 8  # as waitpid(2): exited with 255, containerd's word for "nobody knows"

# Nothing announces a reaping, so it is looked for a few times.
_REAP_CHECKS = 20
_REAP_INTERVAL = 0.05  # seconds

_log = logging.getLogger(__name__)


recorded_exit = read_exit_file


class Exits:
    """Belongs to the event loop's thread; ``lost`` is called when the keeper goes away."""

    def __init__(self, keeper: KeeperClient, lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._keeper = keeper
        self._lost = lost
        self._subscription: socket | None = None
        self._expected: dict[str, Callable[[Exit], None]] = {}
        self._watched: dict[str, int] = {}

    def subscribe(self) -> None:
        """Begin to receive; exits that the keeper still remembers come first. Raises Unavailable."""
        self._subscription = self._keeper.subscribe()
        self._loop.add_reader(self._subscription.fileno(), self._readable)

    def close(self) -> None:
        if self._subscription is not None:
            self._loop.remove_reader(self._subscription.fileno())
            self._subscription.close()
            self._subscription = None
        for name in tuple(self._watched):
            self._unwatch(name)

    def expect(self, name: str, callback: Callable[[Exit], None]) -> None:
        self._expected[name] = callback

    def unexpect(self, name: str) -> None:
        self._expected.pop(name, None)
        self._unwatch(name)

    def deliver(self, exit_: Exit) -> None:
        """Call who expects it; an exit that nobody expects belongs to a launch that failed."""
        callback = self._expected.pop(exit_.name, None)
        self._unwatch(exit_.name)
        if callback is not None:
            callback(exit_)

    def watch(self, name: str, pid: int, pidfd: int, exit_file: str) -> None:
        """Deliver the exit of a process that no keeper reports any more; ``pidfd`` stays the caller's."""
        self._unwatch(name)
        pidfd = os.dup(pidfd)
        self._watched[name] = pidfd
        self._loop.add_reader(pidfd, self._ended, name, pid, pidfd, exit_file, _REAP_CHECKS)

    def _ended(self, name: str, pid: int, pidfd: int, exit_file: str, checks: int) -> None:
        """The process is a zombie; its status can be had once its new parent, process 1, has reaped it."""
        if self._watched.get(name) != pidfd:
            return
        recorded = read_exit_file(exit_file)
        status = pidfd_exit_status(pidfd)
        if recorded is None and status is None and checks:
            self._loop.remove_reader(pidfd)
            self._loop.call_later(_REAP_INTERVAL, self._ended, name, pid, pidfd, exit_file, checks - 1)
            return
        if recorded is None:
            if status is None:
                _log.warning("how process %d ended is unknown: its parent, the keeper, was gone", pid)
            recorded = Exit(name, pid, UNKNOWN_STATUS if status is None else status, time.time_ns(), 0, 0, 0)
        self.deliver(recorded._replace(name=name))

    def _unwatch(self, name: str) -> None:
        pidfd = self._watched.pop(name, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def _readable(self) -> None:
        assert self._subscription is not None
        exits = read_exits(self._subscription)
        if exits is None:
            self.close()
            self._lost()
            return
        for exit_ in exits:
            self.deliver(exit_)
