"""The streams of a process whose output nobody but us reads: handed to whoever is attached, kept a little otherwise.

While somebody is attached, output is read as fast as the slowest of them takes it. While nobody is, the last
``KEPT_BYTES`` are kept for the next one and older ones dropped, so that a process never hangs for want of a client;
how much was dropped is told. A process that runs for a client who is about to attach loses nothing: until then its
output stays in the pipe.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import AsyncIterator, Callable

from shimd.linux import pipe
from shimd.records import Record

CHUNK = 64 * 1024
KEPT_BYTES = 64 * 1024

STDOUT = 0
STDERR = 1

_QUEUE = 4  # chunks on their way to one client
_KEPT_CHUNKS = 256
_MERGED = 4096  # bytes up to which small chunks of one stream are put together


class Chunk(Record):
    stream: int
    data: bytes
    dropped: int = 0  # bytes lost before these


class AttachPoint:
    """Owns the reading ends in ``outputs`` (descriptor by stream) and the writing end ``stdin`` (or -1)."""

    def __init__(
        self, outputs: dict[int, int], stdin: int, ended: Callable[[], None], *, followed: bool = False
    ) -> None:
        """``ended`` is called when all outputs have come to their end and were taken. ``followed``: nothing is read
        before the first client is there.
        """
        self._loop = asyncio.get_running_loop()
        self._outputs = {fd: stream for stream, fd in outputs.items()}
        self._stdin = stdin
        self._stdin_ready = asyncio.Event()
        self._stdin_lock = asyncio.Lock()  # one client writes at a time: the loop knows one callback per descriptor
        self._ended = ended
        self._clients: set[Attachment] = set()
        self._kept: deque[Chunk] = deque()
        self._kept_bytes = 0
        self._dropped = 0
        self._reading = False
        self._finished = False
        self._left: dict[int, int] | None = None  # bytes still to be taken from each output, once the process is dead
        self._awaits_client = followed
        if not followed:
            self._resume()

    def attach(self) -> Attachment:
        """A new client; it gets what was kept first."""
        client = Attachment(self)
        client.chunks.extend(self._kept)
        if client.chunks and self._dropped:
            client.chunks[0] = client.chunks[0]._replace(dropped=self._dropped)
        self._kept.clear()
        self._kept_bytes = self._dropped = 0
        client.at_end = self._finished or not self._outputs
        self._clients.add(client)
        self._awaits_client = False
        self.taken()
        return client

    def detach(self, client: Attachment) -> None:
        self._clients.discard(client)
        self.taken()

    def taken(self) -> None:
        """A client has room again, or is gone."""
        if self._awaits_client:
            return
        if not self._reading and self._outputs and all(len(c.chunks) < _QUEUE for c in self._clients):
            self._resume()
            self._sweep()

    def expire(self) -> None:
        """The process is dead: end the outputs that others hold open, after what is in them by now."""
        self._left = {fd: pipe.bytes_available(fd) for fd in self._outputs}
        self._sweep()

    async def write_stdin(self, data: bytes) -> None:
        """Returns when the pipe has taken all; what the process does not want to read any more is dropped."""
        async with self._stdin_lock:
            while data and self._stdin >= 0:
                try:
                    data = data[os.write(self._stdin, data) :]
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    if error.errno not in (errno.EPIPE, errno.EIO):
                        raise
                    self.close_stdin()

    def close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._stdin_ready.set()

    def close(self) -> None:
        """Give up what is still unread. Idempotent."""
        self.close_stdin()
        self._pause()
        for fd in tuple(self._outputs):
            os.close(fd)
        self._outputs.clear()
        self._finish()

    async def _writable(self) -> None:
        self._stdin_ready.clear()
        self._loop.add_writer(self._stdin, self._stdin_ready.set)
        try:
            await self._stdin_ready.wait()
        finally:
            if self._stdin >= 0:
                self._loop.remove_writer(self._stdin)

    def _resume(self) -> None:
        self._reading = True
        for fd in self._outputs:
            self._loop.add_reader(fd, self._read, fd)

    def _pause(self) -> None:
        self._reading = False
        for fd in self._outputs:
            self._loop.remove_reader(fd)

    def _sweep(self) -> None:
        while self._left is not None and self._reading and self._outputs:
            for fd in tuple(self._outputs):
                if self._reading:
                    self._read(fd)

    def _read(self, fd: int) -> None:
        left = CHUNK if self._left is None else self._left[fd]
        try:
            data = os.read(fd, min(left, CHUNK)) if left else b""
        except BlockingIOError:
            if self._left is None:
                return
            data = b""
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # a terminal that no process has open any more
        if data:
            if self._left is not None:
                self._left[fd] -= len(data)
            self._hand_out(Chunk(self._outputs[fd], data))
            return
        self._loop.remove_reader(fd)
        os.close(fd)
        del self._outputs[fd]
        if not self._outputs:
            self._finish()

    def _hand_out(self, chunk: Chunk) -> None:
        if not self._clients:
            self._keep(chunk)
            return
        for client in self._clients:
            client.put(chunk)
        if any(len(c.chunks) >= _QUEUE for c in self._clients):
            self._pause()

    def _keep(self, chunk: Chunk) -> None:
        self._kept_bytes += len(chunk.data)
        last = self._kept[-1] if self._kept else None
        if last is not None and last.stream == chunk.stream and len(last.data) + len(chunk.data) <= _MERGED:
            self._kept[-1] = last._replace(data=last.data + chunk.data)
        else:
            self._kept.append(chunk)
        # The number counts as well: a chunk of one byte takes a hundred times as much memory.
        while self._kept_bytes > KEPT_BYTES or len(self._kept) > _KEPT_CHUNKS:
            oldest = self._kept.popleft()
            surplus = len(oldest.data)
            if len(self._kept) < _KEPT_CHUNKS:
                surplus = min(self._kept_bytes - KEPT_BYTES, surplus)
            self._kept_bytes -= surplus
            self._dropped += surplus
            if surplus < len(oldest.data):
                self._kept.appendleft(oldest._replace(data=oldest.data[surplus:]))

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        self.close_stdin()
        for client in self._clients:
            client.end()
        self._ended()


class Attachment:
    """One client: an asynchronous iterator over chunks."""

    __slots__ = ("_point", "_waiter", "at_end", "chunks")

    def __init__(self, point: AttachPoint) -> None:
        self._point = point
        self._waiter: asyncio.Future[None] | None = None
        self.chunks: deque[Chunk] = deque()
        self.at_end = False

    def put(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._wake()

    def end(self) -> None:
        self.at_end = True
        self._wake()

    def close(self) -> None:
        self._point.detach(self)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            while self.chunks:
                yield self.chunks.popleft()
                self._point.taken()
            if self.at_end:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
