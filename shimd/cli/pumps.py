"""Bytes from one descriptor to another, by poll(2), so that several streams and an end can be waited for at once."""

from __future__ import annotations

import os
import select

_CHUNK = 64 << 10
# poll(2) promises room for no more in a pipe. The descriptor is shared with others, so it cannot be made non-blocking.
_PORTION = select.PIPE_BUF


class Pump:
    """``owned`` are closed in the end: what the container sees as the end of the stream, or as nobody reading."""

    def __init__(self, source: int, target: int, *owned: int) -> None:
        self.source = source
        self.target = target
        self._owned = owned
        self._data = b""
        self.ended = False

    @property
    def has_data(self) -> bool:
        """That the target has not taken yet."""
        return bool(self._data)

    def interest(self) -> tuple[int, int]:
        """What to poll for before ``step``."""
        return (self.target, select.POLLOUT) if self._data else (self.source, select.POLLIN)

    def step(self) -> None:
        """Raises nothing: a stream that fails is one that has ended."""
        try:
            if self._data:
                self._data = self._data[os.write(self.target, self._data[:_PORTION]) :]
                return
            self._data = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # hung up, nobody reads, no space left: for the stream they are the same
            self._data = b""
        if not self._data:
            self.end()

    def end(self) -> None:
        """Idempotent."""
        if not self.ended:
            self.ended = True
            for fd in self._owned:
                os.close(fd)
