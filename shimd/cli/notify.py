"""NOTIFY_SOCKET: a service manager that started us waits for the container to be ready, sd_notify(3).

::

    service manager                shimrun                        the container
       │                             │ a socket in the state        │
       │                             │ directory, which is seen     │
       │                             │ there as /run/notify ───────▶│
       │◀── READY=1 ─────────────────│◀── READY=1 (and the like) ───│
       │◀── MAINPID=init ────────────│                              │
       │◀── BARRIER=1 and a pipe ────│                              │
       │ closes the pipe ───────────▶│ goes on                      │
"""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

from shimd.cli.messages import Messages
from shimd.contexts import closing
from shimd.errors import RuntimeFailure
from shimd.linux import fdpass
from shimd.runtime.model import Container
from shimd.runtime.state import NOTIFY_DIRECTORY, NOTIFY_SOCKET

_MAX_MESSAGE = 4096
_BARRIER_MS = 30_000


class Notify:
    """Owns the container's end; made between create and start."""

    def __init__(self, container: Container, host: str, messages: Messages) -> None:
        """``host`` is the manager's address. Raises RuntimeFailure when the container has no place for the socket."""
        self._host = "\0" + host[1:] if host.startswith("@") else host
        self._messages = messages
        self._socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        path = f"/proc/self/fd/{container.directory.fd}/{NOTIFY_DIRECTORY}/{NOTIFY_SOCKET}"
        try:
            self._socket.bind(path)
            os.chmod(path, 0o777)
        except OSError as error:
            self._socket.close()
            raise RuntimeFailure(f"make the notify socket of container {container.id}: {error.strerror}") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def wait(self, pid: int, pidfd: int) -> None:
        """Until the container is ready, and the manager knows ``pid``, or the process has ended."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if self._socket.fileno() in ready:
                if self.pass_on(pid):
                    return
            elif pidfd in ready:
                return

    def pass_on(self, pid: int) -> bool:
        """Whether the message that is there says READY; anything else is nobody's business. Raises RuntimeFailure."""
        lines = self._socket.recv(_MAX_MESSAGE).split(b"\n")
        ready = next((line for line in lines if line.startswith(b"READY=")), b"")
        if ready:
            self._tell(ready, pid)
        return bool(ready)

    def _tell(self, ready: bytes, pid: int) -> None:
        try:
            with closing(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)) as manager:
                manager.connect(self._host)
                manager.send(ready + b"\n")
                manager.send(f"MAINPID={pid}\n".encode())
                if not _barrier(manager):
                    self._messages.warn("no answer to the notify barrier within 30 s, going on")
        except OSError as error:
            raise RuntimeFailure(f"notify {self._host}: {error.strerror or error}") from error


def _barrier(manager: socket) -> bool:
    """Whether the manager has taken note of everything up to here: then it closes what it was sent."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            fdpass.send(manager, b"BARRIER=1", [write_end])
        finally:
            os.close(write_end)
        poller = select.poll()
        poller.register(read_end, 0)  # POLLHUP comes by itself
        return bool(poller.poll(_BARRIER_MS))
    finally:
        os.close(read_end)
