"""tmpcopyup: the content that a new tmpfs is about to cover is copied into it first. Everything by descriptor, no
link is followed.
"""

from __future__ import annotations

import os
from errno import ENOTSUP, EPERM
from stat import S_IMODE, S_ISDIR, S_ISLNK, S_ISREG

_CHUNK = 1 << 20


def copy_tree(source: int, target: int) -> None:
    """Of two O_PATH directories: modes, owners, times, links, device nodes and extended attributes are kept, sockets
    left out.
    """
    here, there = _reopen(source), _reopen(target)
    try:
        _copy_directory(here, there)
    finally:
        os.close(here)
        os.close(there)


def _reopen(directory: int) -> int:
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)


def _copy_directory(source: int, target: int) -> None:
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if S_ISDIR(status.st_mode):
            _copy_subdirectory(source, target, name)
        elif S_ISREG(status.st_mode):
            _copy_file(source, target, name)
        elif S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        _copy_status(status, target, name)


def _copy_subdirectory(source: int, target: int, name: str) -> None:
    os.mkdir(name, 0o700, dir_fd=target)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open(name, flags, dir_fd=source)
    there = os.open(name, flags, dir_fd=target)
    _copy_directory(here, there)
    _copy_attributes(here, there)
    os.close(here)
    os.close(there)


def _copy_file(source: int, target: int, name: str) -> None:
    here = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    there = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
    while os.sendfile(there, here, None, _CHUNK):
        pass
    _copy_attributes(here, there)
    os.close(here)
    os.close(there)


def _copy_attributes(source: int, target: int) -> None:
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as e:
            if e.errno not in (ENOTSUP, EPERM):  # tmpfs knows user.* only since 6.6
                raise


def _copy_status(status: os.stat_result, target: int, name: str) -> None:
    os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    if not S_ISLNK(status.st_mode):
        os.chmod(name, S_IMODE(status.st_mode), dir_fd=target)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)
