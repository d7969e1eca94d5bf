"""A seccomp agent as a program of its own: ``python -m tests.support.agent SOCKET``.

Prints a line of JSON for every message that comes with a listener; then answers its notifications: mkdir fails with
ENOMEDIUM, everything else goes on. SOCKET may be an abstract name, with an @.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from typing import Any

from tests.support import wait

_NOTIFICATION = struct.Struct("=QIIiI7Q")  # struct seccomp_notif
_RESPONSE = struct.Struct("=QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_MKDIR = {"x86_64": (83, 258), "aarch64": (34,)}[os.uname().machine]


class Agent:
    """The one that runs, to its user."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def message(self) -> dict[str, Any]:
        """The next one."""
        assert self._process.stdout is not None
        document: dict[str, Any] = json.loads(wait.read_until(self._process.stdout.fileno(), b"\n"))
        return document

    def end(self) -> list[dict[str, Any]]:
        """Kill it, if it lives; the messages that nobody asked for."""
        if self._process.returncode is not None:
            return []
        self._process.kill()
        rest, _ = self._process.communicate()
        return [json.loads(line) for line in rest.splitlines()]


@contextmanager
def running(path: str) -> Iterator[Agent]:
    command = [sys.executable, "-m", "tests.support.agent", path]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    agent = Agent(process)
    try:
        assert process.stdout is not None
        assert wait.read_until(process.stdout.fileno(), b"\n") == b"listening\n"
        yield agent
    finally:
        agent.end()


def _serve(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0" + path[1:] if path.startswith("@") else path)
    listener.listen()
    print("listening", flush=True)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        for fd, events in poll.poll():
            if fd == listener.fileno():
                poll.register(_accept(listener), select.POLLIN)
            elif events & select.POLLIN:
                _answer(fd)
            else:
                poll.unregister(fd)
                os.close(fd)


def _accept(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        data, fds, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        assert connection.recv(1) == b"", "more than one message on a connection"
    print(json.dumps(json.loads(data) | {"descriptors": len(fds)}), flush=True)
    return fds[0]


def _answer(fd: int) -> None:
    buffer = bytearray(_NOTIFICATION.size)
    try:
        ioctl(fd, _RECEIVE, buffer)
        number, _, _, call, *_ = _NOTIFICATION.unpack(buffer)
        verdict = (-errno.ENOMEDIUM, 0) if call in _MKDIR else (0, _CONTINUE)
        ioctl(fd, _SEND, _RESPONSE.pack(number, 0, *verdict))
    except FileNotFoundError:
        pass  # the caller is gone


if __name__ == "__main__":
    _serve(sys.argv[1])
