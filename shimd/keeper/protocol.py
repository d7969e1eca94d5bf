"""What the keeper and its clients say to each other over ``keeper.sock`` (SOCK_SEQPACKET, 0600, same euid only).

A request is the marshalled tuple (verb, *arguments) with descriptors, the answer ("ok", *results) or ("error", errno,
text). A connection has one request under way at a time: who wants several uses several connections. A connection that
said SUBSCRIBE makes no further requests and gets ("exit", *Exit) for every exit, first those that nobody has said
FORGET for.

========== ======================================================== ==============================================
verb       arguments, [descriptors]                                 results, [descriptors]
========== ======================================================== ==============================================
hello      version                                                  version, pid of the keeper
launch     name, clone, stage, steps, slots, hold, exit_file,       pid, [pidfd]
           has_cgroup, [slots…, hold…, cgroup]
hold       names, [descriptors]                                     (a name that is held already is replaced)
take       names                                                    [descriptors]; they stay held
drop       names                                                    (unknown names are ignored)
pidfd      name of a launch                                         pid, [pidfd]
list       (none)                                                   ((name, pid)…) alive, (name…) held, (Exit…)
subscribe  (none)                                                   (none)
forget     names of launches                                        (unknown names are ignored); what is held as
                                                                    "<launch>:…" is dropped, too
stop       force                                                    (none), then the keeper exits
========== ======================================================== ==============================================

The keeper answers with errno EEXIST to a launch under a name that is alive or not forgotten, ENOENT for an unknown
name, EBUSY to a stop with living children, EPROTO to what it does not understand.

A message longer than MAX_INLINE travels as the bytes of a sealed memfd, its last descriptor; the packet itself is
then empty but for a zero byte, which no marshalled tuple starts with.
"""

from __future__ import annotations

import errno
import marshal
import os
from _socket import socket
from typing import Any, NamedTuple

from shimd.linux import fdpass, memfd

VERSION = 1
SOCKET_NAME = "keeper.sock"
LOCK_NAME = "keeper.lock"
MAX_INLINE = 48 * 1024
MAX_MESSAGE = 64 * 1024 * 1024
BUFFER_SIZE = 64 * 1024

IN_MEMFD = b"\0"


class Exit(NamedTuple):
    """How a launched process ended; ``wait_status`` as from waitpid(2), ``exited_at_ns`` of the real-time clock."""

    name: str
    pid: int
    wait_status: int
    exited_at_ns: int
    utime_us: int
    stime_us: int
    maxrss_kib: int

    @property
    def code(self) -> int:
        """The exit code, or 128 + the signal's number."""
        return exit_code(self.wait_status)


def exit_code(wait_status: int) -> int:
    return 128 + os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status)


class MalformedMessage(Exception):
    """The peer sent something that is not a message of this protocol."""


def send_message(sock: socket, message: tuple[Any, ...], fds: tuple[int, ...] | list[int] = ()) -> None:
    """The descriptors stay the caller's. Raises OSError."""
    data = marshal.dumps(message)
    if len(data) <= MAX_INLINE:
        fdpass.send(sock, data, fds)
        return
    if len(data) > MAX_MESSAGE:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    big = memfd.sealed("shimd-message", data)
    try:
        fdpass.send(sock, IN_MEMFD, [*fds, big])
    finally:
        os.close(big)


def receive_message(sock: socket) -> tuple[tuple[object, ...], list[int]]:
    """((), []) at the end of the file. The descriptors are the caller's. Raises OSError, MalformedMessage."""
    data, fds = fdpass.recv(sock, BUFFER_SIZE)
    if not data:
        close_all(fds)  # an empty packet is indistinguishable from the end
        return (), []
    try:
        if data == IN_MEMFD:
            data = _read_memfd(fds)
        return load(data), fds
    except BaseException:
        close_all(fds)
        raise


def _read_memfd(fds: list[int]) -> bytes:
    if not fds:
        raise MalformedMessage("a message in a memfd without the memfd")
    fd = fds.pop()
    try:
        if os.fstat(fd).st_size > MAX_MESSAGE:
            raise MalformedMessage("message is too long")
        return memfd.read_all(fd)
    finally:
        os.close(fd)


def load(data: bytes) -> tuple[object, ...]:
    """Raises MalformedMessage unless ``data`` is one marshalled tuple."""
    try:
        message = marshal.loads(data)
    except (ValueError, EOFError, TypeError, MemoryError) as e:
        raise MalformedMessage(f"not a marshalled message: {e}") from e
    if not isinstance(message, tuple) or not message:
        raise MalformedMessage("not a tuple")
    return message


def close_all(fds: list[int]) -> None:
    """Closes and empties the list."""
    while fds:
        os.close(fds.pop())
