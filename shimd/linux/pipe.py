"""Pipes: capacity, fill level, copying without consuming, pipe(7)."""

from __future__ import annotations

import errno
import struct
import termios
from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl, ioctl

from shimd.linux._libc import NR, syscall

SPLICE_F_NONBLOCK = 2


def tee(source: int, target: int, length: int, flags: int = SPLICE_F_NONBLOCK) -> int:
    """Bytes copied to another pipe; they stay in ``source``. 0 at its end, BlockingIOError when it must wait."""
    return syscall(NR["tee"], source, target, length, flags)


def get_pipe_size(fd: int) -> int:
    return fcntl(fd, F_GETPIPE_SZ)


def set_pipe_size(fd: int, size: int) -> int:
    """The capacity that it now has: unchanged when the user's share of buffers does not allow ``size``, pipe(7)."""
    try:
        return fcntl(fd, F_SETPIPE_SZ, size)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EBUSY, errno.ENOMEM):
            raise
        return get_pipe_size(fd)


def bytes_available(fd: int) -> int:
    """What can be read without waiting, of a pipe, a socket or a terminal."""
    count: int = struct.unpack("=i", ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]
    return count
