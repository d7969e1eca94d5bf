"""Paths of a tree that somebody else controls, resolved by openat2(2) so that no link or ".." leads out of it."""

from __future__ import annotations

import errno
import os
import struct

from shimd.linux._libc import NR, encode, syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

_OPEN_HOW = struct.Struct("=QQQ")
_ATTEMPTS = 128  # openat2 gives EAGAIN when a rename or mount anywhere races with a ".."
_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS


def openat2(dirfd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Always close-on-exec. ``mode`` only with O_CREAT or O_TMPFILE; EXDEV when the path leaves what ``resolve``
    allows.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    encoded = encode(path)
    for _ in range(_ATTEMPTS):
        try:
            return syscall(NR["openat2"], dirfd, encoded, how, _OPEN_HOW.size, path=path)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def open_in_root(root_fd: int, path: str, flags: int, *, mode: int = 0) -> int:
    """``path``, absolute or not, as a process with ``root_fd`` as its root would see it; magic links of /proc are
    refused (ELOOP).
    """
    return openat2(root_fd, path, flags, mode=mode, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def mkdir_all_in_root(root_fd: int, path: str, mode: int) -> int:
    """An O_PATH descriptor of the directory ``path``, whose missing parts are made.

    A link to a missing directory gets its target made, inside the root. ENOTDIR when a part is something else than a
    directory.
    """
    for _ in range(_MAX_LINKS):
        try:
            return open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            if not _make_last(root_fd, path, mode):
                path = _make_missing(root_fd, path, mode)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _make_last(root_fd: int, path: str, mode: int) -> bool:
    """The usual case at little cost: only the last part is missing. False when it is not so plain."""
    parent, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        return False
    try:
        fd = open_in_root(root_fd, parent or "/", os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        os.mkdir(name, mode, dir_fd=fd)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
    return True


def _make_missing(root_fd: int, path: str, mode: int) -> str:
    """Make each missing part in turn; returns ``path``, or on a dangling link the path with the link replaced by its
    target.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    parent = open_in_root(root_fd, "/", os.O_PATH | os.O_DIRECTORY)
    try:
        for index, part in enumerate(parts):
            prefix = "/".join(parts[: index + 1])
            target = _make_one(parent, part, mode, root_fd, prefix)
            if target is not None:
                base = "" if target.startswith("/") else "/".join(parts[:index])
                return "/".join((base, target, *parts[index + 1 :]))
            child = open_in_root(root_fd, prefix, os.O_PATH | os.O_DIRECTORY)
            os.close(parent)
            parent = child
    finally:
        os.close(parent)
    return path


def _make_one(parent: int, name: str, mode: int, root_fd: int, prefix: str) -> str | None:
    """The target when ``name`` is a link to nowhere."""
    try:
        os.close(open_in_root(root_fd, prefix, os.O_PATH | os.O_DIRECTORY))
    except FileNotFoundError:
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            try:
                return os.readlink(name, dir_fd=parent)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: somebody made the directory meanwhile
                    raise
    return None
