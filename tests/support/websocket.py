"""A WebSocket client (RFC 6455) of the streaming server behind CRI's Exec, Attach and PortForward.

Each message is one byte, the channel, then data (protocol v4.channel.k8s.io). For exec and attach 0 to 2 are the
standard streams, 3 is how it ended, 4 the size of the window; a forwarded port has one for data and one for errors.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.support import wait

STDIN, STDOUT, STDERR, END, RESIZE = range(5)

_BINARY, _CLOSE, _PING = 2, 8, 9
_FINAL, _MASKED = 0x80, 0x80


class Channels:
    """Of a connection to ``url``, as Exec and its like answer it. Use as a context manager."""

    def __init__(self, url: str, query: str = "") -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), wait.SECONDS)
        self._buffer = b""
        self._unread: dict[int, bytes] = {}
        try:
            self._upgrade(parts.netloc, f"{parts.path}?{query}")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Channels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _upgrade(self, host: str, target: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n"
            f"Sec-WebSocket-Key: {key}\r\nOrigin: http://{host}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head.decode(errors="replace")

    def send(self, channel: int, data: bytes) -> None:
        """The mask of zeros that a client's message needs changes nothing in it."""
        payload = bytes((channel,)) + data
        assert len(payload) < 126, "no need for long messages so far"
        self._socket.sendall(bytes((_FINAL | _BINARY, _MASKED | len(payload), 0, 0, 0, 0)) + payload)

    def until(self, channel: int, marker: bytes) -> bytes:
        """What came on ``channel`` up to and with the marker."""
        while marker not in self._unread.get(channel, b""):
            assert self._receive(), f"ended without {marker!r}: {self._unread}"
        found, _, self._unread[channel] = self._unread[channel].partition(marker)
        return found + marker

    def rest(self) -> dict[int, bytes]:
        """By channel, what comes until the other side closes."""
        while self._receive():
            pass
        return self._unread

    def _receive(self) -> bool:
        """One message; False at the end."""
        kind, payload = self._frame()
        if kind == _CLOSE:
            return False
        if kind != _PING and len(payload) > 1:
            self._unread[payload[0]] = self._unread.get(payload[0], b"") + payload[1:]
        return True

    def _frame(self) -> tuple[int, bytes]:
        kind, size = self._take(2)
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return kind & 0xF, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _fill(self) -> None:
        chunk = self._socket.recv(65536)
        assert chunk, "the server closed the connection in the middle of a message"
        self._buffer += chunk


def exit_code(end: bytes) -> int:
    """From the message on the channel END."""
    status: dict[str, Any] = json.loads(end)
    if status["status"] == "Success":
        return 0
    causes = {cause["reason"]: cause["message"] for cause in status["details"]["causes"]}
    return int(causes["ExitCode"])
