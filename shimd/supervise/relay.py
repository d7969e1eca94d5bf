"""Move bytes from one descriptor to another on the event loop, with the target's fullness as the source's brake.

``SpliceRelay`` serves pipe to FIFO and back: the bytes never enter this process (splice(2)). ``CopyRelay`` serves the
rest (a terminal cannot be spliced from, a file opened for appending cannot be spliced to) and holds at most one chunk.
Both own their two descriptors, which are non-blocking, and close them when they end: at the end of the source, when
the reader of the target is gone, or on ``close``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable

CHUNK = 64 * 1024

_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
# The other side of a terminal that nobody has open any more reads as EIO, of a pipe nobody reads as EPIPE.
_ENDS = (errno.EIO, errno.EPIPE)
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


class Relay:
    """The loop's side of both: waits for one descriptor at a time."""

    __slots__ = ("_ended", "_loop", "_source", "_target", "_waits_for_target")

    def __init__(self, source: int, target: int, ended: Callable[[], None]) -> None:
        """``ended`` is called once, when everything is delivered and both descriptors are closed."""
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._target = target
        self._ended = ended
        self._waits_for_target = False
        self._loop.add_reader(source, self._move)

    def close(self) -> None:
        """Stop at once; what was not delivered is lost. Idempotent."""
        if self._source < 0:
            return
        if self._waits_for_target:
            self._loop.remove_writer(self._target)
        else:
            self._loop.remove_reader(self._source)
        os.close(self._source)
        os.close(self._target)
        self._source = self._target = -1
        self._ended()

    def _move(self) -> None:
        raise NotImplementedError

    def _fail(self, error: OSError) -> None:
        if error.errno not in _ENDS:
            _log.error("relay of standard streams ended: %s", error)
        self.close()

    def _wait_for_target(self) -> None:
        if not self._waits_for_target:
            self._waits_for_target = True
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._move)

    def _wait_for_source(self) -> None:
        if self._waits_for_target:
            self._waits_for_target = False
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._move)


class SpliceRelay(Relay):
    """Both descriptors are pipes or FIFOs."""

    __slots__ = ()

    def _move(self) -> None:
        try:
            moved = os.splice(self._source, self._target, CHUNK, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            # EAGAIN does not say which of the two was not ready: the one that was not just announced.
            if self._waits_for_target:
                self._wait_for_source()
            else:
                self._wait_for_target()
            return
        except OSError as error:
            self._fail(error)
            return
        if moved == 0:
            self.close()
        else:
            self._wait_for_source()


class CopyRelay(Relay):
    """Any two descriptors; a regular file as target never makes it wait."""

    __slots__ = ("_rest",)

    def __init__(self, source: int, target: int, ended: Callable[[], None]) -> None:
        self._rest = b""
        super().__init__(source, target, ended)

    def _move(self) -> None:
        try:
            if not self._rest:
                self._rest = os.read(self._source, CHUNK)
                if not self._rest:
                    self.close()
                    return
            self._rest = self._rest[os.write(self._target, self._rest) :]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _FULL_DISK:
                self._fail(error)
                return
            # A program must not die of a full disk under its log.
            self._rest = b""
        if self._rest:
            self._wait_for_target()
        else:
            self._wait_for_source()
