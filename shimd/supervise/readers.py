"""Whether the output of a dead process has reached its readers, and not just the FIFOs in between.

A client that hears of the end stops reading, some at once: containerd's ``ctr`` looks at the task once more and closes
its ends of the FIFOs with whatever is in them. Its own shim, slower than that, loses little. So an end waits to be told
until the FIFOs are empty, a matter of microseconds if somebody reads. A reader may pause for ``PAUSE_SECONDS``, also
before it begins: a client that was started with the program may be behind it. The slowest has ``HOLD_SECONDS``.

poll(2) knows no "empty", and of the readers themselves nothing is known. But the kernel reports each read(2) to
whoever watches the file, FIFOs included (inotify(7)), and each splice(2) if it is new. Of inotify instances a user has
only 128, of watches plenty: one instance serves the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence

from shimd.linux import inotify
from shimd.supervise.relay import Relay

PAUSE_SECONDS = 0.5
HOLD_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Readers:
    """Tells of reads from FIFOs. One for the daemon; belongs to its loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inotify = -1
        self._watching: dict[int, list[Callable[[], None]]] = {}
        with contextlib.suppress(OSError):  # another time, perhaps
            self._open()

    def watch(self, fd: int, was_read: Callable[[], None]) -> int:
        """Call ``was_read`` after each read from the FIFO ``fd`` by whomever. The result is for ``unwatch``.

        Raises OSError where the user's share of instances or watches is used up.
        """
        if self._inotify < 0:
            self._open()
        watch = inotify.inotify_add_watch(self._inotify, f"/proc/self/fd/{fd}", inotify.IN_ACCESS)
        # Two processes may write to one FIFO, which has one watch.
        self._watching.setdefault(watch, []).append(was_read)
        return watch

    def unwatch(self, watch: int, was_read: Callable[[], None]) -> None:
        callbacks = self._watching[watch]
        callbacks.remove(was_read)
        if not callbacks:
            del self._watching[watch]
            with contextlib.suppress(OSError):  # the kernel forgets it with the file
                inotify.inotify_rm_watch(self._inotify, watch)

    def close(self) -> None:
        if self._inotify >= 0:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def _open(self) -> None:
        self._inotify = inotify.inotify_init1()
        self._loop.add_reader(self._inotify, self._readable)

    def _readable(self) -> None:
        for watch in {watch for watch, _ in inotify.read_events(self._inotify)}:
            for was_read in tuple(self._watching.get(watch, ())):
                was_read()


class Hold:
    """Calls ``over`` once: when all ``relays`` have ended and nothing is unread, or when it has waited for long enough.
    The first may be at once. ``look`` is to be called when a relay ends.
    """

    def __init__(self, relays: Sequence[Relay], readers: Readers, over: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._relays = relays
        self._readers = readers
        self._over: Callable[[], None] | None = over
        self._watches: dict[int, int] = {}  # by our descriptor of the FIFO
        self._deadline = self._loop.time() + HOLD_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self.look()
        if self._over is not None:
            self._restart_timer()

    def look(self) -> None:
        if self._over is None:
            return
        for fd in self._unread():
            self._watch(fd)
        # Asked again, since nobody tells of what was read before the watch.
        if not self._unread() and all(relay.has_ended for relay in self._relays):
            self._finish()

    def close(self) -> None:
        """Do not call ``over`` any more. Idempotent."""
        self._over = None
        if self._timer is not None:
            self._timer.cancel()
        while self._watches:
            _, watch = self._watches.popitem()
            self._readers.unwatch(watch, self._was_read)

    def _unread(self) -> list[int]:
        return [fd for relay in self._relays if (fd := relay.unread()) >= 0]

    def _watch(self, fd: int) -> None:
        if fd not in self._watches:
            try:
                self._watches[fd] = self._readers.watch(fd, self._was_read)
            except OSError as error:
                _log.warning("an end is told late, if its output is read in time or not: %s", error)

    def _was_read(self) -> None:
        self.look()
        if self._over is not None:
            self._restart_timer()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(self._loop.time() + PAUSE_SECONDS, self._deadline), self._finish)

    def _finish(self) -> None:
        over = self._over
        self.close()
        if over is not None:
            over()
