"""Descriptors over unix sockets (SCM_RIGHTS, unix(7)); received ones are close-on-exec."""

from __future__ import annotations

import errno
import os
import struct
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET, socket

from shimd.typed import Sequence

MAX_FDS = 253  # SCM_MAX_FD of the kernel

_INT = struct.calcsize("=i")


def send(sock: socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """One message with its descriptors. ``data`` is not empty on a stream socket: descriptors need a byte to travel
    with.
    """
    ancillary = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
    sent = sock.sendmsg([data], ancillary, MSG_NOSIGNAL)
    if sent != len(data):
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))


def recv(sock: socket, size: int, max_fds: int = MAX_FDS) -> tuple[bytes, list[int]]:
    """(b"", []) at the end of file. More descriptors than ``max_fds`` are closed and EMSGSIZE is raised."""
    data, ancillary, flags, _ = sock.recvmsg(size, CMSG_SPACE(max_fds * _INT), MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            count = len(payload) // _INT
            fds.extend(struct.unpack(f"={count}i", payload[: count * _INT]))
    if flags & MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, "more descriptors than expected")
    return data, fds
