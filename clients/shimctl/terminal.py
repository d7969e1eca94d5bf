"""The caller's terminal and standard input while a program of a container is attached to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import termios
import tty
from collections.abc import AsyncIterator, Iterator

CHUNK = 64 * 1024


@contextlib.contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """The terminal passes every byte through; its old settings come back whatever ends the block (termios(3))."""
    saved = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        # Without waiting for the output to drain: a terminal that nobody reads from would hold us for ever.
        with contextlib.suppress(termios.error):  # it was hung up
            termios.tcsetattr(fd, termios.TCSANOW, saved)


def window_size() -> tuple[int, int]:
    """(columns, rows) of the first of stdout, stdin, stderr that is a terminal; (0, 0) without one."""
    for fd in (1, 0, 2):
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            return columns, rows
    return 0, 0


async def chunks(fd: int) -> AsyncIterator[bytes]:
    """What can be read from ``fd``, as it comes, until end of file. Raises OSError: EIO when a terminal was hung up."""
    loop = asyncio.get_running_loop()
    pollable = _pollable(loop, fd)
    while True:
        if pollable:
            await _readable(loop, fd)
        data = os.read(fd, CHUNK)
        if not data:
            return
        yield data


def _pollable(loop: asyncio.AbstractEventLoop, fd: int) -> bool:
    """Regular files and /dev/null cannot be polled (EPERM from epoll_ctl(2)), and never block either."""
    try:
        loop.add_reader(fd, lambda: None)
    except PermissionError:
        return False
    loop.remove_reader(fd)
    return True


async def _readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def write_all(fd: int, data: bytes) -> None:
    """Blocks: a slow reader of ours slows the container, nothing is buffered without bound."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait_writable(fd)


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


class DetachKeys:
    """Finds the key sequence that detaches (docker's ctrl-p ctrl-q) in what is typed."""

    def __init__(self, sequence: bytes = b"\x10\x11") -> None:
        self._sequence = sequence
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes to pass on, whether the sequence is complete)."""
        out = bytearray()
        for byte in data:
            if byte == self._sequence[self._matched]:
                self._matched += 1
                if self._matched == len(self._sequence):
                    return bytes(out), True
                continue
            out += self._sequence[: self._matched]
            self._matched = 0
            if byte == self._sequence[0]:
                self._matched = 1
            else:
                out.append(byte)
        return bytes(out), False
