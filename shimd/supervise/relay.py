"""Move bytes from one descriptor to another on the event loop, with the target's fullness as the source's brake.

``SpliceRelay`` serves pipe to FIFO and back: the bytes never enter this process (splice(2)). ``CopyRelay`` serves the
rest (a terminal cannot be spliced from, a file opened for appending cannot be spliced to) and holds at most one chunk;
``FileRelay`` reads a regular file, which no event loop can wait for. All own their two descriptors, which are
non-blocking, and close them when they end: at the end of the source, when the reader of the target is gone, or on
``close``.

Only the end of the source is sure to be the end: but a process may leave children that keep its output open, for
hours. ``expire`` says that the process is dead. Whatever it wrote is in the source by then, so the first moment
that the source is empty is the moment when everything is delivered.

Delivered to a FIFO is not yet read: ``unread`` tells. At the end of the source its writing end is closed, so that its
readers learn of the end, but a reading end is kept as long as there is something in it to ask for.

A pipe of 256 KiB carries twice as much as one of 64 KiB: the three processes wake each other less often. But a user's
pipes share a budget (64 MiB, pipe(7)), and beyond it every new pipe of the user has two pages only, also in containers
with the same uid. So a pipe grows once it was seen to carry much, and few are grown at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable

from shimd.linux import pipe

CHUNK = 64 * 1024

GROWN_SIZE = 256 * 1024
GROW_AFTER = 1024 * 1024  # bytes
GROWN_AT_ONCE = 32  # 8 MiB of the 64

_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
# The other side of a terminal that nobody has open any more reads as EIO, of a pipe nobody reads as EPIPE.
_ENDS = (errno.EIO, errno.EPIPE)
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


class Relay:
    """The loop's side of all: waits for one descriptor at a time."""

    __slots__ = (
        "_ended", "_expired", "_loop", "_rest", "_source", "_target", "_tells_unread", "_waits_for_target",
    )  # fmt: skip

    def __init__(self, source: int, target: int, ended: Callable[[], None], *, tells_unread: bool = False) -> None:
        """``ended`` is called once: at the end, with both descriptors closed, or earlier as ``expire`` says.
        ``tells_unread``: the target is a FIFO or pipe, and somebody will ask.
        """
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._target = target
        self._tells_unread = tells_unread
        self._rest = -1  # a reading end, of a target that was not empty at the end
        self._ended: Callable[[], None] | None = ended
        self._expired = False
        self._waits_for_target = False
        self._loop.add_reader(source, self._move)

    @property
    def has_ended(self) -> bool:
        """Whether ``ended`` was called."""
        return self._ended is None

    def unread(self) -> int:
        """A descriptor of the target, ours, if its readers have not taken all that is in it; else -1."""
        fd = self._target if self._target >= 0 else self._rest
        return fd if self._tells_unread and fd >= 0 and pipe.bytes_available(fd) else -1

    def expire(self) -> None:
        """Call ``ended`` as soon as what is in the source is delivered, even if others have it open; it goes on for
        those. Idempotent.
        """
        if self._source >= 0 and not self._expired:
            self._expired = True
            self._look_again()

    def close(self) -> None:
        """Stop at once; what was not delivered is lost. Idempotent."""
        self._stop()
        if self._rest >= 0:
            os.close(self._rest)
            self._rest = -1

    def _finish(self) -> None:
        """The source has come to its end."""
        if (target := self.unread()) >= 0:
            # Without a descriptor to spare, nobody can ask any more.
            with contextlib.suppress(OSError):
                self._rest = os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stop()

    def _stop(self) -> None:
        if self._source < 0:
            return
        if self._waits_for_target:
            self._loop.remove_writer(self._target)
        else:
            self._loop.remove_reader(self._source)
        os.close(self._source)
        os.close(self._target)
        self._source = self._target = -1
        self._report_end()

    def _move(self) -> None:
        raise NotImplementedError

    def _fail(self, error: OSError) -> None:
        if error.errno not in _ENDS:
            _log.error("relay of standard streams ended: %s", error)
        self._finish()

    def _report_end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    def _wait_for_target(self) -> None:
        if not self._waits_for_target:
            self._waits_for_target = True
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._move)

    def _wait_for_source(self, *, empty: bool = False) -> None:
        if self._waits_for_target:
            self._waits_for_target = False
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._move)
        if self._expired:
            if empty:
                self._report_end()
            else:
                self._look_again()

    def _look_again(self) -> None:
        """An empty source is no event that the loop could wait for."""
        if self._ended is not None and not self._waits_for_target:
            self._loop.call_soon(self._move_if_open)

    def _move_if_open(self) -> None:
        if self._source >= 0 and not self._waits_for_target:
            self._move()


class SpliceRelay(Relay):
    """Both descriptors are pipes or FIFOs."""

    __slots__ = ("_grown", "_may_grow", "_moved")

    _grown_now = 0  # of all

    def __init__(
        self,
        source: int,
        target: int,
        ended: Callable[[], None],
        *,
        tells_unread: bool = False,
        may_grow: bool = False,
    ) -> None:
        """``may_grow``: the source is a pipe of our own."""
        super().__init__(source, target, ended, tells_unread=tells_unread)
        self._moved = 0  # bytes
        self._may_grow = may_grow
        self._grown = False

    def _stop(self) -> None:
        super()._stop()
        if self._grown:
            self._grown = False
            SpliceRelay._grown_now -= 1

    def _move(self) -> None:
        try:
            moved = os.splice(self._source, self._target, GROWN_SIZE, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            # EAGAIN does not say which of the two was not ready.
            if pipe.bytes_available(self._source):
                self._wait_for_target()
            else:
                self._wait_for_source(empty=True)
            return
        except OSError as error:
            self._fail(error)
            return
        if moved == 0:
            self._finish()
            return
        self._moved += moved
        if self._may_grow and self._moved > GROW_AFTER:
            self._grow()
        self._wait_for_source()

    def _grow(self) -> None:
        self._may_grow = False
        if SpliceRelay._grown_now < GROWN_AT_ONCE:
            self._grown = True
            SpliceRelay._grown_now += 1
            pipe.set_pipe_size(self._source, GROWN_SIZE)


class CopyRelay(Relay):
    """Any two descriptors that can be waited for; a regular file as target never makes it wait."""

    __slots__ = ("_chunk",)

    def __init__(self, source: int, target: int, ended: Callable[[], None], *, tells_unread: bool = False) -> None:
        self._chunk = b""
        super().__init__(source, target, ended, tells_unread=tells_unread)

    def _move(self) -> None:
        if not self._chunk:
            try:
                self._chunk = os.read(self._source, CHUNK)
            except BlockingIOError:
                self._wait_for_source(empty=True)
                return
            except OSError as error:
                self._fail(error)
                return
            if not self._chunk:
                self._finish()
                return
        self._write()

    def _write(self) -> None:
        try:
            written = os.write(self._target, self._chunk)
            self._chunk = self._chunk[written:]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _FULL_DISK:
                self._fail(error)
                return
            # A program must not die of a full disk under its log.
            self._chunk = b""
        if self._chunk:
            self._wait_for_target()
        else:
            self._wait_for_source()


class FileRelay(CopyRelay):
    """The source is a regular file, which is always readable: only the target makes it wait."""

    __slots__ = ()

    def __init__(self, source: int, target: int, ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._target = target
        self._tells_unread = False
        self._rest = -1
        self._ended = ended
        self._expired = False
        self._chunk = b""
        self._waits_for_target = True
        self._loop.add_writer(target, self._move)

    def _wait_for_source(self, *, empty: bool = False) -> None:
        pass
