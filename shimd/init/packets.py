"""Marshalled tuples with descriptors over SOCK_SEQPACKET, among processes that trust each other: the keeper, its
clients, its spares.

A message longer than MAX_INLINE travels as the bytes of a sealed memfd, its last descriptor; the packet itself is
then a zero byte, which no marshalled tuple starts with.
"""

from __future__ import annotations

import errno
import marshal
import os
from _socket import socket

from shimd.linux import fdpass, memfd
from shimd.typed import Any

MAX_INLINE = 48 * 1024
MAX_MESSAGE = 64 * 1024 * 1024
BUFFER_SIZE = 64 * 1024

IN_MEMFD = b"\0"


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
