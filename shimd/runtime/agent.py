"""The agent that decides about system calls (SCMP_ACT_NOTIFY): it gets the listener of each process's filter, one
connection and one message each, as the specification has it (config-linux.md, "The Container Process State").
"""

from __future__ import annotations

import os
import struct
from _socket import AF_UNIX, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from shimd import jsontext
from shimd.contexts import closing
from shimd.errors import InternalError, RuntimeFailure
from shimd.init.request import Launched
from shimd.linux import fdpass
from shimd.linux.process import pidfd_getfd
from shimd.oci import statejson
from shimd.oci.model import Seccomp

_TIMEOUT = struct.pack("=qq", 10, 0)  # struct timeval: for an agent that does not accept, or not read


def hand_over(profile: Seccomp | None, process: Launched, number: int, fd: int, state: bytes) -> None:
    """``number`` is what the listener is in the process, ``fd`` the listener itself or -1, owned from now on; ``state``
    is that of the container as hooks get it. Raises RuntimeFailure.
    """
    if profile is None or profile.listener_path is None:
        raise InternalError("a seccomp listener without an agent")
    listener = fd if fd >= 0 else _fetch(process, number)
    document = statejson.process_state(process.pid, profile.listener_metadata, jsontext.loads(state.decode()))
    path = profile.listener_path
    try:
        _send(path, statejson.dumps(document).encode(), listener)
    except OSError as error:
        text = f"failed to connect with seccomp agent specified in the seccomp profile: {path}: {error.strerror}"
        raise RuntimeFailure(text) from error
    finally:
        os.close(listener)


def _fetch(process: Launched, number: int) -> int:
    try:
        return pidfd_getfd(process.pidfd, number)
    except OSError as error:
        raise RuntimeFailure(f"fetch the seccomp listener of process {process.pid}: {error.strerror}") from error


def _send(path: str, message: bytes, listener: int) -> None:
    with closing(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)) as sock:
        # Python's own timeouts would make sendmsg(2) non-blocking, which then sends what fits.
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _TIMEOUT)
        if path.startswith("@"):
            sock.connect("\0" + path[1:])
        else:
            _connect(sock, path)
        fdpass.send(sock, message, [listener])


def _connect(sock: socket, path: str) -> None:
    """By descriptor: a path may be longer than the 107 bytes of an address."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
