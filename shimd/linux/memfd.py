"""Sealed memory files: content that the other side of a socket, or a container, cannot change any more."""

from __future__ import annotations

import errno
import os
from fcntl import fcntl

F_ADD_SEALS = 1033
F_GET_SEALS = 1034
F_SEAL_SEAL = 0x01
F_SEAL_SHRINK = 0x02
F_SEAL_GROW = 0x04
F_SEAL_WRITE = 0x08
ALL_SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE

MFD_NOEXEC_SEAL = 0x08
MFD_EXEC = 0x10


def create(name: str, *, executable: bool) -> int:
    """An empty memfd that may be sealed, with the mode that sysctl vm.memfd_noexec asks for; older kernels than 6.3
    know no mode.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | (MFD_EXEC if executable else MFD_NOEXEC_SEAL))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def sealed(name: str, data: bytes) -> int:
    """A read position at 0."""
    fd = create(name, executable=False)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        seal(fd)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    fcntl(fd, F_ADD_SEALS, ALL_SEALS)


def is_sealed(fd: int) -> bool:
    """False also for files that know no seals."""
    try:
        return fcntl(fd, F_GET_SEALS) & ALL_SEALS == ALL_SEALS
    except OSError:
        return False


def read_all(fd: int) -> bytes:
    """The content of a sealed memfd, from its start; OSError EPERM when it is not sealed (its content could change
    while it is read).
    """
    if not is_sealed(fd):
        raise OSError(errno.EPERM, "not a sealed memory file")
    return os.pread(fd, os.fstat(fd).st_size, 0)
