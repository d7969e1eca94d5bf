"""One client's connection: requests in, answers and exits out, never waiting for the client."""

from __future__ import annotations

import marshal
import select
import sys
from _socket import socket

from shimd.init.packets import MalformedMessage, close_all, receive_message, send_message
from shimd.typed import Any, Protocol

_MAX_QUEUE = 16 * 1024  # exits; one is about 100 bytes


class Watcher(Protocol):
    def watch(self, fd: int, ready: Any, events: int = ...) -> None: ...
    def forget(self, fd: int) -> None: ...


class Server(Protocol):
    def handle(self, connection: Connection, message: tuple[Any, ...], fds: list[int]) -> None:
        """Answers by ``connection.answer``, now or later; takes out of ``fds`` what it keeps."""

    def disconnected(self, connection: Connection) -> None: ...


class Connection:
    """Registers itself with the watcher and lives until the peer, or a failure to send, ends it."""

    def __init__(self, sock: socket, watcher: Watcher, server: Server) -> None:
        self._sock = sock
        self._watcher = watcher
        self._server = server
        self._queue: list[bytes] = []
        self.open = True
        watcher.watch(sock.fileno(), self._ready)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._watcher.forget(self._sock.fileno())
            self._sock.close()
            self._server.disconnected(self)

    def suspend(self) -> None:
        """Take no request until the answer to this one."""
        self._watcher.watch(self._sock.fileno(), self._ready, 0)

    def answer(self, message: tuple[Any, ...], fds: list[int]) -> None:
        """The descriptors stay the caller's. Dropped when the client is gone, or reads so little that its socket is
        full.
        """
        if not self.open:
            return
        try:
            send_message(self._sock, message, fds)
        except OSError as e:
            print(f"keeper: answer a client: {e}", file=sys.stderr, flush=True)
            self.close()
            return
        self._resume()

    def push(self, message: tuple[Any, ...]) -> None:
        """Send, or queue, what the client did not ask for right now."""
        if len(self._queue) >= _MAX_QUEUE:
            self.close()
        elif self.open:
            self._queue.append(marshal.dumps(message))
            self._flush()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLIN:
            self._receive()
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self.close()
        if self.open and events & select.EPOLLOUT:
            self._flush()

    def _receive(self) -> None:
        try:
            message, fds = receive_message(self._sock)
        except BlockingIOError:
            return
        except ConnectionResetError:  # closed with something of ours unread
            self.close()
            return
        except (OSError, MalformedMessage) as e:
            print(f"keeper: message of a client: {e}", file=sys.stderr, flush=True)
            self.close()
            return
        if not message:
            self.close()
            return
        try:
            self._server.handle(self, message, fds)
        finally:
            close_all(fds)

    def _flush(self) -> None:
        sent = 0
        try:
            for data in self._queue:
                self._sock.send(data)
                sent += 1
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        del self._queue[:sent]
        self._resume()

    def _resume(self) -> None:
        events = select.EPOLLIN | select.EPOLLOUT if self._queue else select.EPOLLIN
        self._watcher.watch(self._sock.fileno(), self._ready, events)
