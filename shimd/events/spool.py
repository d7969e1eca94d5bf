"""A queue of messages that outlives the process: held in memory, with a copy in a file.

The file begins with eight bytes, the offset of the first message that was not taken yet; then come the messages, each
after its length in four bytes (all little-endian). It is emptied whenever the queue is. Nothing is synced: it has to
outlive us, not the machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections import deque

LIMIT = 8 * 1024 * 1024  # bytes of messages that wait; some 30 000 events

_OFFSET = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_COMPACT = 1024 * 1024  # bytes of messages that were taken, after which the file is written anew

_log = logging.getLogger(__name__)


class Spool:
    """First in, first out. Raises OSError when the file cannot be opened; later failures only cost the copy."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._messages = deque(_read(self._fd))
        self._size = sum(map(len, self._messages))
        self._taken = self._end = 0  # where in the file the first message begins, and the last one ends
        self._rewrite()

    def __len__(self) -> int:
        return len(self._messages)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        self.close()
        os.unlink(self._path)

    def put(self, message: bytes) -> bool:
        """False, and nothing is done, when the queue is full."""
        if self._size + len(message) > LIMIT:
            return False
        self._messages.append(message)
        self._size += len(message)
        if self._fd >= 0:
            try:
                self._write(_LENGTH.pack(len(message)) + message, self._end)
                self._end += _LENGTH.size + len(message)
            except OSError as error:
                self._give_up(error)
        return True

    def first(self) -> bytes:
        """The oldest message, which stays; raises IndexError."""
        return self._messages[0]

    def take(self) -> None:
        """Done with the first one."""
        message = self._messages.popleft()
        self._size -= len(message)
        self._taken += _LENGTH.size + len(message)
        if self._fd < 0:
            return
        try:
            if not self._messages or self._taken > max(_COMPACT, self._end // 2):
                self._rewrite()
            else:
                self._write(_OFFSET.pack(self._taken), 0)
        except OSError as error:
            self._give_up(error)

    def _rewrite(self) -> None:
        """Begin the file anew, with the messages that wait."""
        self._taken = self._end = _OFFSET.size
        if not self._messages:
            os.ftruncate(self._fd, 0)
            self._write(_OFFSET.pack(self._taken), 0)
            return
        records = b"".join(_LENGTH.pack(len(message)) + message for message in self._messages)
        temporary = f"{self._path}.new"
        os.close(self._fd)
        self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._write(_OFFSET.pack(self._taken) + records, 0)
        os.rename(temporary, self._path)
        self._end += len(records)

    def _write(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._fd, data, offset)
            data, offset = data[written:], offset + written

    def _give_up(self, error: OSError) -> None:
        """A copy with a hole would be worse than none."""
        _log.error("events that wait are kept in memory only: writing %s: %s", self._path, error)
        self.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def _read(fd: int) -> list[bytes]:
    """The messages that were not taken; what a writer that was killed has left half-written is dropped."""
    data = b""
    while chunk := os.pread(fd, 1 << 20, len(data)):
        data += chunk
    messages = []
    position = _OFFSET.unpack_from(data)[0] if len(data) >= _OFFSET.size else len(data)
    while position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        begin = position + _LENGTH.size
        position = begin + length
        if position > len(data):
            break
        messages.append(data[begin:position])
    return messages
